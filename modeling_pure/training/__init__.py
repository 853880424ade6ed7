"""The training run: arguments, the Trainer that never loses its place in the data, checkpoints, curves, model card."""
