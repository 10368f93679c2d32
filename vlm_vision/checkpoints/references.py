"""Whose resize of the position table to reproduce: for each family, each reference by name."""

import difflib

_TIMM = "bicubic_antialias"

RESIZE_BY_FAMILY: dict[str, dict[str, str]] = {
    "vit": {"transformers": "bicubic", "timm": _TIMM, "original": "zoom", "big_vision": "zoom"},
    "deit": {"transformers": "bicubic", "timm": _TIMM, "original": "bicubic"},
    "vit_mae": {"transformers": "bicubic", "timm": _TIMM, "original": "bicubic"},
    "ijepa": {"transformers": "bicubic", "timm": _TIMM, "original": "bicubic"},
    "dino": {"transformers": "bicubic", "timm": _TIMM, "original": "bicubic_offset"},
    "dinov2": {"transformers": "bicubic", "timm": _TIMM, "original": "bicubic_offset"},
    "dinov2_with_registers": {"transformers": _TIMM, "timm": _TIMM, "original": _TIMM},
    "dinov3_vit": {"transformers": "bicubic", "timm": "bicubic", "original": "bicubic"},  # rotary: nothing to resize
    "clip_vision_model": {"transformers": "bicubic", "timm": _TIMM, "open_clip": _TIMM},
    "siglip_vision_model": {
        "transformers": "bicubic",
        "timm": _TIMM,
        "open_clip": _TIMM,
        "original": "zoom",
        "big_vision": "zoom",
    },
    "siglip2_vision_model": {
        "transformers": "bilinear_antialias",
        "timm": "bilinear_antialias",
        "original": "bilinear_antialias",
        "big_vision": "bilinear_antialias",
    },
    "idefics3_vision": {"transformers": "bucket", "timm": _TIMM, "original": "zoom"},
    "smolvlm_vision": {"transformers": "bucket", "timm": _TIMM, "original": "zoom"},
    "aimv2_vision_model": {"transformers": "native", "timm": _TIMM},
}
"""family -> reference -> rule in `vlm_vision.nn.position.RESIZE`. DeiT, MAE, open_clip and big_vision resize when they load,
the others for each image; the numbers are the same."""


def resize_rule(family: str, reference: str) -> str:
    """The rule of `reference` for `family`.

    Raises:
        ValueError: the reference has none for that family.
    """
    rules = RESIZE_BY_FAMILY[family]
    if reference not in rules:
        near = difflib.get_close_matches(str(reference), rules, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(
            f"reference {reference!r} has no position resize for {family}: expected one of {', '.join(rules)}{hint}"
        )
    return rules[reference]
