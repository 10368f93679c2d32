"""Encoders for deployment: fixed sizes for export, CUDA graphs, weights laid out for the CPU, other patch sizes."""
