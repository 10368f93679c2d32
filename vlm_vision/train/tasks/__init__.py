"""One file for each recipe: its training step."""
