"""Short programs and recipes to start from; README.md has the command for each. Research use, not clinical."""
