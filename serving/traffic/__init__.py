"""Where traffic is split: one protocol, and one file for each platform behind it."""
