"""`make demo`: the whole loop on one machine, with simulated people whose taste the platform cannot see."""
