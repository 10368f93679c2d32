"""How published models store their connectors, in files by kind."""
