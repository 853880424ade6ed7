"""Checks of a machine and a recipe before a run: `python -m modeling_pure.doctor`."""
