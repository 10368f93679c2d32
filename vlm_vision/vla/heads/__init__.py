"""Action heads: tokens, parallel slots, flow matching."""
