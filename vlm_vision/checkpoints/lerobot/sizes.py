"""Vision-language models inside policies that are not described: from the shapes of their weights, and the facts of the public ones.

Shapes do not state how many heads there are, nor which blocks give deep features: those are of the public models, by width and depth.
"""

import math
from collections.abc import Mapping
from typing import Any

from vlm_vision.checkpoints.towers import count

Json = dict[str, Any]
Shapes = Mapping[str, tuple[int, ...]]

_QWEN3_VL = {(1024, 24): (16, [5, 11, 17]), (1152, 27): (16, [8, 16, 24])}
"""(width, depth) -> heads, blocks with deep features: Qwen3-VL of 2B and 4B, and the larger ones."""
_QWEN2_5_VL = {(1280, 32): 16}
_INTERNVL = {(1024, 24): 16, (3200, 45): 25}
"""InternVL3 up to 14B, and the larger ones."""
_MOLMO2 = {1152: 16}


def qwen3_vl(shapes: Shapes, num_heads: int | None) -> Json:
    """As Qwen3VLConfig. The tower's prefix is that of the merger."""
    width, channels, frames, patch, _ = shapes["patch_embed.proj.weight"]
    depth, deep = count(shapes, r"blocks\.(\d+)\."), count(shapes, r"deepstack_merger_list\.(\d+)\.")
    heads, blocks = _QWEN3_VL.get((width, depth), (num_heads, [] if deep == 0 else None))
    if heads is None or blocks is None or len(blocks) != deep:
        facts = "its heads" if blocks is not None else "which of its blocks give deep features"
        raise ValueError(f"a Qwen3-VL tower of width {width} and depth {depth} is not public: {facts} cannot be known")
    out_dim, _ = shapes["merger.linear_fc2.weight"]
    vision = dict(
        model_type="qwen3_vl_vision",
        depth=depth,
        hidden_size=width,
        intermediate_size=shapes["blocks.0.mlp.linear_fc1.weight"][0],
        num_heads=num_heads or heads,
        in_channels=channels,
        patch_size=patch,
        temporal_patch_size=frames,
        spatial_merge_size=math.isqrt(shapes["merger.linear_fc1.weight"][1] // width),
        out_hidden_size=out_dim,
        num_position_embeddings=shapes["pos_embed.weight"][0],
        deepstack_visual_indexes=blocks,
    )
    return {"model_type": "qwen3_vl", "vision_config": vision}


def qwen2_5_vl(shapes: Shapes, num_heads: int | None) -> Json:
    """As Qwen2_5_VLConfig: windows and blocks without them are the defaults of the class, as in all public models."""
    width, channels, frames, patch, _ = shapes["patch_embed.proj.weight"]
    depth = count(shapes, r"blocks\.(\d+)\.")
    vision = dict(
        model_type="qwen2_5_vl_vision",
        depth=depth,
        hidden_size=width,
        intermediate_size=shapes["blocks.0.mlp.gate_proj.weight"][0],
        num_heads=_heads("Qwen2.5-VL", _QWEN2_5_VL.get((width, depth)), num_heads, width, depth),
        in_channels=channels,
        patch_size=patch,
        temporal_patch_size=frames,
        spatial_merge_size=math.isqrt(shapes["merger.mlp.0.weight"][1] // width),
        out_hidden_size=shapes["merger.mlp.2.weight"][0],
    )
    return {"model_type": "qwen2_5_vl", "vision_config": vision}


def internvl(shapes: Shapes, num_heads: int | None) -> Json:
    """As InternVLConfig."""
    width, channels, patch, _ = shapes["embeddings.patch_embeddings.projection.weight"]
    depth, block = count(shapes, r"encoder\.layer\.(\d+)\."), "encoder.layer.0."
    side = math.isqrt(shapes["embeddings.position_embeddings"][1] - 1) * patch
    vision = dict(
        model_type="internvl_vision",
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=_heads("InternVL", _INTERNVL.get((width, depth)), num_heads, width, depth),
        intermediate_size=shapes[f"{block}mlp.fc1.weight"][0],
        image_size=[side, side],
        patch_size=[patch, patch],
        num_channels=channels,
        attention_bias=f"{block}attention.q_proj.bias" in shapes,
        use_qk_norm=f"{block}attention.q_norm.weight" in shapes,
        use_mask_token="embeddings.mask_token" in shapes,
        use_mean_pooling="layernorm.weight" not in shapes,
        norm_type="layer_norm" if f"{block}layernorm_before.bias" in shapes else "rms_norm",
    )
    return {"model_type": "internvl", "vision_config": vision}


def molmo2(shapes: Shapes, num_heads: int | None) -> Json:
    """As MolmoAct2Config, whose default reads the third and the ninth block from the end, and does not store the last two."""
    vit = "image_vit."
    shapes = {name.removeprefix(vit): shape for name, shape in shapes.items()}
    rows, width = shapes["positional_embedding"]
    _, values = shapes["patch_embedding.weight"]
    depth, side, patch = count(shapes, r"transformer\.resblocks\.(\d+)\."), math.isqrt(rows), math.isqrt(values // 3)
    heads = _heads("MolmoAct2", _MOLMO2.get(width), num_heads, width, depth)
    inner = shapes["transformer.resblocks.0.attention.wq.weight"][0]
    given = dict(
        hidden_size=width,
        intermediate_size=shapes["transformer.resblocks.0.feed_forward.w1.weight"][0],
        num_hidden_layers=depth + 2,
        num_attention_heads=heads,
        num_key_value_heads=heads * shapes["transformer.resblocks.0.attention.wk.weight"][0] // inner,
        head_dim=inner // heads,
        image_default_input_size=[side * patch, side * patch],
        image_patch_size=patch,
        image_num_pos=rows,
    )
    return {"vit_config": given, "adapter_config": {"head_dim": inner // heads}}


_VIT: Json = dict(num_hidden_layers=27, image_default_input_size=[378, 378], image_patch_size=14)
_ADAPTER: Json = dict(vit_layers=[-3, -9], pooling_attention_mask=False, head_dim=72, hidden_act="silu")
"""Defaults of MolmoAct2's own configuration classes, which differ from Molmo2's."""


def as_molmo2(config: Json) -> Json:
    """MolmoAct2's config.json as Molmo2's.

    Raises:
        ValueError: a part that is not an object.
    """
    parts = {name: config.get(name) or {} for name in ("vit_config", "adapter_config")}
    for name, part in parts.items():
        if not isinstance(part, dict):
            raise ValueError(f"MolmoAct2's config.json has a {name} that is not an object: download it again")
    given = {name: {field: value for field, value in part.items() if value is not None} for name, part in parts.items()}
    return {
        "model_type": "molmo2",
        "vision_config": _VIT | given["vit_config"] | {"model_type": "molmo2_vision"},
        "adapter_config": _ADAPTER | given["adapter_config"],
    }


def _heads(name: str, public: int | None, given: int | None, width: int, depth: int) -> int:
    heads = given or public
    if heads is None:
        raise ValueError(f"a {name} tower of width {width} and depth {depth} is not public: pass num_heads=...")
    return heads
