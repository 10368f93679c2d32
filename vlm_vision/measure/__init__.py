"""Measurements of a trained model: answers and their accuracy, whether it uses its images, errors of actions, contact sheets."""
