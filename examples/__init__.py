"""Short programs and recipes to begin from; README.md has the command for each. Research use, not clinical."""
