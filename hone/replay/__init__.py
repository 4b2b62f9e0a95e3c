"""Recorded conversations through the live gateway: what a real client would send, accounted for to the last event."""
