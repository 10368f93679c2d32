"""From files to batches: conversations about images, labels, cached features of frozen towers."""
