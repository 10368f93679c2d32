"""`Preprocess` as `preprocessor_config.json` of transformers."""

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import numpy as np
from PIL import Image

from vlm_vision.checkpoints.hf import areas
from vlm_vision.checkpoints.hf.preprocess import (
    BETWEEN,
    DEFAULTS,
    FLOAT,
    GEMMA,
    MINICPM,
    NAFLEX,
    OWN_DEVIATION,
    PIXTRAL,
    SAM,
    from_hf,
)
from vlm_vision.checkpoints.towers import MALFORMED_ERRORS
from vlm_vision.preprocess.resize import crop_offset
from vlm_vision.preprocess.spec import AREAS, COUNTED, Preprocess


def to_hf(
    spec: Preprocess, *, image_processor_type: str | None = None, patch_size: int = 0, temporal_patch: int = 2
) -> dict[str, Any]:
    """The content of a `preprocessor_config.json` that transformers follows to the same pixels.

    `from_hf` reads `spec` back, except for a `crop_rounding` without effect and the last digits of `fill`.

    Args:
        image_processor_type: the class to name. By default the one that has this resize or kernel alone, or the first of
            several (`_WRITTEN`, `areas.AREAS`); Siglip2ImageProcessor for max_patches, Idefics2ImageProcessor for between,
            DINOv3ViTImageProcessor for kernel "float"; else CLIPImageProcessor, with every key, so that any class with a
            PIL backend does the same.
        patch_size: pixels along a patch's side, where `spec` has those of a square of patches that are merged; 0 for those
            of `spec`: then no patches are merged.
        temporal_patch: frames that a patch spans, for the classes that state them.

    Raises:
        ValueError: transformers has no class for this, or `from_hf` would read the file of the named class as another
            preprocessing.
    """
    own = DEFAULTS.get(image_processor_type or "", {}).get("kernel")
    if reason := _inexpressible(spec, own):
        raise ValueError(
            f"this preprocessing cannot be written as a preprocessor_config.json: {reason}; keep it by Preprocess.to_dict"
        )
    config = _written(spec, image_processor_type, patch_size or spec.patch_size, temporal_patch)
    if _reads(config, spec):
        return config
    able = [
        name for name in DEFAULTS if _reads(_written(spec, name, patch_size or spec.patch_size, temporal_patch), spec)
    ]
    if image_processor_type is None or not able:
        raise ValueError(
            "this preprocessing cannot be written as a preprocessor_config.json: transformers' class for it, "
            f"{config['image_processor_type']}, has other sizes or statistics; keep it by Preprocess.to_dict"
        )
    raise ValueError(
        f"image_processor_type is {image_processor_type!r}: expected one of {', '.join(able)} for this preprocessing"
    )


def _reads(config: dict[str, Any], spec: Preprocess) -> bool:
    """Whether `from_hf` reads the file of a known class as `spec`."""
    if config["image_processor_type"] not in DEFAULTS:
        return False
    try:
        read = from_hf(config)
    except (ValueError, *MALFORMED_ERRORS):  # the form of another class
        return False
    same = {field.name for field in fields(Preprocess)} - {"crop_rounding", "fill"}
    return all(getattr(read, name) == getattr(spec, name) for name in same) and np.allclose(read.fill, spec.fill)


def _written(spec: Preprocess, name: str | None, patch: int, frames: int) -> dict[str, Any]:
    """The file of the class `name`, None for the usual one, in the form of the resize."""
    if spec.multiple and spec.resize == "none":
        config = _plainly("Inkling2ImageProcessor", spec, size={"height": spec.multiple, "width": spec.multiple})
    elif spec.resize in _WRITTEN:
        config = _WRITTEN[spec.resize](spec, patch)
    elif spec.resize in areas.RESIZES:
        usual, keys = areas.written(spec, name, patch, frames)
        config = _plainly(usual, spec, **keys)
    else:
        config = _of_sizes(spec)
    return config if name is None else config | {"image_processor_type": name}


def _of_sizes(spec: Preprocess) -> dict[str, Any]:
    """Of a class of CLIP's kind, in which each step has a switch, and of two more that state `size` in their own way."""
    alone = {"max_patches": NAFLEX, "between": BETWEEN}
    config = _plainly(alone.get(spec.resize, FLOAT if spec.kernel == "float" else "CLIPImageProcessor"), spec)
    config |= {"do_resize": spec.resize != "none"}
    height, width = spec.resize_to
    if spec.resize == "max_patches":
        return config | {"patch_size": spec.patch_size, "max_num_patches": spec.max_patches}
    if spec.resize == "between":
        size = {"shortest_edge": height, "longest_edge": width}
        return config | {"size": size, "do_image_splitting": False, "do_pad": True}
    config["do_center_crop"] = spec.crop is not None
    if spec.resize != "none":
        square = {"height": height, "width": width}
        config["size"] = {"shortest_edge": height} if spec.resize == "shortest_edge" else square
    if spec.crop is not None:
        config["crop_size"] = {"height": spec.crop[0], "width": spec.crop[1]}
    return config


def _plainly(class_name: str, spec: Preprocess, **more: Any) -> dict[str, Any]:
    """Of a class without a crop."""
    return {
        "image_processor_type": class_name,
        "do_convert_rgb": True,
        "do_resize": True,
        "resample": int(Image.Resampling[spec.resample.upper()]),
        "do_rescale": True,
        "rescale_factor": spec.rescale,
        "do_normalize": True,
        "image_mean": list(spec.mean),
        "image_std": list(spec.std),
    } | more


def _sam_back(spec: Preprocess, patch: int) -> dict[str, Any]:
    padded = {"height": spec.crop[0], "width": spec.crop[1]} if spec.crop else None
    return _plainly(SAM, spec, size={"longest_edge": spec.resize_to[0]}, do_pad=padded is not None, pad_size=padded)


_WRITTEN: dict[str, Callable[[Preprocess, int], dict[str, Any]]] = {
    "fill_patches": lambda spec, patch: _plainly(
        GEMMA,
        spec,
        patch_size=patch,
        pooling_kernel_size=spec.patch_size // patch,
        max_soft_tokens=spec.max_patches,
    ),
    "near_area": lambda spec, patch: _plainly(
        MINICPM[0],
        spec,
        patch_size=spec.patch_size // (2 if spec.patch_size == 2 * patch else 4),
        downsample_mode="4x" if spec.patch_size == 2 * patch else "16x",
        scale_resolution=spec.resize_to[0],
        slice_mode=False,
    ),
    "whole_patches": lambda spec, patch: {
        "image_processor_type": OWN_DEVIATION[0],
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
        PIXTRAL,
        spec,
        size={"longest_edge": spec.resize_to[0]}
        if spec.resize_to[0] == spec.resize_to[1]
        else {"height": spec.resize_to[0], "width": spec.resize_to[1]},
        patch_size={"height": spec.patch_size, "width": spec.patch_size},
    ),
}
"""Resize that one class of transformers has -> its file, for a patch of so many pixels."""


def _inexpressible(spec: Preprocess, kernel: str | None = None) -> str | None:
    """Why no image processor of transformers does this; `kernel` is that of the one which is named, if not Pillow's."""
    if spec.sample_deviation:
        return "transformers' classes with a PIL backend divide by the deviation of all values, this by a sample's"
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
        kernels = {"shaped_patches": "torch", "shrunk_patches": "torch", "bounded_patches": "float", "none": "pillow"}
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
    if spec.kernel in ("gaussian", "blurred"):
        return "transformers' classes with a PIL backend resize with Pillow, this with a Gauss filter before"
    if spec.kernel in ("torch", "torchvision") and spec.kernel != kernel:
        return "transformers' classes with a PIL backend resize with Pillow, this preprocessing with torch"
    if spec.crop_place != "centre":
        return f"transformers crops the center, this {spec.crop_place}"
    if spec.kernel == "float" and spec.resize in (*COUNTED, *AREAS, "within_patches", "between"):
        return f"transformers rounds to 8 bits where it resizes to {spec.resize}"
    if spec.fill != (0, 0, 0):
        return f"transformers fills a crop with black, this preprocessing with {spec.fill}"
    if spec.crop and spec.crop_rounding != "floor" and not _cut_alike(spec):
        other = {"half_even": "to even", "truncated": "toward zero"}[spec.crop_rounding]
        return f"transformers with Pillow rounds the place of a crop down, this preprocessing {other}"
    return None


def _cut_alike(spec: Preprocess) -> bool:
    """Whether every image is cut at the same place when it is rounded down."""
    places = zip(spec.resize_to, spec.crop or (), strict=True)
    return spec.resize == "squash" and all(
        crop_offset(size, crop, "floor") == crop_offset(size, crop, spec.crop_rounding) for size, crop in places
    )
