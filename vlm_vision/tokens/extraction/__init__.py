"""From a source of images to a token store, by one process or many."""
