"""Training scripts, run from a checkout: `python -m recipes.NAME --config recipes/configs/FILE.yaml`."""
