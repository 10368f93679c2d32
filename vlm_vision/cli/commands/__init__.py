"""One command of `vlm-vision` a file: `add_to(parser)` declares its arguments, `run(options)` imports what it needs and does it."""
