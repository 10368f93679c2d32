"""`.pth` files of the original code of a family."""
