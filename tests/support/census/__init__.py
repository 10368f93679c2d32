"""The census of towers: every model type of transformers that has a vision part, built tiny, beside what `vv.load` makes of it."""
