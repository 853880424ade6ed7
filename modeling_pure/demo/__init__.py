"""The offline demo: a world of textbook facts, and the whole line from text to a measured score on it."""
