"""Checks of a machine and a recipe before a run: `pure doctor`."""
