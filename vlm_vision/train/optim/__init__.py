"""Optimizer groups, schedules, learning rates by layer, averaged weights."""
