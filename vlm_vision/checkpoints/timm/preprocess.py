"""`pretrained_cfg` of timm, both ways: the transform that timm evaluates a model with."""

import math
import re
from typing import Any

from vlm_vision.preprocess.spec import IMAGENET, OPENAI, Preprocess, ResizeMode

_DEFAULTS: dict[str, Any] = {
    "input_size": (3, 224, 224),
    "interpolation": "bicubic",
    "crop_pct": 0.875,
    "crop_mode": "center",
    "mean": IMAGENET[0],
    "std": IMAGENET[1],
}
"""Values that timm's `resolve_data_config` fills in for a missing or empty key."""


_HALF = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "crop_pct": 0.9}
_OPENAI = {"mean": OPENAI[0], "std": OPENAI[1]}
_USUAL: tuple[tuple[str, dict[str, Any]], ...] = (
    (r".*_dinov[23]", {"mean": IMAGENET[0], "std": IMAGENET[1], "crop_pct": 1.0}),
    (r"aimv2", _OPENAI | {"crop_pct": 1.0}),
    (r".*_clip_.*(336|378|384|448)", _OPENAI | {"crop_pct": 1.0}),
    (r".*_clip_", _OPENAI | {"crop_pct": 0.9}),
    (r"deit3_.*384", {"mean": IMAGENET[0], "std": IMAGENET[1], "crop_pct": 1.0}),
    (r"deit|.*\.(dino|mae)\b", {"mean": IMAGENET[0], "std": IMAGENET[1], "crop_pct": 0.9}),
    (r"", _HALF),
)
"""Start of an architecture's name, tag included -> its pretrained_cfg in timm, the first that fits."""


def usual_cfg(architecture: str) -> dict[str, Any]:
    """The pretrained_cfg that timm has for an architecture, for weights without one: mean, std and crop_pct."""
    return next(cfg for start, cfg in _USUAL if re.match(start, architecture))


def from_timm(pretrained_cfg: dict[str, Any], *, patch_size: int | None = None, max_patches: int = 576) -> Preprocess:
    """Reads the `pretrained_cfg` of a timm model's config.json, as timm's `create_transform` does for evaluation.

    Args:
        patch_size: pixels; passed for a NaFlex model (`naflexvit_*`), whose images keep their aspect ratio.
        max_patches: most patches of an image, for a NaFlex model; timm's default.

    Raises:
        ValueError: a key whose value timm or `Preprocess` does not know.
    """
    values = _DEFAULTS | {key: value for key, value in pretrained_cfg.items() if value}
    match values["input_size"]:
        case [3, int(height), int(width)]:
            size = height, width
        case other:
            raise ValueError(
                f"input_size in the timm config is {other!r}: expected [3, height, width]; only RGB is supported"
            )
    crop_pct, crop_mode = values["crop_pct"], values["crop_mode"]
    if not isinstance(crop_pct, int | float) or crop_pct <= 0:
        raise ValueError(f"crop_pct in the timm config is {crop_pct!r}: expected a positive number; 1.0 crops nothing")
    height, width = (math.floor(edge / crop_pct) for edge in size)
    fill = (0, 0, 0)
    crop: tuple[int, int] | None = size
    resize: ResizeMode
    if patch_size is not None:
        resize, crop = "max_patches", None
    elif crop_mode == "squash":
        resize, crop = "squash", None if (height, width) == size else size
    elif crop_mode == "border":
        red, green, blue = (round(255 * value) for value in values["mean"])
        resize, fill = "fit", (red, green, blue)
    elif crop_mode == "center":
        resize = "shortest_edge" if height == width else "cover"
    else:
        raise ValueError(f"crop_mode in the timm config is {crop_mode!r}: expected 'center', 'squash' or 'border'")
    return Preprocess(
        resize=resize,
        resize_to=(height, width) if patch_size is None else (0, 0),
        resample=values["interpolation"],
        crop=crop,
        rescale=1 / 255,
        mean=values["mean"],
        std=values["std"],
        patch_size=patch_size or 0,
        max_patches=0 if patch_size is None else max_patches,
        fill=fill,
        crop_rounding="half_even" if crop else "floor",
    )


def to_timm(spec: Preprocess) -> dict[str, Any]:
    """The keys of a `pretrained_cfg` by which timm evaluates with the same pixels; `from_timm` reads `spec` back.

    timm takes the numbers of max_patches as arguments, not from here: pass both to `from_timm` again.

    Raises:
        ValueError: timm's transform for evaluation cannot do this.
    """
    modes = {"squash": "squash", "shortest_edge": "center", "cover": "center", "fit": "border", "max_patches": "center"}
    if spec.resize not in modes:
        raise _inexpressible(f"timm has no resize {spec.resize!r}")
    if spec.before:
        raise _inexpressible("timm has no resize or crop before the resize (before)")
    if spec.camera is not None:
        raise _inexpressible("timm has no JPEG round trip, Lanczos filter and crop before the resize (camera)")
    if spec.crop_place != "centre":
        raise _inexpressible(f"timm crops the center, this preprocessing {spec.crop_place}")
    if spec.kernel != "pillow":
        raise _inexpressible(f"timm resizes with Pillow, this preprocessing with kernel {spec.kernel!r}")
    if spec.rescale != 1 / 255:
        raise _inexpressible(f"timm rescales by 1/255, this preprocessing by {spec.rescale}")
    if spec.crop is None and spec.resize not in ("squash", "max_patches"):
        raise _inexpressible("timm crops to one size, this preprocessing has no crop")
    if spec.crop_rounding == "floor" and spec.crop:
        raise _inexpressible("timm rounds the place of a crop to even, this preprocessing down")

    naflex = spec.resize == "max_patches"
    budget = {"patch_size": spec.patch_size, "max_patches": spec.max_patches} if naflex else {}
    edge = spec.patch_size * math.isqrt(spec.max_patches)
    size = (edge, edge) if naflex else spec.crop or spec.resize_to
    config: dict[str, Any] = {
        "input_size": [3, *size],
        "interpolation": spec.resample,
        "crop_pct": 1.0,
        "crop_mode": modes[spec.resize],
        "mean": list(spec.mean),
        "std": list(spec.std),
    }
    sides = [(of, to) for of, to in zip(size, spec.resize_to, strict=True) if to] or [(1, 1)]
    most, more_than = min(of / to for of, to in sides), max(of / (to + 1) for of, to in sides)
    for crop_pct in (most, (most + more_than) / 2):  # `most` may be rounded to where timm resizes to one pixel less
        config["crop_pct"] = crop_pct
        if from_timm(config, **budget) == spec:
            return config
    raise _inexpressible(
        "timm resizes both sides by one ratio to the crop, and fills with the mean; this resizes to "
        f"{spec.resize_to}, crops to {spec.crop} and fills with {spec.fill}"
    )


def _inexpressible(reason: str) -> ValueError:
    return ValueError(
        f"this preprocessing cannot be written as a timm pretrained_cfg: {reason}; keep it by Preprocess.to_dict"
    )
