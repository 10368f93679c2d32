"""Foreign checkpoint formats: key tables, read and written strictly. No code from a checkpoint runs."""
