"""`preprocessor_config.json` of transformers, both ways."""

from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from vlm_vision.checkpoints.families.all import ALL
from vlm_vision.checkpoints.hf import areas, canvases
from vlm_vision.preprocess.resize import crop_offset
from vlm_vision.preprocess.spec import AREAS, COUNTED, Kernel, Preprocess, ResizeMode

_STEPS: dict[str, set[str]] = {
    "do_resize": {"resample"},
    "do_center_crop": {"crop_size"},
    "do_rescale": {"rescale_factor"},
    "do_normalize": {"image_mean", "image_std"},
}
"""Switch of each step, and the keys that the step needs; resizing also needs those of `_SIZE_KEYS`."""

_NAFLEX, _FLOAT, _PADDED = "Siglip2ImageProcessor", "DINOv3ViTImageProcessor", "PI0ImageProcessor"
_TILED = ("Idefics3ImageProcessor", "SmolVLMImageProcessor", "UltraVBertImageProcessor")
_BETWEEN, _ANYRES = "Idefics2ImageProcessor", "LlavaNextImageProcessor"
_SQUARE = "IdeficsImageProcessor"
"""The class that states a side, image_size, above `size`."""
_GEMMA, _SAM, _PIXTRAL = "Gemma4ImageProcessor", "SamImageProcessor", "PixtralImageProcessor"
_MINICPM = ("MiniCPMV4_6ImageProcessor", "MiniCPMOcrImageProcessor")
_OWN_DEVIATION = ("Pix2StructImageProcessor", "Kosmos2_5ImageProcessor")
_SIZE_KEYS = {
    _NAFLEX: {"patch_size", "max_num_patches"},
    _GEMMA: {"patch_size", "max_soft_tokens", "pooling_kernel_size"},
    **dict.fromkeys(_MINICPM, {"patch_size", "scale_resolution", "downsample_mode"}),
    **dict.fromkeys(_OWN_DEVIATION, {"patch_size", "max_patches"}),
    **dict.fromkeys(_TILED, {"max_image_size"}),
    **areas.SIZE_KEYS,
    _PIXTRAL: {"patch_size", "size"},
    **canvases.SIZE_KEYS,
}
"""Where the class takes the size from, if not from `size`."""

PLAIN = dict.fromkeys(_STEPS, True) | {"do_center_crop": False, "rescale_factor": 1 / 255, "default_to_square": True}
"""Defaults of nearly every class of transformers for a missing key."""

_DEFAULTS: dict[str, dict[str, Any]] = {
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
    _ANYRES: {"image_grid_pinpoints", "do_pad", "aspect_ratio_setting"},
    _BETWEEN: {"do_image_splitting", "do_pad"},
    _SQUARE: {"image_num_channels"},
    **dict.fromkeys(_MINICPM, {"max_slice_nums", "slice_mode", "use_image_id", "small_image_upsize"}),
    _SAM: {"do_pad", "mask_size", "mask_pad_size"},
    **dict.fromkeys(_OWN_DEVIATION, {"is_vqa"}),
    _PIXTRAL: {"do_pad"},
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
    _GEMMA: lambda values: {
        "patch_size": values["patch_size"] * values["pooling_kernel_size"],
        "max_num_patches": values["max_soft_tokens"],
    },
    **dict.fromkeys(_MINICPM, lambda values: {"patch_size": values["patch_size"] * _merged(values["downsample_mode"])}),
    **dict.fromkeys(_OWN_DEVIATION, _own_deviation),
    _PIXTRAL: _square_patch,
}
"""Class -> values of other keys, for one whose images are whole squares of patches."""

_FILTERS: dict[int, Any] = {filter.value: filter.name.lower() for filter in Image.Resampling}


def from_hf(config: dict[str, Any]) -> Preprocess:
    """Reads the content of a `preprocessor_config.json`, old or new.

    A missing key, or null, takes the default of the processor class that the file names. The pixels are those of the
    class's PIL backend; of the torchvision backend where there is no other (DINOv3).

    Idefics3 and SmolVLM cut an image into tiles of `max_image_size` and add the whole as one more. The preprocessing
    of one tile is read: the image, squashed to that size in one step where transformers takes two or more. Idefics2 may
    add four parts of an image to the whole: the whole is read.

    Raises:
        ValueError: a key that `Preprocess` does not support, or that is missing and whose class is unknown here.
    """
    name = config.get("image_processor_type") or config.get("feature_extractor_type") or "unnamed"
    name = name.replace("FeatureExtractor", "ImageProcessor").removesuffix("Fast").removesuffix("Pil")
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

    values = _DEFAULTS.get(name, {}) | given
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
    kernel: Kernel = _DEFAULTS.get(name, {}).get("kernel", "pillow") if resize != "none" else "pillow"
    if name in _SQUARES:
        values |= _SQUARES[name](values)
    if name in (_PADDED, _SAM):
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
        standardize=name in _OWN_DEVIATION and values["do_standardize"],
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


def to_hf(
    spec: Preprocess, *, image_processor_type: str | None = None, patch_size: int = 0, temporal_patch: int = 2
) -> dict[str, Any]:
    """The content of a `preprocessor_config.json` that transformers follows to the same pixels.

    `from_hf` reads `spec` back, except for a `crop_rounding` without effect.

    Args:
        image_processor_type: the class to name. Default Siglip2ImageProcessor for max_patches, Qwen2VLImageProcessor for
            area, Idefics2ImageProcessor for between, DINOv3ViTImageProcessor for kernel "float"; Gemma 4's, MiniCPM-V 4.6's,
            Pix2Struct's and SAM's for the resizes that they alone have; else CLIPImageProcessor. Every key is written, so that any class with a PIL backend does the same as CLIP's.
        patch_size: pixels along a patch's side, where `spec` has those of a square of patches that are merged; 0 for those
            of `spec`: then no patches are merged.
        temporal_patch: frames that a patch spans, for the classes that state them.

    Raises:
        ValueError: transformers has no class for this, the named class cannot do it, or `from_hf` does not know it.
    """
    if reason := _inexpressible(spec):
        raise ValueError(
            f"this preprocessing cannot be written as a preprocessor_config.json: {reason}; keep it by Preprocess.to_dict"
        )
    if spec.multiple and spec.resize == "none" and image_processor_type is None:
        return _plainly("Inkling2ImageProcessor", spec, size={"height": spec.multiple, "width": spec.multiple})
    if spec.resize in _WRITTEN and image_processor_type is None:
        return _WRITTEN[spec.resize](spec, patch_size or spec.patch_size)
    if spec.resize in areas.RESIZES and image_processor_type in (None, *areas.AREAS):
        name, keys = areas.written(spec, image_processor_type, patch_size or spec.patch_size, temporal_patch)
        return _plainly(name, spec, **keys)
    alone = {"max_patches": _NAFLEX, "between": _BETWEEN}
    only = alone.get(spec.resize, _FLOAT if spec.kernel == "float" else None)
    name = image_processor_type or only or "CLIPImageProcessor"
    plain = [known for known, given in _DEFAULTS.items() if "kernel" not in given and "size" in given]
    able = [only] if only else [known for known in plain if known not in (_BETWEEN, _ANYRES, *areas.AREAS)]
    if name not in able:
        raise ValueError(f"image_processor_type is {name!r}: expected one of {', '.join(able)} for this preprocessing")
    config: dict[str, Any] = {
        "image_processor_type": name,
        "do_convert_rgb": True,
        "do_resize": spec.resize != "none",
        "resample": int(Image.Resampling[spec.resample.upper()]),
        "do_center_crop": spec.crop is not None,
        "do_rescale": True,
        "rescale_factor": spec.rescale,
        "do_normalize": True,
        "image_mean": list(spec.mean),
        "image_std": list(spec.std),
    }
    height, width = spec.resize_to
    if spec.resize == "max_patches":
        del config["do_center_crop"]  # the class has no such step
        config |= {"patch_size": spec.patch_size, "max_num_patches": spec.max_patches}
    elif spec.resize == "between":
        del config["do_center_crop"]
        config["size"] = {"shortest_edge": height, "longest_edge": width}
        config |= {"do_image_splitting": False, "do_pad": True}
    elif spec.resize != "none":
        square = {"height": height, "width": width}
        config["size"] = {"shortest_edge": height} if spec.resize == "shortest_edge" else square
    if spec.crop is not None:
        config["crop_size"] = {"height": spec.crop[0], "width": spec.crop[1]}
    return config


def _plainly(name: str, spec: Preprocess, **keys: Any) -> dict[str, Any]:
    """Of a class without a crop."""
    return {
        "image_processor_type": name,
        "do_convert_rgb": True,
        "do_resize": True,
        "resample": int(Image.Resampling[spec.resample.upper()]),
        "do_rescale": True,
        "rescale_factor": spec.rescale,
        "do_normalize": True,
        "image_mean": list(spec.mean),
        "image_std": list(spec.std),
    } | keys


def _sam_back(spec: Preprocess, patch: int) -> dict[str, Any]:
    padded = {"height": spec.crop[0], "width": spec.crop[1]} if spec.crop else None
    return _plainly(_SAM, spec, size={"longest_edge": spec.resize_to[0]}, do_pad=padded is not None, pad_size=padded)


_WRITTEN: dict[str, Callable[[Preprocess, int], dict[str, Any]]] = {
    "fill_patches": lambda spec, patch: _plainly(
        _GEMMA,
        spec,
        patch_size=patch,
        pooling_kernel_size=spec.patch_size // patch,
        max_soft_tokens=spec.max_patches,
    ),
    "near_area": lambda spec, patch: _plainly(
        _MINICPM[0],
        spec,
        patch_size=spec.patch_size // (2 if spec.patch_size == 2 * patch else 4),
        downsample_mode="4x" if spec.patch_size == 2 * patch else "16x",
        scale_resolution=spec.resize_to[0],
        slice_mode=False,
    ),
    "whole_patches": lambda spec, patch: {
        "image_processor_type": _OWN_DEVIATION[0],
        "do_convert_rgb": True,
        "do_normalize": spec.standardize,
        "patch_size": {"height": spec.patch_size, "width": spec.patch_size},
        "max_patches": spec.max_patches,
        "is_vqa": False,
    },
    "longest_edge": _sam_back,
    "shaped_patches": lambda spec, patch: _plainly(
        "MuseGlimmerImageProcessor",
        spec,
        max_image_tokens=spec.max_patches,
        patch_size=patch,
        merge_size=spec.patch_size // patch,
    ),
    "shrunk_patches": lambda spec, patch: _plainly(
        "Kimi_K25ImageProcessor",
        spec,
        size=dict.fromkeys(("max_height", "max_width"), spec.resize_to[0] // spec.patch_size),
        max_patches=spec.max_patches,
        patch_size=spec.patch_size,
        merge_size=spec.multiple // spec.patch_size,
    ),
    "bounded_patches": lambda spec, patch: _plainly(
        "NemotronH_Omni_Reasoning_V3ImageProcessor",
        spec,
        patch_size=spec.patch_size,
        downsample_ratio=spec.patch_size / spec.multiple,
        min_num_patches=spec.resize_to[0],
        max_num_patches=spec.resize_to[1],
        max_model_len=spec.resize_to[1] + 4,
    ),
    "within_patches": lambda spec, patch: _plainly(
        _PIXTRAL,
        spec,
        size={"longest_edge": spec.resize_to[0]}
        if spec.resize_to[0] == spec.resize_to[1]
        else {"height": spec.resize_to[0], "width": spec.resize_to[1]},
        patch_size={"height": spec.patch_size, "width": spec.patch_size},
    ),
}
"""Resize that one class of transformers has -> its file, for a patch of so many pixels."""


def _inexpressible(spec: Preprocess) -> str | None:
    """Why no image processor of transformers does this."""
    if spec.resize == "longest_edge" and spec.camera is None and not spec.before and spec.kernel == "pillow":
        around = tuple(mean / spec.rescale for mean in spec.mean)
        if spec.crop is None or (spec.crop_place == "top_left" and np.allclose(spec.fill, around)):
            return None
        return "SAM's class adds zeros at the right and below, after the normalization"
    if spec.resize == "whole_patches" and spec.camera is None and not spec.before:
        plain = (spec.rescale, spec.mean, spec.std) == (1.0, (0.0,) * 3, (1.0,) * 3)
        return None if plain and spec.resample == "bilinear" else "Pix2Struct's class has neither mean nor rescale"
    if spec.before:
        return "transformers has no resize or crop before the resize (before)"
    if spec.camera is not None:
        return "transformers has no JPEG round trip, Lanczos filter and crop before the resize (camera)"
    if spec.multiple or spec.resize == "shaped_patches":
        kernels = {"shaped_patches": "pillow", "shrunk_patches": "torch", "bounded_patches": "float", "none": "pillow"}
        fill = (-1, -1, -1) if spec.resize == "none" else (0, 0, 0)
        alike = kernels.get(spec.resize) == spec.kernel and spec.fill == fill
        return (
            None if alike and not spec.standardize else "transformers' class for this resize has another kernel or fill"
        )
    if spec.resize == "between" and spec.crop is not None:
        return "transformers has no crop after this resize (between)"
    if spec.resize in ("letterbox", "cover", "fit", "within", "scaled_within", "square") or spec.resize.startswith(
        "edges_"
    ):
        return f"transformers has no resize {spec.resize!r}"
    if spec.kernel in ("point", "point_float", "point_rounded"):
        return f"transformers has no kernel {spec.kernel!r}, its resizes are antialiased"
    if spec.kernel == "gaussian":
        return "transformers' classes with a PIL backend resize with Pillow, this with a Gauss filter before"
    if spec.kernel in ("torch", "torchvision"):
        return "transformers' classes with a PIL backend resize with Pillow, this preprocessing with torch"
    if spec.crop_place != "centre":
        return f"transformers crops the center, this {spec.crop_place}"
    if spec.kernel == "float" and spec.resize in (*COUNTED, *AREAS, "within_patches", "between"):
        return f"transformers rounds to 8 bits where it resizes to {spec.resize}"
    if spec.fill != (0, 0, 0):
        return f"transformers fills a crop with black, this preprocessing with {spec.fill}"
    if spec.crop and spec.crop_rounding == "half_even" and not _cut_alike(spec):
        return "transformers rounds the place of a crop down, this preprocessing to even"
    return None


def _cut_alike(spec: Preprocess) -> bool:
    """Whether every image is cut at the same place under both crop roundings."""
    places = zip(spec.resize_to, spec.crop or (), strict=True)
    return spec.resize == "squash" and all(
        crop_offset(size, crop, "floor") == crop_offset(size, crop, "half_even") for size, crop in places
    )


def _resize(name: str, values: dict[str, Any]) -> tuple[ResizeMode, tuple[int, int]]:
    if name == _PIXTRAL:
        match values["size"]:
            case {"longest_edge": int(edge)}:
                return "within_patches", (edge, edge)
        return "within_patches", _height_width("size", values["size"])
    if name == _NAFLEX:
        return "max_patches", (0, 0)
    if name in areas.AREAS:
        return areas.AREAS[name].resize, areas.bounds(name, values)
    if name in _SQUARES:
        if name in _MINICPM and values.get("small_image_upsize", "always") != "always":
            raise _unsupported("small_image_upsize", values["small_image_upsize"])
        if name in _MINICPM:
            return "near_area", (values["scale_resolution"],) * 2
        return "fill_patches" if name == _GEMMA else "whole_patches", (0, 0)
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
    if isinstance(size, dict) and size.keys() == {"shortest_edge", "longest_edge"} and name == _BETWEEN:
        return "between", (size["shortest_edge"], size["longest_edge"])
    if isinstance(size, dict) and size.keys() == {"longest_edge"} and name == _SAM:
        return "longest_edge", (size["longest_edge"], size["longest_edge"])
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
