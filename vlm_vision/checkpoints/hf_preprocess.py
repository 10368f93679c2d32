"""`preprocessor_config.json` of transformers, both ways."""

from typing import Any, Literal

from PIL import Image

from vlm_vision.preprocess import Preprocess

_STEPS: dict[str, set[str]] = {
    "do_resize": {"size", "resample"},
    "do_center_crop": {"crop_size"},
    "do_rescale": {"rescale_factor"},
    "do_normalize": {"image_mean", "image_std"},
}
"""Each step's switch, and the keys it needs when it is on."""

_PLAIN = dict.fromkeys(_STEPS, True) | {"do_center_crop": False, "rescale_factor": 1 / 255, "default_to_square": True}
_HALF = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
_IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
_OPENAI = {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}
_CROP = {"do_center_crop": True, "crop_size": 224}
_CLIP = _PLAIN | _CROP | _OPENAI | {"size": {"shortest_edge": 224}, "default_to_square": False, "resample": 3}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "ViTImageProcessor": _PLAIN | _HALF | {"size": [224, 224], "resample": 2},
    "DeiTImageProcessor": _PLAIN | _CROP | _HALF | {"size": [256, 256], "resample": 3},
    "CLIPImageProcessor": _CLIP,
    "BitImageProcessor": _CLIP,
    "SiglipImageProcessor": _PLAIN | _HALF | {"size": [224, 224], "default_to_square": False, "resample": 3},
    "DINOv3ViTImageProcessor": _PLAIN | _IMAGENET | {"size": [224, 224], "resample": 2},
}
"""What transformers' class of that name fills in for a missing key."""

_OWN_STEPS = {"ConvNext", "Levit", "Owlv2", "Perceiver", "PoolFormer", "VideoMAE"}
"""Image processors that give the keys below another meaning, so that the file alone does not tell."""

_WITHOUT_EFFECT = set(
    "image_processor_type feature_extractor_type processor_class auto_map _valid_processor_keys do_convert_rgb "
    "input_data_format return_tensors device disable_grouping image_seq_length pad_size".split()
)

_FILTERS: dict[int, Any] = {filter.value: filter.name.lower() for filter in Image.Resampling}


def from_hf(config: dict[str, Any]) -> Preprocess:
    """Reads the content of a `preprocessor_config.json`, old or new.

    A missing key, or null, takes the default of the processor class that the file names. The pixels are those of the
    class's PIL backend; the DINOv3 class has none, resizes floats, and differs by rounding to 8 bits.

    Raises:
        ValueError: a key asks for what `Preprocess` does not do, or is missing and its class is not known here.
    """
    name = config.get("image_processor_type") or config.get("feature_extractor_type") or "unnamed"
    name = name.replace("FeatureExtractor", "ImageProcessor").removesuffix("Fast").removesuffix("Pil")
    if name.removesuffix("ImageProcessor") in _OWN_STEPS:
        raise _unsupported("image_processor_type", name)
    given = {key: value for key, value in config.items() if value is not None}
    read = {"default_to_square", *_STEPS}.union(*_STEPS.values())
    for key in sorted(given.keys() - read - _WITHOUT_EFFECT):
        off = key.startswith("do_") and given[key] is False
        if not off and (key, given[key]) != ("data_format", "channels_first"):
            raise _unsupported(key, given[key])

    values = _DEFAULTS.get(name, {}) | given
    if "crop_size" not in values:
        values.setdefault("do_center_crop", False)
    needed = set(_STEPS).union(*(keys for step, keys in _STEPS.items() if values.get(step)))
    if "size" in needed and isinstance(values.get("size"), int):
        needed.add("default_to_square")
    if missing := sorted(needed - values.keys()):
        raise ValueError(
            f"the preprocessor config lacks {missing}, for which image processor {name!r} has no default here: "
            "expected every key that is used; add them"
        )

    for key in ("image_mean", "image_std"):
        if isinstance(values.get(key), int | float):
            values[key] = [values[key]] * 3
    resample = values.get("resample", Image.Resampling.BILINEAR)
    if resample not in _FILTERS:
        raise _unsupported("resample", resample)
    resize, resize_to = _resize(values) if values["do_resize"] else ("none", (0, 0))
    return Preprocess(
        resize=resize,
        resize_to=resize_to,
        resample=_FILTERS[resample],
        crop=_height_width("crop_size", values["crop_size"]) if values["do_center_crop"] else None,
        rescale=values["rescale_factor"] if values["do_rescale"] else 1.0,
        mean=values["image_mean"] if values["do_normalize"] else (0.0, 0.0, 0.0),
        std=values["image_std"] if values["do_normalize"] else (1.0, 1.0, 1.0),
    )


def to_hf(spec: Preprocess, *, image_processor_type: str = "CLIPImageProcessor") -> dict[str, Any]:
    """The content of a `preprocessor_config.json` that transformers' PIL backend follows to the same pixels.

    Every key is written, so that any type with a PIL backend (all but DINOv3's) does the same.

    Raises:
        ValueError: `from_hf` does not know the type.
    """
    if image_processor_type not in _DEFAULTS:
        raise ValueError(f"image_processor_type is {image_processor_type!r}: expected one of {', '.join(_DEFAULTS)}")
    height, width = spec.resize_to
    config: dict[str, Any] = {
        "image_processor_type": image_processor_type,
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
    if spec.resize != "none":
        square = {"height": height, "width": width}
        config["size"] = {"shortest_edge": height} if spec.resize == "shortest_edge" else square
    if spec.crop is not None:
        config["crop_size"] = {"height": spec.crop[0], "width": spec.crop[1]}
    return config


def _resize(values: dict[str, Any]) -> tuple[Literal["squash", "shortest_edge"], tuple[int, int]]:
    size = values["size"]
    if isinstance(size, int) and not values["default_to_square"]:
        size = {"shortest_edge": size}
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
        f"{key}={value!r} in the preprocessor config is not supported: expected resize, centre crop, rescale and "
        "normalise only; build a Preprocess by hand"
    )
