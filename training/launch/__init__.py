"""Launchers: the same spec and the same module, started on this machine, by accelerate, by Ray, or on a cluster."""
