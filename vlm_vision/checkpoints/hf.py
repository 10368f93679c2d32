"""HuggingFace folders: `config.json` and weights of transformers, both ways.

Each family is one `Family`: how its `config.json` becomes a `ViTConfig`, and its key table. Weights of a whole model
(CLIP, SigLIP, LLaVA) are read by prefix; only the vision part is touched.

Documented exceptions to "every stored weight is used": `position_ids` (an index buffer of old CLIP and SigLIP files)
and the `SIBLINGS` of the vision part in a whole model.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from vlm_vision.checkpoints.keys import Key, key, layer
from vlm_vision.vit import ViTConfig

Json = dict[str, Any]

ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "quick_gelu": "quick_gelu"}
_ACTIVATION_NAMES = {"gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "quick_gelu": "quick_gelu"}

SIBLINGS = (
    "text_model.", "text_projection.", "logit_scale", "logit_bias",  # CLIP, SigLIP
    "language_model.", "model.language_model.", "multi_modal_projector.", "model.multi_modal_projector.",
    "lm_head.", "image_newline", "model.image_newline",  # LLaVA
)  # fmt: skip
"""Names, by prefix, of the other parts of a whole model."""


@dataclass(frozen=True)
class Family:
    """One `model_type` of transformers."""

    landmark: str
    """A weight that every checkpoint of the family has; what precedes it is the prefix of the vision part."""
    beside: tuple[str, ...]
    """Weights of the vision part that stand outside the prefix."""
    defaults: Json
    """Values that transformers assumes where config.json is silent."""
    read_config: Callable[[Json, frozenset[str]], ViTConfig]
    """(config with defaults, stored names without prefix) -> ours"""
    write_config: Callable[[ViTConfig], Json]
    keys: Callable[[ViTConfig], list[Key]]
    architecture: str
    """Class that `save_pretrained` names."""


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)


def _common(config: Json) -> Json:
    patch = _pair(config["patch_size"])
    if patch[0] != patch[1]:
        raise ValueError(f"config.json has patch_size {list(patch)}: only square patches are supported")
    return dict(
        image_size=_pair(config["image_size"]),
        patch_size=patch[0],
        embed_dim=config["hidden_size"],
        depth=config["num_hidden_layers"],
        num_heads=config["num_attention_heads"],
        channels=config["num_channels"],
        norm_eps=config["layer_norm_eps"],
    )


def _activation(config: Json) -> str:
    name = config["hidden_act"]
    if name not in ACTIVATIONS:
        raise ValueError(f"config.json has hidden_act {name!r}, expected one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def _side(pair: tuple[int, int]) -> int | list[int]:
    return pair[0] if pair[0] == pair[1] else list(pair)


def _common_back(config: ViTConfig) -> Json:
    return dict(
        image_size=_side(config.image_size),
        patch_size=config.patch_size,
        hidden_size=config.embed_dim,
        num_hidden_layers=config.depth,
        num_attention_heads=config.num_heads,
        num_channels=config.channels,
        layer_norm_eps=config.norm_eps,
    )


def _blocks(config: ViTConfig, rows: Callable[[int], Iterable[Key]]) -> list[Key]:
    return [item for i in range(config.depth) for item in rows(i)]


def _position(config: ViTConfig, theirs: str, *, drop: int = 0) -> list[Key]:
    return [key("position.table", theirs, drop=drop)]


# ---- ViT ------------------------------------------------------------------------------------------------------------


def _vit_config(config: Json, names: frozenset[str]) -> ViTConfig:
    pooler = "pooler.dense.weight" in names
    if pooler and config["pooler_act"] != "tanh":
        raise ValueError(f"config.json has pooler_act {config['pooler_act']!r}: only 'tanh' is supported")
    return ViTConfig(
        **_common(config),
        mlp_dim=config["intermediate_size"],
        mlp=_activation(config),
        qkv_bias=config["qkv_bias"],
        mask_token="embeddings.mask_token" in names,
        position_prefix=1,
        pool_head="tanh" if pooler else "none",
        pool_dim=(config["pooler_output_size"] or config["hidden_size"]) if pooler else 0,
        num_classes=_num_labels(config) if "classifier.weight" in names else 0,
    )


def _vit_config_back(config: ViTConfig) -> Json:
    return _common_back(config) | dict(
        intermediate_size=config.mlp_dim,
        hidden_act=_ACTIVATION_NAMES[config.mlp],
        qkv_bias=config.qkv_bias,
        pooler_act="tanh",
        pooler_output_size=config.pool_dim or config.embed_dim,
    )


def _vit_keys(config: ViTConfig) -> list[Key]:
    keys = [
        key("cls_token", "embeddings.cls_token"),
        *_position(config, "embeddings.position_embeddings"),
        *layer("patch_embed", "embeddings.patch_embeddings.projection", bias=config.patch_bias),
        *layer("norm", "layernorm"),
    ]
    if config.mask_token:
        keys.append(key("mask_token", "embeddings.mask_token"))
    if config.pool_head == "tanh":
        keys += layer("pool_head", "pooler.dense")
    if config.num_classes:
        keys += layer("head", "classifier")
    return keys + _blocks(
        config,
        lambda i: [
            *layer(f"blocks.{i}.norm1", f"encoder.layer.{i}.layernorm_before"),
            *layer(f"blocks.{i}.attn.qkv", _qkv(f"encoder.layer.{i}.attention.attention"), bias=config.qkv_bias),
            *layer(f"blocks.{i}.attn.proj", f"encoder.layer.{i}.attention.output.dense"),
            *layer(f"blocks.{i}.norm2", f"encoder.layer.{i}.layernorm_after"),
            *layer(f"blocks.{i}.mlp.fc1", f"encoder.layer.{i}.intermediate.dense"),
            *layer(f"blocks.{i}.mlp.fc2", f"encoder.layer.{i}.output.dense"),
        ],
    )


def _qkv(stem: str) -> tuple[str, ...]:
    return tuple(f"{stem}.{part}" for part in ("query", "key", "value"))


def _num_labels(config: Json) -> int:
    return len(config["id2label"]) if config.get("id2label") else config.get("num_labels", 2)


# ---- DINOv2, with and without registers ----------------------------------------------------------------------------


def _dinov2_config(config: Json, names: frozenset[str]) -> ViTConfig:
    hidden = int(config["hidden_size"] * config["mlp_ratio"])
    swiglu = config["use_swiglu_ffn"]
    registers = config.get("num_register_tokens", 0)
    return ViTConfig(
        **_common(config),
        mlp_dim=(int(hidden * 2 / 3) + 7) // 8 * 8 if swiglu else hidden,
        mlp="swiglu" if swiglu else _activation(config),
        qkv_bias=config["qkv_bias"],
        num_registers=registers,
        mask_token="embeddings.mask_token" in names,
        position_prefix=1,
        position_resize="bicubic_antialias" if "num_register_tokens" in config else "bicubic",
        layer_scale=config["layerscale_value"],
        drop_path=config["drop_path_rate"],
        num_classes=_num_labels(config) if "classifier.weight" in names else 0,
        class_input="cls_mean",
    )


def _dinov2_config_back(config: ViTConfig) -> Json:
    swiglu = config.mlp == "swiglu"
    if swiglu and config.mlp_dim != (int(4 * config.embed_dim * 2 / 3) + 7) // 8 * 8:
        raise ValueError(f"dinov2 cannot express a SwiGLU of {config.mlp_dim} channels at width {config.embed_dim}")
    if not swiglu and config.mlp_dim % config.embed_dim:
        raise ValueError(
            f"dinov2 needs an mlp_dim that is a multiple of the width {config.embed_dim}, got {config.mlp_dim}"
        )
    if config.layer_scale is None:
        raise ValueError("dinov2 has a LayerScale and this encoder has none (folded?): save it before folding")
    return _common_back(config) | dict(
        mlp_ratio=4 if swiglu else config.mlp_dim // config.embed_dim,
        use_swiglu_ffn=swiglu,
        hidden_act="gelu" if swiglu else _ACTIVATION_NAMES[config.mlp],
        qkv_bias=config.qkv_bias,
        layerscale_value=config.layer_scale,
        drop_path_rate=config.drop_path,
        use_mask_token=config.mask_token,
    )


def _registers_config_back(config: ViTConfig) -> Json:
    back = _dinov2_config_back(config) | dict(num_register_tokens=config.num_registers)
    del back["use_mask_token"]
    return back


def _dinov2_keys(config: ViTConfig) -> list[Key]:
    fc1, fc2 = ("weights_in", "weights_out") if config.mlp == "swiglu" else ("fc1", "fc2")
    keys = [
        key("cls_token", "embeddings.cls_token"),
        *_position(config, "embeddings.position_embeddings"),
        *layer("patch_embed", "embeddings.patch_embeddings.projection", bias=config.patch_bias),
        *layer("norm", "layernorm"),
    ]
    if config.num_registers:
        keys.append(key("registers", "embeddings.register_tokens"))
    if config.mask_token:
        keys.append(key("mask_token", "embeddings.mask_token", drop=1))
    if config.num_classes:
        keys += layer("head", "classifier")
    return keys + _blocks(
        config,
        lambda i: [
            *layer(f"blocks.{i}.norm1", f"encoder.layer.{i}.norm1"),
            *layer(f"blocks.{i}.attn.qkv", _qkv(f"encoder.layer.{i}.attention.attention"), bias=config.qkv_bias),
            *layer(f"blocks.{i}.attn.proj", f"encoder.layer.{i}.attention.output.dense"),
            key(f"blocks.{i}.residual1.scale", f"encoder.layer.{i}.layer_scale1.lambda1"),
            *layer(f"blocks.{i}.norm2", f"encoder.layer.{i}.norm2"),
            *layer(f"blocks.{i}.mlp.fc1", f"encoder.layer.{i}.mlp.{fc1}"),
            *layer(f"blocks.{i}.mlp.fc2", f"encoder.layer.{i}.mlp.{fc2}"),
            key(f"blocks.{i}.residual2.scale", f"encoder.layer.{i}.layer_scale2.lambda1"),
        ],
    )


# ---- CLIP and SigLIP ------------------------------------------------------------------------------------------------


def _clip_blocks(config: ViTConfig) -> list[Key]:
    def rows(i: int) -> list[Key]:
        theirs = f"encoder.layers.{i}"
        return [
            *layer(f"blocks.{i}.norm1", f"{theirs}.layer_norm1"),
            *layer(f"blocks.{i}.attn.qkv", tuple(f"{theirs}.self_attn.{part}_proj" for part in "qkv")),
            *layer(f"blocks.{i}.attn.proj", f"{theirs}.self_attn.out_proj"),
            *layer(f"blocks.{i}.norm2", f"{theirs}.layer_norm2"),
            *layer(f"blocks.{i}.mlp.fc1", f"{theirs}.mlp.fc1"),
            *layer(f"blocks.{i}.mlp.fc2", f"{theirs}.mlp.fc2"),
        ]

    return _blocks(config, rows)


def _clip_config(config: Json, names: frozenset[str]) -> ViTConfig:
    projection = "visual_projection.weight" in names
    return ViTConfig(
        **_common(config),
        mlp_dim=config["intermediate_size"],
        mlp=_activation(config),
        position_prefix=1,
        pre_norm=True,
        patch_bias=False,
        pool_head="linear" if projection else "none",
        pool_dim=config["projection_dim"] if projection else 0,
    )


def _clip_config_back(config: ViTConfig) -> Json:
    return _common_back(config) | dict(
        intermediate_size=config.mlp_dim,
        hidden_act=_ACTIVATION_NAMES[config.mlp],
        projection_dim=config.pool_dim or 512,
    )


def _clip_keys(config: ViTConfig) -> list[Key]:
    keys = [
        key("cls_token", "embeddings.class_embedding", drop=2),
        *_position(config, "embeddings.position_embedding.weight", drop=1),
        *layer("patch_embed", "embeddings.patch_embedding", bias=False),
        *layer("pre_norm", "pre_layrnorm"),  # the misspelling is theirs
        *layer("norm", "post_layernorm"),
    ]
    if config.pool_head == "linear":
        keys.append(key("pool_head.weight", "visual_projection.weight"))
    return keys + _clip_blocks(config)


def _siglip_config(config: Json, names: frozenset[str]) -> ViTConfig:
    labels = _num_labels(config) if "classifier.weight" in names else 0
    return ViTConfig(
        **_common(config),
        mlp_dim=config["intermediate_size"],
        mlp=_activation(config),
        class_token=False,
        pool="map" if "head.probe" in names else "mean" if labels else "none",
        num_classes=labels,
    )


def _siglip_config_back(config: ViTConfig) -> Json:
    return _common_back(config) | dict(
        intermediate_size=config.mlp_dim, hidden_act=_ACTIVATION_NAMES[config.mlp], vision_use_head=config.pool == "map"
    )


def _siglip_keys(config: ViTConfig) -> list[Key]:
    keys = [
        *_position(config, "embeddings.position_embedding.weight", drop=1),
        *layer("patch_embed", "embeddings.patch_embedding"),
        *layer("norm", "post_layernorm"),
    ]
    if config.pool == "map":
        keys += [
            key("pool.probe", "head.probe"),
            key(("pool.q.weight", "pool.kv.weight"), "head.attention.in_proj_weight"),
            key(("pool.q.bias", "pool.kv.bias"), "head.attention.in_proj_bias"),
            *layer("pool.proj", "head.attention.out_proj"),
            *layer("pool.norm", "head.layernorm"),
            *layer("pool.mlp.fc1", "head.mlp.fc1"),
            *layer("pool.mlp.fc2", "head.mlp.fc2"),
        ]
    if config.num_classes:
        keys += layer("head", "classifier")
    return keys + _clip_blocks(config)


# ---- the table ------------------------------------------------------------------------------------------------------

_BASE = dict(hidden_size=768, num_hidden_layers=12, num_attention_heads=12, num_channels=3, image_size=224)
_DINOV2 = _BASE | dict(
    mlp_ratio=4, hidden_act="gelu", layer_norm_eps=1e-6, qkv_bias=True, layerscale_value=1.0, drop_path_rate=0.0,
    use_swiglu_ffn=False,
)  # fmt: skip

FAMILIES: dict[str, Family] = {
    "vit": Family(
        landmark="embeddings.patch_embeddings.projection.weight",
        beside=("classifier.weight", "classifier.bias"),
        defaults=_BASE
        | dict(
            patch_size=16, intermediate_size=3072, hidden_act="gelu", layer_norm_eps=1e-12, qkv_bias=True,
            pooler_output_size=None, pooler_act="tanh",
        ),
        read_config=_vit_config,
        write_config=_vit_config_back,
        keys=_vit_keys,
        architecture="ViTModel",
    ),
    "dinov2": Family(
        landmark="embeddings.patch_embeddings.projection.weight",
        beside=("classifier.weight", "classifier.bias"),
        defaults=_DINOV2 | dict(patch_size=14),
        read_config=_dinov2_config,
        write_config=_dinov2_config_back,
        keys=_dinov2_keys,
        architecture="Dinov2Model",
    ),
    "dinov2_with_registers": Family(
        landmark="embeddings.patch_embeddings.projection.weight",
        beside=("classifier.weight", "classifier.bias"),
        defaults=_DINOV2 | dict(patch_size=16, num_register_tokens=4),
        read_config=_dinov2_config,
        write_config=_registers_config_back,
        keys=_dinov2_keys,
        architecture="Dinov2WithRegistersModel",
    ),
    "clip_vision_model": Family(
        landmark="embeddings.patch_embedding.weight",
        beside=("visual_projection.weight",),
        defaults=_BASE
        | dict(patch_size=32, intermediate_size=3072, hidden_act="quick_gelu", layer_norm_eps=1e-5, projection_dim=512),
        read_config=_clip_config,
        write_config=_clip_config_back,
        keys=_clip_keys,
        architecture="CLIPVisionModel",
    ),
    "siglip_vision_model": Family(
        landmark="embeddings.patch_embedding.weight",
        beside=("classifier.weight", "classifier.bias"),
        defaults=_BASE
        | dict(
            patch_size=16, intermediate_size=3072, hidden_act="gelu_pytorch_tanh", layer_norm_eps=1e-6, vision_use_head=True
        ),
        read_config=_siglip_config,
        write_config=_siglip_config_back,
        keys=_siglip_keys,
        architecture="SiglipVisionModel",
    ),
}  # fmt: skip

WHOLE_MODELS = {"clip": "clip_vision_model", "siglip": "siglip_vision_model", "llava": None, "llava_next": None}
"""model_type of a whole model -> the family of its vision part; None: its vision_config says so."""

ORIGINAL_RESIZE = {
    "vit": {"original": "zoom", "big_vision": "zoom"},
    "clip_vision_model": {"original": "bicubic_antialias", "open_clip": "bicubic_antialias"},
    "siglip_vision_model": {"original": "zoom", "big_vision": "zoom"},
    "dinov2": {"original": "bicubic_offset"},
    "dinov2_with_registers": {"original": "bicubic_antialias"},
}
"""Position resize of the code that trained the family, by the name of that reference."""


def default_preprocessor(family: str, config: ViTConfig) -> Json:
    """The family's usual `preprocessor_config.json`, for a folder without one."""
    height, width = config.image_size
    square = {"height": height, "width": width}
    imagenet = dict(image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225])
    return {
        "vit": dict(image_processor_type="ViTImageProcessor", size=square),
        "clip_vision_model": dict(
            image_processor_type="CLIPImageProcessor", size={"shortest_edge": min(height, width)}, crop_size=square
        ),
        "siglip_vision_model": dict(image_processor_type="SiglipImageProcessor", size=square),
        "dinov2": dict(
            image_processor_type="BitImageProcessor",
            size={"shortest_edge": 256},
            crop_size={"height": 224, "width": 224},
            **imagenet,
        ),
        "dinov2_with_registers": dict(
            image_processor_type="BitImageProcessor",
            size={"shortest_edge": 256},
            crop_size={"height": 224, "width": 224},
            **imagenet,
        ),
    }[family]


def public_layout(family: str, config: ViTConfig) -> tuple[str, str]:
    """(prefix of the tower's weights on disk, class that reads them) in the layout of the public hub."""
    architecture = FAMILIES[family].architecture
    prefix = "vision_model." if family.endswith("_vision_model") else ""
    if config.pool_head == "linear":
        architecture += "WithProjection"
    if config.num_classes:
        architecture = architecture.replace("VisionModel", "Model").replace("Model", "ForImageClassification")
        prefix = prefix or f"{family}."
    return prefix, architecture
