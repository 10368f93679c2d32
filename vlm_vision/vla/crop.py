"""What a policy sees of a camera's image: a random part while it learns, the middle when it acts.

OpenVLA learns on random crops of 0.9 of the area with changed colors and acts on the central crop of the same area (Kim
et al. 2024); to leave the crop out when acting is a well known way to lose a policy.
"""

import math
import random
from dataclasses import dataclass

from PIL import Image

from vlm_vision.data.images.views import Color

OPENVLA_COLOR = Color(brightness=0.2, contrast=0.2, saturation=0.2, hue=0.05, probability=1.0)


@dataclass(frozen=True)
class CropConfig:
    """How images are cut, learning and acting; saved with the policy.

    Args:
        area: of the part that is seen, of the whole; 1 for all of it.

    Raises:
        ValueError: an area outside 0..1.
    """

    area: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.area <= 1:
            raise ValueError(f"area is {self.area}: expected a share of the image, above 0 and at most 1")

    def center(self, image: Image.Image) -> Image.Image:
        """The central part, both sides times the root of the area."""
        return self._part(image, 0.5, 0.5)

    def random(self, image: Image.Image, color: Color | None, seed: int) -> Image.Image:
        """A part as large, anywhere; then colors changed. A function of the seed."""
        rng = random.Random(seed)
        part = self._part(image, rng.random(), rng.random())
        return part if color is None else color(part, rng)

    def _part(self, image: Image.Image, left: float, top: float) -> Image.Image:
        if self.area == 1:
            return image
        side = math.sqrt(self.area)
        width, height = max(1, round(image.width * side)), max(1, round(image.height * side))
        x, y = round(left * (image.width - width)), round(top * (image.height - height))
        return image.crop((x, y, x + width, y + height))
