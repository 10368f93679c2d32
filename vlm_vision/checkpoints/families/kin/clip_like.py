"""Towers that differ from CLIP's in names alone, or in the resize of their positions: OWL-ViT, Idefics, BridgeTower."""

from dataclasses import replace

from vlm_vision.checkpoints.families.blocks import BlockNames
from vlm_vision.checkpoints.families.clip import CLIP
from vlm_vision.checkpoints.families.family import Family, Json, Style, WholeModel
from vlm_vision.checkpoints.families.fields import BASE, OPENAI, common, common_back, square
from vlm_vision.checkpoints.keys import Key, key, layer
from vlm_vision.nn.config import ViTConfig


def _owl_keys(config: ViTConfig, style: Style = "hub") -> list[Key]:
    """CLIP's, with a norm that is spelled as it should be."""
    return [
        replace(row, theirs=tuple(name.replace("pre_layrnorm", "pre_layernorm") for name in row.theirs))
        for row in CLIP.keys(config, style)
    ]


OWLVIT = replace(
    CLIP,
    name="owlvit_vision_model",
    aliases={"owlv2_vision_model": dict(patch_size=16)},
    whole_models=(
        WholeModel(model_type="owlvit", outer_fields={"projection_dim": 512}),
        WholeModel(
            model_type="owlv2",
            tower="owlv2_vision_model",
            outer_fields={"projection_dim": 512},
            preprocessor={"image_processor_type": "Owlv2ImageProcessor"},
        ),
    ),
    architecture="OwlViTVisionModel",
    spellings=(),
    defaults=CLIP.defaults | dict(image_size=768),
    keys=_owl_keys,
    preprocessor=lambda config: dict(image_processor_type="OwlViTImageProcessor", size=square(config)),
    image_processors={
        "OwlViTImageProcessor": OPENAI | dict(size=[768, 768], crop_size=768, resample=3),
        "Owlv2ImageProcessor": OPENAI | dict(size=[960, 960], do_pad=True, resample=2, kernel="gaussian"),
    },
    resize={"transformers": "bicubic"},
    timm=None,
    presets=(),
)
"""Minderer et al. 2022 (arXiv:2205.06230), and OWLv2 (arXiv:2306.09683)."""


def _idefics_config(config: Json, names: frozenset[str]) -> ViTConfig:
    return replace(
        CLIP.read_config(config | {"hidden_size": config["embed_dim"]}, names), position_resize="bicubic_offset_unequal"
    )


def _idefics_config_back(config: ViTConfig) -> Json:
    back = CLIP.write_config(config)
    return {name: value for name, value in back.items() if name not in ("hidden_size", "projection_dim")} | {
        "embed_dim": config.embed_dim
    }


IDEFICS = replace(
    CLIP,
    name="idefics_vision",
    aliases={},
    whole_models=(WholeModel(model_type="idefics"),),
    architecture="IdeficsVisionTransformer",
    prefix="",
    spellings=(),
    beside=(),
    defaults=dict(
        embed_dim=768,
        image_size=224,
        intermediate_size=5120,
        patch_size=14,
        num_hidden_layers=32,
        num_attention_heads=16,
        num_channels=3,
        hidden_act="gelu",
        layer_norm_eps=1e-5,
    ),
    read_config=_idefics_config,
    write_config=_idefics_config_back,
    preprocessor=lambda config: dict(image_processor_type="IdeficsImageProcessor", image_size=config.image_size[0]),
    image_processors={"IdeficsImageProcessor": OPENAI | dict(size=[224, 224], resample=3)},
    resize={"transformers": "bicubic_offset_unequal"},
    timm=None,
    presets=(),
)
"""Laurençon et al. 2023 (arXiv:2306.16527)."""

_BRIDGETOWER = BlockNames(
    stem="transformer.resblocks.{}",
    norm1="ln_1",
    qkv="",
    proj="attn.out_proj",
    norm2="ln_2",
    fc1="mlp.c_fc",
    fc2="mlp.c_proj",
)


def _bridgetower_config(config: Json, names: frozenset[str]) -> ViTConfig:
    width = config["hidden_size"]
    if not config["share_layernorm"]:
        raise ValueError("share_layernorm is False: expected True, one final norm for every block")
    return ViTConfig(
        **common(config | {"num_attention_heads": width // 64})
        | {"depth": config["num_hidden_layers"] - bool(config["remove_last_layer"])},
        mlp_dim=4 * width,
        mlp="quick_gelu",
        position_prefix=1,
        pre_norm=True,
        patch_bias=False,
    )


def _bridgetower_config_back(config: ViTConfig) -> Json:
    back = common_back(config)
    del back["num_attention_heads"]
    return back | dict(share_layernorm=True, remove_last_layer=False)


def _bridgetower_keys(config: ViTConfig, style: Style = "hub") -> list[Key]:
    keys = [
        key("cls_token", "embeddings.class_embedding", drop=2),
        key("position.table", "embeddings.position_embedding.weight", drop=1),
        *layer("patch_embed", "embeddings.patch_embedding", bias=False),
        *layer("pre_norm", "ln_pre"),
        *layer("norm", "ln_post"),
    ]
    for row in _BRIDGETOWER.rows(config):
        name = row.ours[0]
        if ".attn.qkv." in name:
            stem = _BRIDGETOWER.stem.format(name.split(".")[1])
            row = key(name, f"{stem}.attn.in_proj_{name.split('.')[-1]}")
        keys.append(row)
    return keys


BRIDGETOWER = Family(
    name="bridgetower_vision_model",
    whole_models=(WholeModel(model_type="bridgetower"),),
    architecture="BridgeTowerVisionModel",
    landmarks=("embeddings.patch_embedding.weight",),
    prefix="visual.",
    defaults=BASE
    | dict(image_size=288, patch_size=16, layer_norm_eps=1e-5, share_layernorm=True, remove_last_layer=False),
    read_config=_bridgetower_config,
    write_config=_bridgetower_config_back,
    keys=_bridgetower_keys,
    preprocessor=lambda config: dict(
        image_processor_type="BridgeTowerImageProcessor",
        size={"shortest_edge": min(config.image_size)},
        crop_size=square(config),
    ),
    image_processors={
        "BridgeTowerImageProcessor": OPENAI
        | dict(
            size={"shortest_edge": 288},
            crop_size={"shortest_edge": 288},
            do_center_crop=True,
            size_divisor=32,
            resample=3,
        )
    },
    resize={"transformers": "bicubic"},
)
"""Xu et al. 2022 (arXiv:2206.08657): the tower of CLIP, under the names of OpenAI's code."""
