"""The tower of Llama 4: learned and rotary positions for one image size, and a class token, which its files hold last."""

from vlm_vision.checkpoints.families.blocks import BlockNames
from vlm_vision.checkpoints.families.family import Family, Json, Style, WholeModel
from vlm_vision.checkpoints.families.fields import BASE, HALF, common, common_back, square
from vlm_vision.checkpoints.families.rotary import channel_order, rope_back, rope_theta
from vlm_vision.checkpoints.keys import PATCH_ROW, Key, TensorLayout, key, layer
from vlm_vision.nn.config import ViTConfig
from vlm_vision.nn.rope import Rope


def _config(config: Json, names: frozenset[str]) -> ViTConfig:
    return ViTConfig(  # its norm_eps and hidden_act have no effect
        **common(config | {"layer_norm_eps": 1e-5}),
        mlp_dim=config["intermediate_size"],
        position_prefix=1,
        position_resize="native",
        rope=Rope(base=rope_theta(config), first=1),
        patch_bias=False,
        pre_norm=True,
        pool="none",
    )


def _config_back(config: ViTConfig) -> Json:
    back = common_back(config)
    del back["layer_norm_eps"]
    return back | dict(
        intermediate_size=config.mlp_dim,
        rope_parameters=rope_back(config, "default"),
    )


_CLASS_LAST = TensorLayout(write=lambda x: x[0].roll(-1, 0), read=lambda x, shape: x.roll(1, 0)[None])
"""Our position table (1, 1 + N, D) with its first row last, (N + 1, D)."""


def _keys(config: ViTConfig, style: Style = "hub") -> list[Key]:
    names = BlockNames(
        stem="model.layers.{}",
        norm1="input_layernorm",
        qkv=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        proj="self_attn.o_proj",
        norm2="post_attention_layernorm",
        fc1="mlp.fc1",
        fc2="mlp.fc2",
    )
    return [
        key("patch_embed.weight", "patch_embedding.linear.weight", layout=PATCH_ROW),
        key("cls_token", "class_embedding", drop=2),
        key("position.table", "positional_embedding_vlm", layout=_CLASS_LAST),
        *layer("pre_norm", "layernorm_pre"),
        *layer("norm", "layernorm_post"),
        *names.rows(config, order=channel_order(config.head_dim, axes="columns first", channels="neighbors")),
    ]


LLAMA4 = Family(
    name="llama4_vision_model",
    whole_models=(WholeModel(model_type="llama4", tower="llama4_vision_model"),),
    architecture="Llama4VisionModel",
    landmarks=("positional_embedding_vlm",),
    connector=("vision_adapter.",),
    defaults=BASE
    | dict(num_hidden_layers=34, num_attention_heads=16, intermediate_size=5632, image_size=448, patch_size=14),
    read_config=_config,
    write_config=_config_back,
    keys=_keys,
    preprocessor=lambda config: dict(image_processor_type="Llama4ImageProcessor", size=square(config)),
    image_processors={
        "Llama4ImageProcessor": HALF | dict(size={"height": 336, "width": 336}, resample=2, kernel="torch"),
    },
    resize={"transformers": "native"},
)
"""Meta 2025."""
