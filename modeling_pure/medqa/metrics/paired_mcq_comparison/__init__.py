"""Two models on the same questions: a module of the `evaluate` library."""
