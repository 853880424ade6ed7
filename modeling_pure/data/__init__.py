"""From sources to training rows: documents -> packed rows of one source -> the mixture, each with its exact state."""
