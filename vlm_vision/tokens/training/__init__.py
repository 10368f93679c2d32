"""A token store in place of an encoder, for recipes and probes."""
