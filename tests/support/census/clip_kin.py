"""CLIP and its kin, and the models around its tower."""

from collections.abc import Callable

from torch import Tensor, nn

import vlm_vision as vv
from support.census.case import Case, Json, Reference
from support.census.inputs import connector, pixels


def normed(name: str = "post_layernorm", *, prefix: int = 1) -> Callable[[nn.Module, Tensor], Reference]:
    """Towers that leave their tokens before the final norm, called `name` there, which only the class token goes through."""
    plain = pixels(prefix=prefix)

    def reference(tower: nn.Module, x: Tensor) -> Reference:
        norm = next(module for path, module in tower.named_modules() if path.split(".")[-1] == name)
        return Reference(norm(plain(tower, x).tokens))

    return reference


def bridgetower(tower: nn.Module, x: Tensor) -> Reference:
    return Reference(tower(x, interpolate_pos_encoding=True)[-1][:, 1:])


_CLIP: Json = dict(tower="vision_model", reference=normed())
_VLM: Json = dict(
    tower="vision_tower", reference=normed(), connector=connector("multi_modal_projector"), wide_connector=True
)

CASES = (
    Case(model_type="clip", **_CLIP),
    Case(
        model_type="clip",
        label="clip-wide",
        changes={
            "vision_config": dict(
                hidden_size=48, num_attention_heads=2, patch_size=16, hidden_act="gelu_new", layer_norm_eps=1e-3
            )
        },
        **_CLIP,
    ),
    Case(model_type="metaclip_2", **_CLIP),
    Case(model_type="altclip", **_CLIP),
    Case(model_type="chinese_clip", **_CLIP),
    Case(model_type="clipseg", **_CLIP),
    Case(model_type="clipseg", label="clipseg-silu", changes={"vision_config": dict(hidden_act="silu")}, **_CLIP),
    Case(model_type="kosmos-2", **_CLIP),
    Case(
        model_type="git",
        tower="image_encoder",
        reference=pixels(prefix=1),
        connector=connector("visual_projection"),
        wide_connector=True,
    ),
    Case(model_type="llava", **_VLM),
    Case(model_type="llava_next", **_VLM),
    Case(model_type="llava_next_video", **_VLM),
    Case(
        model_type="vipllava",
        changes=dict(vision_feature_layer=[-2, -3, 1], projector_layernorm_eps=1e-3, projector_hidden_act="silu"),
        connector_taps=tuple(vv.Tap(layer, norm=False) for layer in (-2, -3, 0)),
        **_VLM,
    ),
    Case(model_type="video_llava", **_VLM | dict(tower="image_tower", part="image_tower")),
    Case(model_type="video_llava", label="video_llava-video", **_VLM | dict(tower="video_tower", part="video_tower")),
    Case(
        model_type="granite4_vision",
        tower="vision_tower",
        reference=normed(),
        changes=dict(downsample_rate="1/2", deepstack_layer_map=[[-2, 0], [-1, 1]], spatial_target_layers=[0, 1, 2, 3]),
    ),
    Case(model_type="blip", **_CLIP | dict(reference=pixels(prefix=1))),
    *(
        Case(model_type=name, **_CLIP | dict(reference=pixels(prefix=1)))
        for name in ("blip-2", "instructblip", "instructblipvideo")
    ),
    Case(
        model_type="blip-2",
        label="blip-2-no-bias",
        changes={"vision_config": dict(qkv_bias=False, hidden_act="silu")},
        **_CLIP | dict(reference=pixels(prefix=1)),
    ),
    Case(model_type="owlvit", **_CLIP),
    Case(model_type="owlv2", **_CLIP),
    Case(model_type="idefics", changes={"vision_config": dict(hidden_act="quick_gelu")}, bare=False, **_CLIP),
    Case(
        model_type="idefics",
        label="idefics, past the last patch",
        bare=False,
        sizes=((64, 64), (64, 70), (70, 66), (68, 68), (32, 128)),
        **_CLIP,
    ),
    Case(model_type="bridgetower", tower="vision_model", reference=bridgetower),
    Case(
        model_type="bridgetower",
        label="bridgetower-shorter",
        changes={"vision_config": dict(remove_last_layer=True)},
        tower="vision_model",
        reference=bridgetower,
    ),
)
