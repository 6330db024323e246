"""Experiments whose rows lessons quote: each is a command, goes on where it was stopped, and writes data/results."""
