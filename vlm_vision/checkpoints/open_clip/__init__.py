"""open_clip folders and files."""
