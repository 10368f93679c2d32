"""The crop of a camera's image: random in training, central at inference.

OpenVLA learns on random crops of 0.9 of the area with changed colors and acts on the central crop of the same area (Kim
et al. 2024); a policy that acts without the crop often fails.
"""

import math
import random
from dataclasses import dataclass

from PIL import Image

from vlm_vision.data.images.views import Color

OPENVLA_COLOR = Color(brightness=0.2, contrast=0.2, saturation=0.2, hue=0.05, probability=1.0)


@dataclass(frozen=True)
class CropConfig:
    """Crop of images in training and at inference; saved with the policy.

    Args:
        area: area of the crop as a share of the image; 1 for the whole image.

    Raises:
        ValueError: an area outside 0..1.
    """

    area: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.area <= 1:
            raise ValueError(f"area is {self.area}: expected a share of the image, above 0 and at most 1")

    def center(self, image: Image.Image) -> Image.Image:
        """The central crop, whose sides are those of the image times the root of the area."""
        return self._part(image, 0.5, 0.5)

    def random(self, image: Image.Image, color: Color | None, seed: int) -> Image.Image:
        """A random crop of the same size, with changed colors; a function of the seed."""
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
