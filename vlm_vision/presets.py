"""Named architectures: a table of sizes, a table of families, and the public models they make.

`config("dinov2_large")` gives the `ViTConfig` of the public checkpoint of that name; `create("siglip_base_patch16_224")`
builds it with random weights. Sources of the figures: the papers and the hub configs named in each section.
"""

import dataclasses
import difflib
from typing import Any

from vlm_vision.nn.config import ViTConfig
from vlm_vision.nn.vit import VisionTransformer

SIZES: dict[str, dict[str, Any]] = {
    #  width, blocks, heads, hidden channels of the MLP
    "tiny": dict(embed_dim=192, depth=12, num_heads=3, mlp_dim=768),
    "small": dict(embed_dim=384, depth=12, num_heads=6, mlp_dim=1536),
    "base": dict(embed_dim=768, depth=12, num_heads=12, mlp_dim=3072),
    "large": dict(embed_dim=1024, depth=24, num_heads=16, mlp_dim=4096),
    "so400m": dict(embed_dim=1152, depth=27, num_heads=16, mlp_dim=4304),  # Alabdulmohsin et al. 2023, arXiv:2305.13035
    "huge": dict(embed_dim=1280, depth=32, num_heads=16, mlp_dim=5120),
    "giant_clip": dict(embed_dim=1408, depth=40, num_heads=16, mlp_dim=6144),  # OpenCLIP's g, I-JEPA's g
    "gigantic": dict(embed_dim=1664, depth=48, num_heads=16, mlp_dim=8192),
    "giantopt": dict(embed_dim=1536, depth=40, num_heads=16, mlp_dim=6144),  # SigLIP2's g
    "giant": dict(embed_dim=1536, depth=40, num_heads=24, mlp_dim=4096, mlp="swiglu"),  # DINOv2's g
    "small_plus": dict(embed_dim=384, depth=12, num_heads=6, mlp_dim=1536, mlp="swiglu"),  # DINOv3's S+, H+, 7B
    "huge_plus": dict(embed_dim=1280, depth=32, num_heads=20, mlp_dim=5120, mlp="swiglu"),
    "7b": dict(embed_dim=4096, depth=40, num_heads=32, mlp_dim=8192, mlp="swiglu"),
    "aim_large": dict(embed_dim=1024, depth=24, num_heads=8, mlp_dim=2816),  # Fini et al. 2024, arXiv:2411.14402
    "aim_huge": dict(embed_dim=1536, depth=24, num_heads=12, mlp_dim=4096),
    "aim_1b": dict(embed_dim=2048, depth=24, num_heads=16, mlp_dim=5632),
    "aim_3b": dict(embed_dim=3072, depth=24, num_heads=24, mlp_dim=8192),
}

_DINOV2: dict[str, Any] = dict(position_prefix=1, layer_scale=1.0, mask_token=True)
_CLIP: dict[str, Any] = dict(position_prefix=1, norm_eps=1e-5, pool_head="linear", pre_norm=True, patch_bias=False)
_SIGLIP: dict[str, Any] = dict(class_token=False, mlp="gelu_tanh", pool="map")

FAMILIES: dict[str, dict[str, Any]] = {
    # Dosovitskiy et al. 2020, Steiner et al. 2021; transformers' epsilon
    "vit": dict(position_prefix=1, norm_eps=1e-12),
    # Touvron et al. 2020 (arXiv:2012.12877), with distillation token; 2022 (arXiv:2204.07118)
    "deit": dict(position_prefix=2, num_registers=1, pool="cls_dist"),
    "deit3": dict(layer_scale=1e-4),
    # He et al. 2021 (arXiv:2111.06377); Assran et al. 2023 (arXiv:2301.08243); Caron et al. 2021 (arXiv:2104.14294)
    "mae": dict(position_prefix=1),
    "ijepa": dict(class_token=False, pool="mean"),
    "dino": dict(position_prefix=1, position_resize="bicubic_offset"),
    # Radford et al. 2021 and the models after it by their own activation
    "clip": _CLIP | dict(mlp="quick_gelu"),
    "openclip": _CLIP,
    # Zhai et al. 2023, Tschannen et al. 2025: fixed resolution, and any
    "siglip": _SIGLIP,
    "siglip2": _SIGLIP,
    "siglip2_naflex": _SIGLIP | dict(position_resize="bilinear_antialias"),
    # Oquab et al. 2023; Darcet et al. 2023; Siméoni et al. 2025
    "dinov2": _DINOV2,
    "dinov2_with_registers": _DINOV2 | dict(num_registers=4, position_resize="bicubic_antialias"),
    "dinov3": dict(position="rope2d", num_registers=4, mask_token=True, layer_scale=1.0, norm_eps=1e-5, key_bias=False),
    # Fini et al. 2024
    "aimv2": dict(
        class_token=False,
        patch_norm=True,
        norm="rms",
        norm_eps=1e-5,
        mlp="swiglu",
        qkv_bias=False,
        proj_bias=False,
        mlp_bias=False,
        pool="query",
        position_resize="native",
    ),
}

CHECKPOINTS: dict[str, str] = {
    "deit3": "deit",
    "mae": "vit_mae",
    "clip": "clip_vision_model",
    "openclip": "clip_vision_model",
    "siglip": "siglip_vision_model",
    "siglip2": "siglip_vision_model",
    "siglip2_naflex": "siglip2_vision_model",
    "dinov3": "dinov3_vit",
    "aimv2": "aimv2_vision_model",
}
"""Family here -> family in `vlm_vision.checkpoints`, where the names differ."""


_TABLE: dict[str, tuple[str, str, int, int, dict[str, Any]]] = {}
"""name: (family, size, patch in pixels, native image side in pixels, what else differs)"""


def _rows(family: str, size: str, patches: str, *, name: str = "", **differs: Any) -> None:
    """Rows for "16:224,384 14:224" (patch:sides ...), called family_size_patchP_side."""
    for part in patches.split():
        patch, _, sides = part.partition(":")
        for side in sides.split(","):
            label = f"{family}_{name or size}_patch{patch}_{side}"
            _TABLE[label] = (family, size, int(patch), int(side), differs)


_rows("vit", "tiny", "16:224")
_rows("vit", "small", "16:224 32:224")
_rows("vit", "base", "16:224,384 32:224 8:224")
_rows("vit", "large", "16:224,384 14:224")
_rows("vit", "huge", "14:224")
for _size in ("tiny", "small", "base"):
    _rows("deit", _size, "16:224")
_rows("deit", "base", "16:384")
for _size in ("small", "base", "large"):
    _rows("deit3", _size, "16:224,384")
_rows("deit3", "huge", "14:224")
_rows("mae", "base", "16:224")
_rows("mae", "large", "16:224")
_rows("mae", "huge", "14:224")
_rows("ijepa", "huge", "14:224 16:448")
_rows("ijepa", "giant_clip", "16:224", name="giant")
_rows("dino", "small", "16:224 8:224")
_rows("dino", "base", "16:224 8:224")
_rows("clip", "base", "32:224 16:224", pool_dim=512)
_rows("clip", "large", "14:224,336", pool_dim=768)
_rows("clip", "huge", "14:224,378", pool_dim=1024)  # DFN, MetaCLIP
_rows("clip", "gigantic", "14:224", pool_dim=1280)  # MetaCLIP
_rows("openclip", "base", "32:224,256 16:224", pool_dim=512)
_rows("openclip", "large", "14:224", pool_dim=768)
_rows("openclip", "huge", "14:224", pool_dim=1024)
_rows("openclip", "giant_clip", "14:224", name="giant", pool_dim=1024)
_rows("openclip", "gigantic", "14:224", pool_dim=1280)
_rows("siglip", "base", "16:224,256,384,512")
_rows("siglip", "large", "16:256,384")
_rows("siglip", "so400m", "14:224,384 16:256")
_rows("siglip2", "base", "32:256 16:224,256,384,512")
_rows("siglip2", "large", "16:256,384,512")
_rows("siglip2", "so400m", "14:224,384 16:256,384,512")
_rows("siglip2", "giantopt", "16:256,384")
_rows("siglip2_naflex", "base", "16:256")
_rows("siglip2_naflex", "so400m", "16:256")
for _size in ("small", "base", "large", "giant"):
    for _family in ("dinov2", "dinov2_with_registers"):
        _TABLE[f"{_family}_{_size}"] = (_family, _size, 14, 518, {})
for _size in ("small", "small_plus", "base", "large", "huge_plus"):
    _TABLE[f"dinov3_{_size}"] = ("dinov3", _size, 16, 224, {})
_TABLE["dinov3_7b"] = ("dinov3", "7b", 16, 224, dict(qkv_bias=False, key_bias=True))
for _size in ("large", "huge", "1b", "3b"):
    _rows("aimv2", f"aim_{_size}", "14:224,336,448", name=_size)


def names() -> list[str]:
    """All preset names."""
    return list(_TABLE)


def family(name: str) -> str:
    """Family of the preset `name`, a key of FAMILIES."""
    return _row(name)[0]


def checkpoint_family(name: str) -> str:
    """Family of the preset `name` in `vlm_vision.checkpoints`: whose layout its weights have."""
    return CHECKPOINTS.get(family(name), family(name))


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
