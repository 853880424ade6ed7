"""Speed beside a peer, measured in the same run: `python -m benchmarks.NAME` prints one JSON line."""
