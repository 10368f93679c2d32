"""From files to batches: conversations about pictures, their labels, cached features of frozen towers."""
