"""`preprocessor_config.json` of transformers as `Preprocess`."""

from collections.abc import Callable
from typing import Any

from PIL import Image

from vlm_vision.checkpoints.families.all import ALL
from vlm_vision.checkpoints.hf import areas, canvases
from vlm_vision.checkpoints.hf.backends import check_backend, with_torchvision
from vlm_vision.preprocess.spec import AREAS, COUNTED, Kernel, Preprocess, ResizeMode

_STEPS: dict[str, set[str]] = {
    "do_resize": {"resample"},
    "do_center_crop": {"crop_size"},
    "do_rescale": {"rescale_factor"},
    "do_normalize": {"image_mean", "image_std"},
}
"""Switch of each step, and the keys that the step needs; resizing also needs those of `_SIZE_KEYS`."""

NAFLEX, FLOAT, _PADDED = "Siglip2ImageProcessor", "DINOv3ViTImageProcessor", "PI0ImageProcessor"
_TILED = ("Idefics3ImageProcessor", "SmolVLMImageProcessor", "UltraVBertImageProcessor")
BETWEEN, ANYRES = "Idefics2ImageProcessor", "LlavaNextImageProcessor"
_SQUARE = "IdeficsImageProcessor"
"""The class that states a side, image_size, above `size`."""
GEMMA, SAM, PIXTRAL = "Gemma4ImageProcessor", "SamImageProcessor", "PixtralImageProcessor"
MINICPM = ("MiniCPMV4_6ImageProcessor", "MiniCPMOcrImageProcessor")
OWN_DEVIATION = ("Pix2StructImageProcessor", "Kosmos2_5ImageProcessor")
_SIZE_KEYS = {
    NAFLEX: {"patch_size", "max_num_patches"},
    GEMMA: {"patch_size", "max_soft_tokens", "pooling_kernel_size"},
    **dict.fromkeys(MINICPM, {"patch_size", "scale_resolution", "downsample_mode"}),
    **dict.fromkeys(OWN_DEVIATION, {"patch_size", "max_patches"}),
    **dict.fromkeys(_TILED, {"max_image_size"}),
    **areas.SIZE_KEYS,
    PIXTRAL: {"patch_size", "size"},
    **canvases.SIZE_KEYS,
}
"""Where the class takes the size from, if not from `size`."""

PLAIN = dict.fromkeys(_STEPS, True) | {"do_center_crop": False, "rescale_factor": 1 / 255, "default_to_square": True}
"""Defaults of nearly every class of transformers for a missing key."""

DEFAULTS: dict[str, dict[str, Any]] = {
    name: PLAIN | given for family in ALL for name, given in family.image_processors.items()
}
"""Defaults of transformers' class of that name for a missing key."""

_OWN_STEPS = {"ConvNext", "Levit", "Perceiver", "PoolFormer", "VideoMAE"}
"""Image processors in which the keys below have another meaning, so that the file alone is not enough."""

_WITHOUT_EFFECT = set(
    "image_processor_type feature_extractor_type processor_class auto_map _valid_processor_keys do_convert_rgb "
    "input_data_format return_tensors device disable_grouping image_seq_length pad_size".split()
)
_OF_TILES = {"size", "do_image_splitting", "do_pad", "return_row_col_info", "video_sampling"}
"""Keys by which a `_TILED` class cuts an image into several, which `Preprocess` does not."""

_IGNORED = dict.fromkeys(_TILED, _OF_TILES) | {
    _PADDED: {"do_pad"},
    ANYRES: {"image_grid_pinpoints", "do_pad", "aspect_ratio_setting"},
    BETWEEN: {"do_image_splitting", "do_pad"},
    _SQUARE: {"image_num_channels"},
    **dict.fromkeys(MINICPM, {"max_slice_nums", "slice_mode", "use_image_id", "small_image_upsize"}),
    "Sam3ImageProcessor": {"mask_size"},
    SAM: {"do_pad", "mask_size", "mask_pad_size"},
    **dict.fromkeys(OWN_DEVIATION, {"is_vqa"}),
    PIXTRAL: {"do_pad"},
    "Ovis2ImageProcessor": {"crop_to_patches", "min_patches", "max_patches", "use_covering_area_grid"},
    "GotOcr2ImageProcessor": {"crop_to_patches", "min_patches", "max_patches"},
    "Llama4ImageProcessor": {"max_patches", "resize_to_max_canvas"},
    "Step3p7ImageProcessor": {"patch_size", "max_image_size"},
    **areas.IGNORED,
    **{name: keys | (_OF_TILES if name in _TILED else set()) for name, keys in canvases.IGNORED.items()},
}
"""Keys about several canvases for one image, by class: the preprocessing of each canvas is read."""


def _own_deviation(values: dict[str, Any]) -> dict[str, Any]:
    """Of Pix2Struct: each image by its own mean and deviation. The question that is_vqa draws above the image is left out."""
    height, width = _height_width("patch_size", values["patch_size"])
    if height != width:
        raise _unsupported("patch_size", values["patch_size"])
    plain = {"do_rescale": False, "do_normalize": False, "do_standardize": values["do_normalize"]}
    return plain | {"patch_size": height, "max_num_patches": values["max_patches"]}


def _merged(mode: str) -> int:
    """Side, in patches, of the square that MiniCPM-V makes one token of."""
    return 2 if mode == "4x" else 4


def _square_patch(values: dict[str, Any]) -> dict[str, Any]:
    """Of Pixtral, whose patch_size is a side or both."""
    height, width = _height_width("patch_size", values["patch_size"])
    if height != width or values["do_center_crop"]:
        raise _unsupported("patch_size, do_center_crop", ((height, width), values["do_center_crop"]))
    return {"patch_size": height}


_SQUARES: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    **dict.fromkeys(areas.AREAS, areas.square),
    GEMMA: lambda values: {
        "patch_size": values["patch_size"] * values["pooling_kernel_size"],
        "max_num_patches": values["max_soft_tokens"],
    },
    **dict.fromkeys(MINICPM, lambda values: {"patch_size": values["patch_size"] * _merged(values["downsample_mode"])}),
    **dict.fromkeys(OWN_DEVIATION, _own_deviation),
    PIXTRAL: _square_patch,
}
"""Class -> values of other keys, for one whose images are whole squares of patches."""

_FILTERS: dict[int, Any] = {filter.value: filter.name.lower() for filter in Image.Resampling}


def from_hf(config: dict[str, Any], pixels: str = "pil") -> Preprocess:
    """Reads the content of a `preprocessor_config.json`, old or new.

    A missing key, or null, takes the default of the processor class that the file names.

    Args:
        pixels: backend of the class whose pixels are made, "pil" or "torchvision"; no matter where there is one alone (DINOv3).

    Idefics3 and SmolVLM cut an image into tiles of `max_image_size` and add the whole as one more. The preprocessing
    of one tile is read: the image, squashed to that size in one step where transformers takes two or more. Idefics2 may
    add four parts of an image to the whole: the whole is read.

    Raises:
        ValueError: a key that `Preprocess` does not support, or that is missing and whose class is unknown here; a filter
            that the backend lacks.
    """
    check_backend(pixels)
    name = config.get("image_processor_type") or config.get("feature_extractor_type") or "unnamed"
    name = name.replace("FeatureExtractor", "ImageProcessor").removesuffix("Fast").removesuffix("Pil")
    spec = _with_pillow(name, config)
    return with_torchvision(name, spec) if pixels == "torchvision" else spec


def _with_pillow(name: str, config: dict[str, Any]) -> Preprocess:
    if name.removesuffix("ImageProcessor") in _OWN_STEPS:
        raise _unsupported("image_processor_type", name)
    steps = _STEPS | {"do_resize": _STEPS["do_resize"] | _SIZE_KEYS.get(name, {"size"})}
    given = {key: value for key, value in config.items() if value is not None} | canvases.FORCED.get(name, {})
    if name == _SQUARE and isinstance(given.get("image_size"), int):
        given["size"] = [given.pop("image_size")] * 2
    read = {"default_to_square", *steps}.union(*steps.values())
    ignored = _WITHOUT_EFFECT | _IGNORED.get(name, set())
    for key in sorted(given.keys() - read - ignored):
        off = key.startswith("do_") and given[key] is False
        if not off and (key, given[key]) != ("data_format", "channels_first"):
            raise _unsupported(key, given[key])

    values = DEFAULTS.get(name, {}) | given
    if "crop_size" not in values:
        values.setdefault("do_center_crop", False)
    needed = set(steps).union(*(keys for step, keys in steps.items() if values.get(step)))
    if "size" in needed and isinstance(values.get("size"), int):
        needed.add("default_to_square")
    if missing := sorted(needed - values.keys()):
        raise ValueError(
            f"the preprocessor config lacks {missing}, for which image processor {name!r} has no default here: "
            "expected every key that is used; add the missing ones"
        )

    for key in ("image_mean", "image_std"):
        if isinstance(values.get(key), int | float):
            values[key] = [values[key]] * 3
    resample = values.get("resample", Image.Resampling.BILINEAR)
    if resample not in _FILTERS:
        raise _unsupported("resample", resample)
    own: dict[str, Any] = canvases.READERS[name](values) if name in canvases.READERS and values["do_resize"] else {}
    if own:
        resize, resize_to = own["resize"], own["resize_to"]
    else:
        resize, resize_to = _resize(name, values) if values["do_resize"] else ("none", (0, 0))
    kernel: Kernel = DEFAULTS.get(name, {}).get("kernel", "pillow") if resize != "none" else "pillow"
    if name in _SQUARES:
        values |= _SQUARES[name](values)
    if name in (_PADDED, SAM):
        return _padded(values, resize, resize_to, kernel)
    cropped = values["do_center_crop"] and not own
    fields: dict[str, Any] = dict(
        resize=resize,
        resize_to=resize_to,
        resample=_FILTERS[resample],
        crop=_height_width("crop_size", values["crop_size"]) if cropped else None,
        rescale=values["rescale_factor"] if values["do_rescale"] else 1.0,
        mean=values["image_mean"] if values["do_normalize"] else (0.0, 0.0, 0.0),
        std=values["image_std"] if values["do_normalize"] else (1.0, 1.0, 1.0),
        patch_size=values["patch_size"] if resize in (*COUNTED, *AREAS, "within_patches") and not own else 0,
        max_patches=values["max_num_patches"] if resize in COUNTED and not own else 0,
        kernel=kernel,
        standardize=name in OWN_DEVIATION and values["do_standardize"],
    )
    return Preprocess(**fields | own)


def _padded(values: dict[str, Any], resize: ResizeMode, resize_to: tuple[int, int], kernel: Kernel) -> Preprocess:
    """Of PI0ImageProcessor and SamImageProcessor: the image at the top left; zeros are added after the normalization, the mean in 0..255."""
    if values["do_center_crop"] or not (values["do_rescale"] and values["do_normalize"]):
        raise _unsupported("do_center_crop, do_rescale, do_normalize", "other than False, True, True")
    red, green, blue = (mean / values["rescale_factor"] for mean in values["image_mean"])
    return Preprocess(
        resize=resize,
        resize_to=resize_to,
        resample=_FILTERS[values["resample"]],
        crop=_height_width("pad_size", values["pad_size"]) if values["do_pad"] else None,
        rescale=values["rescale_factor"],
        mean=values["image_mean"],
        std=values["image_std"],
        fill=(red, green, blue) if values["do_pad"] else (0, 0, 0),
        kernel=kernel,
        crop_place="top_left" if values["do_pad"] else "centre",
    )


def _resize(name: str, values: dict[str, Any]) -> tuple[ResizeMode, tuple[int, int]]:
    if name == PIXTRAL:
        match values["size"]:
            case {"longest_edge": int(edge)}:
                return "within_patches", (edge, edge)
        return "within_patches", _height_width("size", values["size"])
    if name == NAFLEX:
        return "max_patches", (0, 0)
    if name in areas.AREAS:
        return areas.AREAS[name].resize, areas.bounds(name, values)
    if name in _SQUARES:
        if name in MINICPM and values.get("small_image_upsize", "always") != "always":
            raise _unsupported("small_image_upsize", values["small_image_upsize"])
        if name in MINICPM:
            return "near_area", (values["scale_resolution"],) * 2
        return "fill_patches" if name == GEMMA else "whole_patches", (0, 0)
    if name in _TILED:
        match values["max_image_size"]:
            case {"longest_edge": int(edge)}:
                return "squash", (edge, edge)
        raise _unsupported("max_image_size", values["max_image_size"])
    size = values["size"]
    if isinstance(size, int) and not values["default_to_square"]:
        size = {"shortest_edge": size}
    if isinstance(size, dict) and size.keys() == {"max_height", "max_width"} and name == _PADDED:
        return "scaled_within", (size["max_height"], size["max_width"])
    if isinstance(size, dict) and size.keys() == {"shortest_edge", "longest_edge"} and name == BETWEEN:
        return "between", (size["shortest_edge"], size["longest_edge"])
    if isinstance(size, dict) and size.keys() == {"longest_edge"} and name == SAM:
        return "longest_edge", (size["longest_edge"], size["longest_edge"])
    if isinstance(size, dict) and size.keys() == {"shortest_edge"} and name == ANYRES:
        return "squash", (size["shortest_edge"], size["shortest_edge"])
    if isinstance(size, dict) and size.keys() == {"shortest_edge"}:
        return "shortest_edge", (size["shortest_edge"], size["shortest_edge"])
    return "squash", _height_width("size", size)


def _height_width(key: str, size: Any) -> tuple[int, int]:
    match size:
        case int():
            return size, size
        case [height, width] | {"height": height, "width": width} if len(size) == 2:
            return height, width
    raise _unsupported(key, size)


def _unsupported(key: str, value: Any) -> ValueError:
    return ValueError(
        f"{key}={value!r} in the preprocessor config is not supported: expected resize, center crop, rescale and "
        "normalize only; construct a Preprocess yourself"
    )
