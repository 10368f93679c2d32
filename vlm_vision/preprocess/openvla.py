"""Camera path: OpenVLA's changes to a camera's image before its processor, by TensorFlow there and without it here.

OpenVLA and OpenVLA-OFT are trained on Open X-Embodiment data (RLDS): images stored as JPEG, loaded at 224 pixels by TensorFlow's
Lanczos filter, cropped at random to 0.9 of their area. Their evaluation scripts apply the same steps to a new image; without
them a policy gets other pixels than in training. Source: `resize_image` in experiments/robot/libero/libero_utils.py and
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
    """JPEG encoding and decoding, resize, center crop, all on 8 bits and with TensorFlow's rounding: `jpeg.round_trip`, `tf_image`.

    Raises:
        ValueError: a number out of its range.
    """

    jpeg_quality: int = 95
    """Quality of JPEG, 1 to 100; TensorFlow's default is 95."""
    side: int = 224
    """Height and width after the resize, in pixels."""
    crop_area: float = 1.0
    """Share of the area that the center crop keeps, above 0; 1.0 for no crop."""
    keep_sized: bool = False
    """Only crop an image that has `side` already (OpenVLA-OFT)."""

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
"""Name of an evaluation -> its camera path, without the crop. The simulator rotates LIBERO's images by 180 degrees."""

OPENVLA_CROP = 0.9
"""Share of the area that both crop to, for policies trained with image augmentation."""


def camera_path(name: str, *, crop: bool) -> CameraPath | None:
    """The camera path of an evaluation, with or without its crop; None for "none". Raises ValueError for an unknown name."""
    if name == "none":
        return None
    if name not in EVALUATIONS:
        raise ValueError(f"evaluation is {name!r}: expected one of {', '.join([*EVALUATIONS, 'none'])}")
    return replace(EVALUATIONS[name], crop_area=OPENVLA_CROP) if crop else EVALUATIONS[name]
