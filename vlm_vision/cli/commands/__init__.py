"""Commands of `vlm-vision`, one in each file: `add_to(parser)` declares the arguments, `run(options)` imports and runs."""
