"""The command `vlm-vision`."""
