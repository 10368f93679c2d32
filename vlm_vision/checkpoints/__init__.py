"""Foreign checkpoint formats: each a key table, read and written strictly. Nothing here runs code from a checkpoint."""
