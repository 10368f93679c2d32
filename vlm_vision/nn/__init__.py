"""The transformer: configuration, positions, blocks, and the towers made of them. One `VisionTransformer` is every family."""
