"""Readers of published models' connectors, in files by kind."""
