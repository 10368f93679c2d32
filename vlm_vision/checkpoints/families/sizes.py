"""Sizes that several families share: width, blocks, heads, hidden channels of the MLP."""

from typing import Any

SIZES: dict[str, dict[str, Any]] = {
    "tiny": dict(embed_dim=192, depth=12, num_heads=3, mlp_dim=768),
    "small": dict(embed_dim=384, depth=12, num_heads=6, mlp_dim=1536),
    "base": dict(embed_dim=768, depth=12, num_heads=12, mlp_dim=3072),
    "large": dict(embed_dim=1024, depth=24, num_heads=16, mlp_dim=4096),
    "so400m": dict(embed_dim=1152, depth=27, num_heads=16, mlp_dim=4304),  # Alabdulmohsin et al. 2023, arXiv:2305.13035
    "huge": dict(embed_dim=1280, depth=32, num_heads=16, mlp_dim=5120),
    "gigantic": dict(embed_dim=1664, depth=48, num_heads=16, mlp_dim=8192),
}

GIANT_CLIP = dict(embed_dim=1408, depth=40, num_heads=16, mlp_dim=6144)
"""OpenCLIP's and I-JEPA's g."""
GIANT_DINO = dict(embed_dim=1536, depth=40, num_heads=24, mlp_dim=4096, mlp="swiglu")
"""DINOv2's and TIPSv2's g."""
