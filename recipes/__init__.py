"""Recipes: `vlm-vision train NAME --config NAME_OR_FILE`, or from a checkout `python -m recipes.NAME`; installed, `vlm_vision.recipes.NAME`."""
