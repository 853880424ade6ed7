"""A training run: arguments, the Trainer and its exact resume, checkpoints, log files, the Hub."""
