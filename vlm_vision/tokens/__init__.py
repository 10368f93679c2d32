"""Visual tokens on disk: extraction from any source, the store, its readers."""
