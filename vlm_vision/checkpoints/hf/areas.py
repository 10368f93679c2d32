"""Image processors of Qwen's kind: each side is whole squares of patches, the area is within bounds."""

from dataclasses import dataclass
from typing import Any

from vlm_vision.preprocess.spec import Preprocess, ResizeMode

Json = dict[str, Any]


@dataclass(frozen=True)
class Area:
    """What sets a class apart."""

    resize: ResizeMode = "area"
    pixels: bool = True
    """min_pixels and max_pixels count above `size`."""
    frames: bool = False
    """The bounds are of the pixels of all frames that one patch spans."""
    tokens: bool = False
    """The bounds are numbers of squares, min_image_tokens and max_image_tokens, and no `size`."""


AREAS: dict[str, Area] = {
    "Qwen2VLImageProcessor": Area(),
    "CohereCompassImageProcessor": Area(),
    "VideoLlama3ImageProcessor": Area(),
    "MiniMaxM3VLImageProcessor": Area(),
    "Ernie4_5_VLMoeImageProcessor": Area(pixels=False),
    "Ernie4_5_VL_MoeImageProcessor": Area(pixels=False),
    "HunYuanVLImageProcessor": Area(),
    "HYV4VLImageProcessor": Area(),
    "GlmImageImageProcessor": Area(resize="half_area"),
    "PaddleOCRVLImageProcessor": Area(resize="rounded_area"),
    "Glm4vImageProcessor": Area(resize="floored_area", pixels=False, frames=True),
    "Glm46VImageProcessor": Area(resize="floored_area", pixels=False, frames=True),
    "Cosmos3EdgeImageProcessor": Area(resize="floored_area", pixels=False, frames=True),
    "GlmgaImageProcessor": Area(resize="floored_area", pixels=False, frames=True),
    "Glm5NextImageProcessor": Area(resize="padded_area", pixels=False, tokens=True),
}
"""By the name of the class."""

RESIZES = {area.resize for area in AREAS.values()}
"""What they do."""

_MINIMAX_M3 = {"shortest_edge": 4 * 28 * 28, "longest_edge": 451584}
"""What transformers puts in the place of the size in MiniMax M3's public file."""

_TOKENS = ("min_image_tokens", "max_image_tokens")

SIZE_KEYS = {name: set(_TOKENS) if area.tokens else {"size"} for name, area in AREAS.items()}
"""Where a class takes the size from."""

IGNORED = {
    name: {"temporal_patch_size", "merge_size", "min_pixels", "max_pixels", "patch_size", "patch_expand_factor"}
    | ({"size"} if area.tokens else set(_TOKENS))
    for name, area in AREAS.items()
}
"""Keys that the steps of other classes have not."""


def square(values: Json) -> Json:
    """Pixels along the side of a square, as patch_size."""
    return {"patch_size": values["patch_size"] * values["merge_size"]}


def bounds(name: str, values: Json) -> tuple[int, int]:
    """The least and the most pixels of an image.

    Raises:
        ValueError: a `size` without bounds, or bounds of several frames that are no multiple of their number.
    """
    area = AREAS[name]
    if area.tokens:
        side = values["patch_size"] * values["merge_size"]
        return values[_TOKENS[0]] * side**2, values[_TOKENS[1]] * side**2
    stated = values["size"]
    size = _MINIMAX_M3 if stated == [672, 672] and name == "MiniMaxM3VLImageProcessor" else stated
    if not isinstance(size, dict) or not {"shortest_edge", "longest_edge"} <= size.keys():
        raise ValueError(
            f"size is {size!r} in the preprocessor config: expected shortest_edge and longest_edge, the least and the most pixels"
        )
    if area.pixels:
        given = {"shortest_edge": values.get("min_pixels"), "longest_edge": values.get("max_pixels")}
        size = size | {edge: pixels for edge, pixels in given.items() if pixels is not None}
    frames = values["temporal_patch_size"] if area.frames else 1
    least, most = size["shortest_edge"], size["longest_edge"]
    if least % frames or most % frames:
        raise ValueError(
            f"size is {least} to {most} pixels of {frames} frames: expected multiples of temporal_patch_size {frames}"
        )
    return least // frames, most // frames


def written(spec: Preprocess, name: str | None, patch: int, frames: int) -> tuple[str, Json]:
    """Name of the class, and the keys about sizes, for patches of `patch` pixels that span so many frames.

    Args:
        name: the class; the first one that does it for None, and for a class that does not.
    """
    able = [name for name, area in AREAS.items() if area.resize == spec.resize]
    name = name if name in able else able[0]
    least, most = spec.resize_to
    keys: Json = {"patch_size": patch, "merge_size": spec.patch_size // patch, "temporal_patch_size": frames}
    if AREAS[name].tokens:
        side = spec.patch_size**2
        return name, keys | {_TOKENS[0]: least // side, _TOKENS[1]: most // side}
    times = frames if AREAS[name].frames else 1
    return name, keys | {"size": {"shortest_edge": least * times, "longest_edge": most * times}}
