"""Comparisons with a peer in the same run: `python -m benchmarks.NAME` prints one JSON line."""
