"""Images with captions or labels: sources, random views and batches."""
