"""The figures on the pages that people read, from the files of docs/results/: `python -m benchmarks.pages`."""
