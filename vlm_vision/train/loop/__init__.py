"""The training loop: steps, order of data, resume, sharding over processes."""
