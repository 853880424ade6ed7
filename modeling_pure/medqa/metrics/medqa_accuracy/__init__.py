"""Accuracy with its intervals: a module of the `evaluate` library."""
