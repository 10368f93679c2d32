"""Named architectures: a table of sizes, a table of families, and the public models they make.

`config("dinov2_large")` gives the `ViTConfig` of the public checkpoint of that name; `create("siglip_base_patch16_224")`
builds it with random weights. Sources of the figures: the papers and the hub configs named in each section.
"""

import dataclasses
import difflib
from typing import Any

from vlm_vision.config import ViTConfig
from vlm_vision.vit import VisionTransformer

SIZES: dict[str, dict[str, Any]] = {
    #  width, blocks, heads, hidden channels of the MLP
    "tiny": dict(embed_dim=192, depth=12, num_heads=3, mlp_dim=768),
    "small": dict(embed_dim=384, depth=12, num_heads=6, mlp_dim=1536),
    "base": dict(embed_dim=768, depth=12, num_heads=12, mlp_dim=3072),
    "large": dict(embed_dim=1024, depth=24, num_heads=16, mlp_dim=4096),
    "so400m": dict(embed_dim=1152, depth=27, num_heads=16, mlp_dim=4304),  # Alabdulmohsin et al. 2023, arXiv:2305.13035
    "huge": dict(embed_dim=1280, depth=32, num_heads=16, mlp_dim=5120),
    "giant": dict(embed_dim=1536, depth=40, num_heads=24, mlp_dim=4096, mlp="swiglu"),  # DINOv2's g
}

FAMILIES: dict[str, dict[str, Any]] = {
    # Dosovitskiy et al. 2020; transformers' epsilon
    "vit": dict(position_prefix=1, norm_eps=1e-12, pool="cls"),
    # Radford et al. 2021
    "clip": dict(
        position_prefix=1,
        norm_eps=1e-5,
        pool="cls",
        pool_head="linear",
        pre_norm=True,
        patch_bias=False,
        mlp="quick_gelu",
    ),
    # Zhai et al. 2023, Tschannen et al. 2025 (fixed resolution)
    "siglip": dict(class_token=False, mlp="gelu_tanh", pool="map"),
    # Oquab et al. 2023
    "dinov2": dict(position_prefix=1, layer_scale=1.0, mask_token=True, pool="cls"),
    # Darcet et al. 2023
    "dinov2_with_registers": dict(
        position_prefix=1,
        layer_scale=1.0,
        mask_token=True,
        pool="cls",
        num_registers=4,
        position_resize="bicubic_antialias",
    ),
}

#  name: (family, size, patch in pixels, native picture side in pixels, what else differs)
_TABLE: dict[str, tuple[str, str, int, int, dict[str, Any]]] = {
    "vit_small_patch16_224": ("vit", "small", 16, 224, {}),
    "vit_base_patch16_224": ("vit", "base", 16, 224, {}),
    "vit_large_patch14_224": ("vit", "large", 14, 224, {}),
    "vit_huge_patch14_224": ("vit", "huge", 14, 224, {}),
    "clip_base_patch32_224": ("clip", "base", 32, 224, dict(pool_dim=512)),
    "clip_base_patch16_224": ("clip", "base", 16, 224, dict(pool_dim=512)),
    "clip_large_patch14_224": ("clip", "large", 14, 224, dict(pool_dim=768)),
    "clip_large_patch14_336": ("clip", "large", 14, 336, dict(pool_dim=768)),
    "siglip_base_patch16_224": ("siglip", "base", 16, 224, {}),
    "siglip_base_patch16_256": ("siglip", "base", 16, 256, {}),
    "siglip_base_patch16_384": ("siglip", "base", 16, 384, {}),
    "siglip_base_patch16_512": ("siglip", "base", 16, 512, {}),
    "siglip_large_patch16_256": ("siglip", "large", 16, 256, {}),
    "siglip_large_patch16_384": ("siglip", "large", 16, 384, {}),
    "siglip_so400m_patch14_224": ("siglip", "so400m", 14, 224, {}),
    "siglip_so400m_patch14_384": ("siglip", "so400m", 14, 384, {}),
    "siglip_so400m_patch16_256": ("siglip", "so400m", 16, 256, {}),
    "dinov2_small": ("dinov2", "small", 14, 518, {}),
    "dinov2_base": ("dinov2", "base", 14, 518, {}),
    "dinov2_large": ("dinov2", "large", 14, 518, {}),
    "dinov2_giant": ("dinov2", "giant", 14, 518, {}),
    "dinov2_with_registers_small": ("dinov2_with_registers", "small", 14, 518, {}),
    "dinov2_with_registers_base": ("dinov2_with_registers", "base", 14, 518, {}),
    "dinov2_with_registers_large": ("dinov2_with_registers", "large", 14, 518, {}),
    "dinov2_with_registers_giant": ("dinov2_with_registers", "giant", 14, 518, {}),
}


def names() -> list[str]:
    """All preset names."""
    return list(_TABLE)


def family(name: str) -> str:
    """Family of the preset `name`, a key of FAMILIES."""
    return _row(name)[0]


def config(name: str, **changes: Any) -> ViTConfig:
    """Configuration of the preset `name`, with any field changed by keyword.

    Raises:
        ValueError: no preset has that name; near matches are listed.
    """
    family_name, size, patch, side, differs = _row(name)
    fields = dict(SIZES[size], patch_size=patch, image_size=(side, side)) | FAMILIES[family_name] | differs
    known = {field.name for field in dataclasses.fields(ViTConfig)}
    if unknown := sorted(set(changes) - known):
        raise ValueError(f"ViTConfig has no field {', '.join(unknown)}: expected some of {', '.join(sorted(known))}")
    return ViTConfig(**(fields | changes))


def create(name: str, **changes: Any) -> VisionTransformer:
    """The preset `name` with random weights; fields change by keyword, as in `config`."""
    return VisionTransformer(config(name, **changes))


def _row(name: str):
    if name not in _TABLE:
        near = difflib.get_close_matches(str(name), _TABLE, n=3, cutoff=0.5)
        near = near or [known for known in _TABLE if known.startswith(str(name))][:3]
        hint = f"did you mean {' or '.join(near)}?" if near else "`vlm-vision models` lists them"
        raise ValueError(f"no preset is called {name!r}: {hint}")
    return _TABLE[name]
