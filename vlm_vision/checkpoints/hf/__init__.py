"""HuggingFace folders, as transformers saves and loads them."""
