"""Preprocessing of LeRobot's policies for an 8-bit image, in evaluation: their own steps, then those of the image processor."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vlm_vision.checkpoints.checkpoint import Checkpoint
from vlm_vision.nn.config import ViTConfig
from vlm_vision.preprocess.spec import HALF, IMAGENET, Preprocess
from vlm_vision.preprocess.steps import ImageStep

Json = dict[str, Any]

PIPELINE = "policy_preprocessor.json"
"""LeRobot's file of the steps before a policy."""


@dataclass(frozen=True)
class PolicyFiles:
    """What describes the preprocessing of a policy."""

    policy: Checkpoint
    base: Checkpoint | None
    """Files of the vision-language model, if it lies here."""
    usual: Preprocess
    """That of the vision-language model."""
    config: ViTConfig

    def step(self, name: str) -> Json:
        """Options of a step of the policy's pipeline; empty where there is none."""
        if not self.policy.has(PIPELINE):
            return {}
        steps = self.policy.json(PIPELINE).get("steps") or []
        named = [step.get("config") for step in steps if isinstance(step, dict) and step.get("registry_name") == name]
        return named[0] or {} if named else {}


def preprocess_of(
    policy: str, checkpoint: Checkpoint, base: Checkpoint | None, usual: Preprocess, config: ViTConfig
) -> Preprocess:
    """The preprocessing of a policy of that type.

    Raises:
        ValueError: options that it cannot have.
    """
    return _POLICIES[policy](PolicyFiles(checkpoint, base, usual, config))


def _groot(files: PolicyFiles) -> Preprocess:
    """Resize, center crop, resize to what the crop lost; then Qwen3-VL's own, which leaves an image of 256 x 256 as it is."""
    options = files.step("groot_n1_7_vlm_encode_v1")
    if not files.policy.has(PIPELINE):
        options = _groot_original(files.policy)
    target = options.get("image_target_size")
    if target is None:
        return replace(files.usual, kernel="torch")
    where = f"{files.policy}: the preprocessing of GR00T"
    height, width = two_numbers(where, "image_target_size", target)
    edge = options.get("shortest_image_edge") or height
    crop = options.get("image_crop_size")
    share = options.get("crop_fraction")
    if share is None and crop is not None:
        share = two_numbers(where, "image_crop_size", crop)[0] / float(height)
    steps = [ImageStep(kind="square")] if options.get("letter_box_transform") else []
    opencv = bool(options.get("use_albumentations"))
    if opencv:
        resize = again = ImageStep(kind="shortest_edge", size=(edge, edge), kernel="area")
    else:
        resize, again = (ImageStep(kind="squash", size=size) for size in ((edge, edge), (height, width)))
    steps.append(resize)
    if share is not None and 0 < share < 1:
        steps.append(ImageStep(kind="crop", share=share, rounded=not opencv))
    return replace(files.usual, kernel="torch", before=(*steps, again))


def _groot_original(policy: Checkpoint) -> Json:
    """Of the folder that LeRobot starts from: this one, or the one that it names. Its own defaults where that states none."""
    source = policy.config.get("base_model_path")
    if isinstance(source, str) and (Path(source).expanduser() / "processor_config.json").is_file():
        policy = policy.other(Path(source).expanduser())
    options: Json = {}
    if policy.has("processor_config.json"):
        options = policy.json("processor_config.json").get("processor_kwargs") or {}
    if options.get("image_target_size") is not None:
        return options
    bars = {name: options.get(name) for name in ("letter_box_transform", "use_albumentations")}
    return bars | {"image_target_size": [256, 256], "image_crop_size": [230, 230]}


def _vla_jepa(files: PolicyFiles) -> Preprocess:
    """Qwen3-VL's on numbers that are not rounded to 8 bits; before it, where the policy says so, means of pixels."""
    size = files.policy.config.get("resize_images_to")
    if size is None:
        return replace(files.usual, kernel="float")
    height, width = two_numbers(str(files.policy), "resize_images_to", size)
    return replace(files.usual, kernel="float", before=(ImageStep(kind="squash", size=(height, width), kernel="mean"),))


def _wall_x(files: PolicyFiles) -> Preprocess:
    """The longer edge to 256; then Qwen2.5-VL's own, whose bounds of the area WALL-OSS shares."""
    return replace(files.usual, kernel="torch", before=(ImageStep(kind="longest_edge", size=(256, 256)),))


def _eo1(files: PolicyFiles) -> Preprocess:
    """Qwen2.5-VL's between bounds of the policy, by Pillow unless it asks for the fast processor."""
    options = files.policy.config | files.step("eo1_qwen_processor")
    bounds = [options.get(name, side * 28 * 28) for name, side in (("image_min_pixels", 64), ("image_max_pixels", 128))]
    spec = replace(files.usual, kernel="torch" if options.get("use_fast_processor") else "pillow")
    if None in bounds:  # a bound alone has no effect
        return spec
    return replace(spec, resize_to=two_numbers(str(files.policy), "image_min_pixels and image_max_pixels", bounds))


def _evo1(files: PolicyFiles) -> Preprocess:
    """A square, squashed."""
    size = two_numbers(str(files.policy), "image_resolution", files.policy.config.get("image_resolution", [448, 448]))
    mean, std = IMAGENET
    return Preprocess(
        resize="squash",
        resize_to=size,
        resample="bicubic",
        crop=None,
        rescale=1 / 255,
        mean=mean,
        std=std,
        kernel="torchvision",
    )


def _molmoact2(files: PolicyFiles) -> Preprocess:
    """The whole image, squashed: the first of its crops, and the only one where crop_mode is "resize"."""
    options: Json = {}
    for place in (files.policy, files.base):
        if place is not None and place.has("processor_config.json"):
            options = place.json("processor_config.json").get("image_processor") or {}
            break
    size = options.get("size") or {"height": files.config.image_size[0], "width": files.config.image_size[1]}
    where = f"{files.policy}: the image processor of MolmoAct2"
    if options.get("resample", 2) != 2:
        raise ValueError(f"{where} has resample {options['resample']!r}: expected 2, bilinear")
    sides = [size.get("height"), size.get("width")] if isinstance(size, dict) else size
    return Preprocess(
        resize="squash",
        resize_to=two_numbers(where, "size", sides),
        resample="bilinear",
        crop=None,
        rescale=1 / 255,
        mean=options.get("image_mean") or HALF[0],
        std=options.get("image_std") or HALF[1],
        kernel="point_rounded",
    )


def two_numbers(where: object, name: str, value: Any) -> tuple[int, int]:
    """The value of a field of config.json as two numbers. Raises ValueError for another value; `where` names the file."""
    if not isinstance(value, list | tuple) or len(value) != 2 or not all(isinstance(n, int) and n > 0 for n in value):
        raise ValueError(f"{where} has {name} {value!r}: expected two whole numbers above 0")
    return value[0], value[1]


_POLICIES: dict[str, Callable[[PolicyFiles], Preprocess]] = {
    "groot": _groot,
    "vla_jepa": _vla_jepa,
    "wall_x": _wall_x,
    "eo1": _eo1,
    "evo1": _evo1,
    "molmoact2": _molmoact2,
}
