"""Sources of images by kind, and the choice of one by its name."""
