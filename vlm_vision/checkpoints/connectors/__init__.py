"""Projectors of published models that are known by the model type of their config.json."""
