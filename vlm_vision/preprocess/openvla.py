"""What the evaluation of OpenVLA does to a camera's image before the processor sees it; TensorFlow there, none here.

OpenVLA and OpenVLA-OFT learn from Open X-Embodiment data (RLDS): images stored as JPEG, loaded at 224 pixels by TensorFlow's
Lanczos filter, cropped at random to 0.9 of their area. Their evaluation scripts give a fresh image the same past; without it
a policy sees other pixels than in training. Source: `resize_image` in experiments/robot/libero/libero_utils.py and
experiments/robot/bridge/bridgev2_utils.py, the center crop in experiments/robot/openvla_utils.py of openvla/openvla;
`prepare_images_for_vla` in experiments/robot/openvla_utils.py of moojink/openvla-oft.
"""

from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np
from PIL import Image

from vlm_vision.preprocess.jpeg import round_trip
from vlm_vision.preprocess.tf_image import center_crop, lanczos3


@dataclass(frozen=True, kw_only=True)
class CameraPath:
    """JPEG and back, resize, center crop, all on 8 bits and as TensorFlow rounds: `jpeg.round_trip`, `tf_image`.

    Raises:
        ValueError: a number out of its range.
    """

    jpeg_quality: int = 95
    """1 to 100, TensorFlow's 95."""
    side: int = 224
    """Height and width after it, in pixels."""
    crop_area: float = 1.0
    """Share of the area that the center crop keeps, above 0; 1.0: no crop."""
    keep_sized: bool = False
    """An image that has `side` already is not stored and resized, only cropped (OpenVLA-OFT)."""

    def __post_init__(self) -> None:
        numbers = (self.jpeg_quality, self.side, self.crop_area)
        if not all(isinstance(n, int | float) and not isinstance(n, bool) for n in numbers) or not (
            self.jpeg_quality in range(1, 101) and self.side in range(2, 1 << 16) and 0 < self.crop_area <= 1
        ):
            raise ValueError(
                f"jpeg_quality is {self.jpeg_quality!r}, side {self.side!r}, crop_area {self.crop_area!r}: expected 1 to 100, "
                "at least 2 pixels, and a share above 0 up to 1"
            )
        if not isinstance(self.keep_sized, bool):
            raise ValueError(f"keep_sized is {self.keep_sized!r}: expected True or False")
        object.__setattr__(self, "crop_area", float(self.crop_area))

    def __call__(self, image: Image.Image) -> Image.Image:
        """RGB of any size -> RGB of side x side."""
        pixels = np.asarray(image)
        if not (self.keep_sized and pixels.shape[:2] == (self.side, self.side)):
            pixels = lanczos3(round_trip(pixels, self.jpeg_quality), self.side, self.side)
        if self.crop_area < 1:
            pixels = center_crop(pixels, self.crop_area, self.side, self.side)
        return Image.fromarray(pixels)

    def to_dict(self) -> dict[str, Any]:
        """All fields, as JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, state: dict[str, Any]) -> "CameraPath":
        """Inverse of `to_dict`. Raises ValueError for other keys."""
        known = {field.name for field in fields(cls)}
        if not isinstance(state, dict) or state.keys() - known:
            raise ValueError(f"camera is {state!r}: expected an object with {', '.join(sorted(known))}")
        return cls(**state)


EVALUATIONS = {"openvla": CameraPath(), "openvla_oft": CameraPath(keep_sized=True)}
"""Whose evaluation -> its path, without the crop. Turning LIBERO's images by 180 degrees is left to the simulator's side."""

OPENVLA_CROP = 0.9
"""Share of the area that both keep for policies that were trained with image augmentation."""


def camera_path(name: str, *, crop: bool) -> CameraPath | None:
    """The path of an evaluation, with its crop or without; None for "none". Raises ValueError for a name not known."""
    if name == "none":
        return None
    if name not in EVALUATIONS:
        raise ValueError(f"evaluation is {name!r}: expected one of {', '.join([*EVALUATIONS, 'none'])}")
    return replace(EVALUATIONS[name], crop_area=OPENVLA_CROP) if crop else EVALUATIONS[name]
