"""Whether a machine and a recipe are fit for a run: the checks of `pure doctor`."""
