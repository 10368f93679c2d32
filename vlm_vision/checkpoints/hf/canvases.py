"""Image processors whose images lie on a canvas, or whose size follows a rule of that class alone."""

from collections.abc import Callable
from typing import Any

Json = dict[str, Any]


def _side(name: str, size: Any) -> int:
    """Pixels along the side of a square, as classes write it."""
    match size:
        case int():
            return size
        case {"height": int(height), "width": int(width)} | [int(height), int(width)] if height == width:
            return height
        case {"shortest_edge": int(edge)}:
            return edge
    raise ValueError(f"{name} is {size!r} in the preprocessor config: expected a square")


def _centred(values: Json) -> Json:
    """Of Janus and DeepSeek-VL: in the middle of a square of the mean color."""
    side = _side("size", values["size"])
    own: Json = {"resize": "edges_rounded", "resize_to": (values["min_size"], side)}
    if not values["do_pad"]:
        return own
    color = tuple(int(mean * 255) for mean in values["image_mean"])
    return own | {"crop": (side, side), "fill": color, "crop_rounding": "half_even"}


def _aria(values: Json) -> Json:
    side = values["max_image_size"]
    own = {"resize": "edges_floored", "resize_to": (values["min_image_size"], side)}
    return own | {"crop": (side, side), "crop_place": "top_left"}


def _phi4(values: Json) -> Json:
    """One crop of Phi-4 multimodal: at the top left of a white square."""
    side = _side("size", values["size"])
    own = {"resize": "edges_floored", "resize_to": (1, side), "crop": (side, side), "crop_place": "top_left"}
    return own | {"fill": (255, 255, 255), "resample": "bilinear"}


def _bridgetower(values: Json) -> Json:
    edge = _side("size", values["size"])
    own: Json = {"resize": "edges_divided", "resize_to": (edge, int(1333 / 800 * edge))}
    own |= {"patch_size": values["size_divisor"]}
    if values["do_center_crop"]:
        own["crop"] = (_side("crop_size", values["crop_size"]),) * 2
    return own


def _owlv2(values: Json) -> Json:
    side = _side("size", values["size"])
    if not values["do_pad"]:
        return {"resize": "squash", "resize_to": (side, side), "resample": "bilinear"}
    return {"resize": "square", "resize_to": (side, side), "resample": "bilinear"}


def _lfm2(values: Json) -> Json:
    """The whole image, where the class may cut it into tiles."""
    square = values["encoder_patch_size"] * values["downsample_factor"]
    bounds = values["min_image_tokens"] * square**2, values["max_image_tokens"] * square**2
    return {"resize": "area", "resize_to": bounds, "patch_size": square}


def _kimi(values: Json) -> Json:
    match values["size"]:
        case {"max_height": int(side), "max_width": int(width)} if side == width:
            patch = values["patch_size"]
        case size:
            raise ValueError(
                f"size is {size!r} in the preprocessor config: expected equal max_height and max_width, in patches"
            )
    own = {"resize": "shrunk_patches", "resize_to": (side * patch,) * 2, "patch_size": patch}
    return own | {"max_patches": values["max_patches"], "multiple": patch * values["merge_size"]}


def _muse(values: Json) -> Json:
    own = {"resize": "shaped_patches", "resize_to": (0, 0), "max_patches": values["max_image_tokens"]}
    return own | {"patch_size": values["patch_size"] * values["merge_size"]}


def _nemotron_omni(values: Json) -> Json:
    """One image of a call: with several, each has at least min_num_patches."""
    merge, least = round(1 / values["downsample_ratio"]), values["min_num_patches"]
    most = max((values["max_model_len"] - 4) * merge**2, least)
    most = max(min(most, values["max_num_patches"] or most), least)
    own: Json = {"resize": "bounded_patches", "resize_to": (least, most), "patch_size": values["patch_size"]}
    statistics = {
        ours: values[theirs] for theirs, ours in (("norm_mean", "mean"), ("norm_std", "std")) if theirs in values
    }
    return own | {"multiple": values["patch_size"] * merge} | statistics


def _inkling2(values: Json) -> Json:
    """The image as it is, filled up to whole tokens with one below black."""
    return {"resize": "none", "resize_to": (0, 0), "multiple": _side("size", values["size"]), "fill": (-1, -1, -1)}


READERS: dict[str, Callable[[Json], Json]] = {
    "JanusImageProcessor": _centred,
    "DeepseekVLImageProcessor": _centred,
    "DeepseekVLHybridImageProcessor": _centred,
    "AriaImageProcessor": _aria,
    "Phi4MultimodalImageProcessor": _phi4,
    "BridgeTowerImageProcessor": _bridgetower,
    "Owlv2ImageProcessor": _owlv2,
    "Lfm2VlImageProcessor": _lfm2,
    "Kimi_K25ImageProcessor": _kimi,
    "MuseGlimmerImageProcessor": _muse,
    "NemotronH_Omni_Reasoning_V3ImageProcessor": _nemotron_omni,
    "Inkling2ImageProcessor": _inkling2,
}
"""Class -> fields of `Preprocess` from its values."""

SIZE_KEYS: dict[str, set[str]] = {
    "AriaImageProcessor": {"max_image_size", "min_image_size"},
    "Lfm2VlImageProcessor": {"encoder_patch_size", "downsample_factor", "min_image_tokens", "max_image_tokens"},
    "Kimi_K25ImageProcessor": {"size", "max_patches", "patch_size", "merge_size"},
    "MuseGlimmerImageProcessor": {"max_image_tokens", "patch_size", "merge_size"},
    "NemotronH_Omni_Reasoning_V3ImageProcessor": {
        "patch_size",
        "downsample_ratio",
        "min_num_patches",
        "max_num_patches",
        "max_model_len",
    },
}
"""Where a class takes the size from, if not from `size`."""

_TILES = {"crop_to_patches", "min_patches", "max_patches"}

IGNORED: dict[str, set[str]] = {
    "JanusImageProcessor": {"min_size", "do_pad", "background_color"},
    "DeepseekVLImageProcessor": {"min_size", "do_pad", "background_color"},
    "DeepseekVLHybridImageProcessor": {
        "min_size", "do_pad", "background_color", "high_res_background_color", "high_res_image_mean", "high_res_image_std",
        "high_res_size", "high_res_resample",
    },
    "AriaImageProcessor": {"split_image", "split_resolutions", "size"},
    "Phi4MultimodalImageProcessor": {"patch_size", "dynamic_hd"},
    "BridgeTowerImageProcessor": {"do_pad", "size_divisor"},
    "Owlv2ImageProcessor": {"do_pad"},
    "MuseGlimmerImageProcessor": {"size", "temporal_patch_size"},
    "NemotronH_Omni_Reasoning_V3ImageProcessor": {"norm_mean", "norm_std", "size", "_downsample_factor"},
    "Lfm2VlImageProcessor": {
        "size", "do_image_splitting", "min_tiles", "max_tiles", "use_thumbnail", "tile_size", "max_pixels_tolerance",
        "do_pad", "return_row_col_info", "max_num_patches",
    },
    "Gemma3ImageProcessor": {
        "do_pan_and_scan", "pan_and_scan_min_crop_size", "pan_and_scan_max_num_crops", "pan_and_scan_min_ratio_to_activate",
    },
    "LlavaOnevisionImageProcessor": {"image_grid_pinpoints", "do_pad", "aspect_ratio_setting"},
    "Cohere2VisionImageProcessor": _TILES | {"patch_size"},
    "GraniteDoclingImageProcessor": _TILES
    | {"fine_route", "dense_max_patches", "dense_max_scale", "dense_min_aspect", "dense_max_aspect"},
    "UltraVBertImageProcessor": {"max_image_tiles"},
    "Molmo2ImageProcessor": {"max_crops", "overlap_margins", "patch_size", "pooling_size", "max_frames"},
    "OwlViTImageProcessor": {"rescale"},
}  # fmt: skip
"""Keys about several canvases for one image, or that the readers above take."""

FORCED: dict[str, Json] = {
    "HunYuanVLImageProcessor": {"resample": 3},
    "HYV4VLImageProcessor": {"resample": 3},
}
"""What a class does whatever the file says."""
