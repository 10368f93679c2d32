"""Preprocessing of OpenVLA and Prismatic folders: `preprocessor_config.json`, or config.json where there is none."""

from typing import Any

from PIL import Image

from vlm_vision.preprocess.spec import HALF, IMAGENET, OPENAI, Preprocess, ResizeMode

_STRATEGIES: dict[str, ResizeMode] = {
    "resize-naive": "squash",
    "letterbox": "letterbox",
    "resize-crop": "shortest_edge",
}
_STATISTICS = {"dinov2": IMAGENET, "siglip": HALF, "augreg": HALF, "clip": OPENAI}
"""Mean and std by a part of the tower's timm id; the first that matches."""


def from_openvla(config: dict[str, Any], preprocessor: dict[str, Any] | None = None) -> list[Preprocess]:
    """One preprocessing for each tower, in the order of the channels.

    Letterbox adds the mean color of the last tower to the images of all, as the reference does.

    Args:
        config: content of config.json; read where there is no `preprocessor`.
        preprocessor: content of preprocessor_config.json, of a PrismaticImageProcessor. Its `tvf_*` keys, if it has
            them, override the others, as in the reference.

    Raises:
        ValueError: a key that is missing, or whose value the reference does not know.
    """
    if preprocessor is None:
        towers = _of_config(config)
    else:
        towers = _of_tvf(preprocessor) if "tvf_resize_params" in preprocessor else preprocessor
    strategy = towers.get("image_resize_strategy", "letterbox")
    if strategy not in _STRATEGIES:
        raise ValueError(f"image_resize_strategy is {strategy!r}: expected one of {', '.join(_STRATEGIES)}")
    resize = _STRATEGIES[strategy]
    sizes = towers.get("input_sizes") or [[3, 224, 224]]
    filters: list[Any] = towers.get("interpolations") or ["bicubic"] * len(sizes)
    means, stds = towers.get("means") or [HALF[0]], towers.get("stds") or [HALF[1]]
    counts = [len(values) for values in (sizes, filters, means, stds)]
    if len(set(counts)) > 1:
        raise ValueError(
            f"input_sizes, interpolations, means and stds have lengths {counts}: expected one entry for each tower in each"
        )
    red, green, blue = towers.get("tvf_letterbox_fill") or (int(255 * value) for value in means[-1])
    specs = []
    for size, resample, mean, std in zip(sizes, filters, means, stds, strict=True):
        if len(size) != 3 or size[0] != 3 or size[1] != size[2]:
            raise ValueError(f"an input size is {size}: expected [3, edge, edge], the only kind the reference takes")
        crops = resize == "shortest_edge"
        specs.append(
            Preprocess(
                resize=resize,
                resize_to=(size[1], size[2]),
                resample=resample,
                crop=(size[1], size[2]) if crops else None,
                rescale=1 / 255,
                mean=mean,
                std=std,
                fill=(red, green, blue) if resize == "letterbox" else (0, 0, 0),
                crop_rounding="half_even" if crops else "floor",
            )
        )
    return specs


def _of_config(config: dict[str, Any]) -> dict[str, Any]:
    """Content of preprocessor_config.json that the reference writes for this config.json."""
    lacking = [key for key in ("timm_model_ids", "image_sizes") if not config.get(key)]
    if lacking:
        raise ValueError(
            f"config.json lacks {lacking} and there is no preprocessor_config.json: expected one of them; download it again"
        )
    statistics = []
    for name in config["timm_model_ids"]:
        known = [value for part, value in _STATISTICS.items() if part in name]
        if not known:
            raise ValueError(
                f"no mean and std is known for tower {name!r}: expected one of {', '.join(_STATISTICS)} in its name; "
                "add the folder's preprocessor_config.json"
            )
        statistics.append(known[0])
    return {
        "image_resize_strategy": config.get("image_resize_strategy", "letterbox"),
        "input_sizes": [[3, edge, edge] for edge in config["image_sizes"]],
        "interpolations": ["bicubic"] * len(statistics),
        "means": [mean for mean, _ in statistics],
        "stds": [std for _, std in statistics],
    }


def _of_tvf(preprocessor: dict[str, Any]) -> dict[str, Any]:
    """The same keys as `_of_config`, from the arguments of torchvision's functions that the reference stores."""
    resizes, crops, normalizes = (preprocessor[f"tvf_{step}_params"] for step in ("resize", "crop", "normalize"))
    squash = isinstance(resizes[0]["size"], list | tuple)
    sizes = [list(crop["output_size"]) for crop in crops]
    resized = [list(resize["size"]) if squash else [resize["size"]] * 2 for resize in resizes]
    if sizes != resized or (squash and preprocessor.get("tvf_do_letterbox")):
        raise ValueError(
            f"tvf_resize_params resize to {resized} and tvf_crop_params crop to {sizes}: expected equal sizes, and one "
            "edge rather than two where the image is letterboxed"
        )
    strategy = "resize-naive" if squash else "letterbox" if preprocessor.get("tvf_do_letterbox") else "resize-crop"
    return {
        "image_resize_strategy": strategy,
        "input_sizes": [[3, *size] for size in sizes],
        "interpolations": [Image.Resampling(resize["interpolation"]).name.lower() for resize in resizes],
        "means": [step["mean"] for step in normalizes],
        "stds": [step["std"] for step in normalizes],
        "tvf_letterbox_fill": preprocessor.get("tvf_letterbox_fill"),
    }
