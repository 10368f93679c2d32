"""SAM 3."""

from support.census.case import Case
from support.census.inputs import pixels

_SMALL = dict(window_size=3, global_attn_indexes=[1], pretrain_image_size=40, num_attention_heads=4)


def _case(model_type: str, label: str = "", tower: str = "vision_encoder", **backbone) -> Case:
    return Case(
        model_type=model_type,
        label=label,
        tower=tower,
        reference=pixels(resize=False),
        sizes=((64, 64),),
        changes={"image_size": 64, "vision_config": {"backbone_config": _SMALL | backbone}},
    )


CASES = (
    _case("sam3"),
    _case("sam3", "sam3: without its neck", "vision_encoder.backbone", window_size=4, hidden_act="silu"),
    _case("sam3", "sam3: a table of the image's size", pretrain_image_size=64, rope_parameters=dict(rope_type="axial", rope_theta=50.0)),
    _case("sam3_lite_text"),
    _case("sam3_tracker"),
    _case("sam3_tracker_video"),
    Case(
        model_type="sam3_video",
        tower="detector_model.vision_encoder",
        reference=pixels(resize=False),
        sizes=((64, 64),),
        changes={"detector_config": {"vision_config": {"backbone_config": _SMALL}}},
    ),
)  # fmt: skip
