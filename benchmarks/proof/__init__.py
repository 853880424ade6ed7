"""The whole line on one GPU, in commands of less than ten minutes: `python -m benchmarks.proof PART`."""
