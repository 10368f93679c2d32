"""`preprocess_cfg` of an `open_clip_config.json`: the transform that open_clip evaluates a model with."""

from typing import Any

from vlm_vision.preprocess.spec import OPENAI, Preprocess, ResampleFilter, ResizeMode

_FILTERS: dict[str, ResampleFilter] = {"bilinear": "bilinear", "bicubic": "bicubic", "random": "bicubic"}
"""The filter in evaluation for each `interpolation`."""


def from_open_clip(preprocess_cfg: dict[str, Any], image_size: int | tuple[int, int]) -> Preprocess:
    """Reads `preprocess_cfg` as open_clip's `image_transform` does for evaluation; missing keys take its defaults.

    Args:
        image_size: of the tower in pixels, (height, width) or the edge: `vision_cfg.image_size`.

    Raises:
        ValueError: a key whose value open_clip does not know.
    """
    mode = preprocess_cfg.get("resize_mode") or "shortest"
    interpolation = preprocess_cfg.get("interpolation") or "bicubic"
    for key, value, allowed in (
        ("resize_mode", mode, ("shortest", "longest", "squash")),
        ("interpolation", interpolation, tuple(_FILTERS)),
        ("mode", preprocess_cfg.get("mode", "RGB"), ("RGB",)),
    ):
        if value not in allowed:
            raise ValueError(f"{key} in the preprocess_cfg is {value!r}: expected {' or '.join(allowed)}")
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    size = (height, width)
    resize: ResizeMode
    if mode == "shortest":
        # off the square open_clip does not pass its filter on, and takes bicubic
        resize, resample = ("shortest_edge", _FILTERS[interpolation]) if height == width else ("cover", "bicubic")
    else:
        resize, resample = ("fit" if mode == "longest" else "squash"), _FILTERS[interpolation]
    return Preprocess(
        resize=resize,
        resize_to=size,
        resample=resample,
        crop=None if mode == "squash" else size,
        rescale=1 / 255,
        mean=_rgb(preprocess_cfg.get("mean") or OPENAI[0]),
        std=_rgb(preprocess_cfg.get("std") or OPENAI[1]),
        fill=_rgb(preprocess_cfg.get("fill_color") or 0) if mode == "longest" else (0, 0, 0),
        crop_rounding="floor" if mode == "squash" else "half_even",
    )


def _rgb(value: Any) -> tuple[Any, Any, Any]:
    """One number for every channel, or three."""
    red, green, blue = [value] * 3 if isinstance(value, int | float) else value
    return red, green, blue
