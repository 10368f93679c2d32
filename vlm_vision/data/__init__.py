"""From files to batches: conversations about images, their labels, cached features of frozen towers."""
