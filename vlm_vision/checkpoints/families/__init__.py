"""Families of vision towers: one record for each, which holds all that the library knows of it."""
