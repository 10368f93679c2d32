"""Conversations about images: sources, labels and batches."""
