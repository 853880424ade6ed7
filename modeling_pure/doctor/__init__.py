"""Whether a machine and a recipe are fit for a run: the checks of `python -m modeling_pure.doctor`."""
