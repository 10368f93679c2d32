"""RandAugment: a few random operations of one strength, on a PIL image.

Cubuk et al. 2020, "RandAugment: practical automated data augmentation with a reduced search space", with the operations,
levels and noise of timm's `rand-m9-mstd0.5-inc1` (rwightman, timm/data/auto_augment.py), of DeiT and its
successors: every operation grows with the magnitude, and is applied with probability one half. Posterize alone differs, at
full magnitude: it keeps one bit, because zero bits leave a black image.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

from PIL import Image, ImageEnhance, ImageOps

from vlm_vision.data.seeds import check_probabilities

AffineFilter = Literal["nearest", "bilinear", "bicubic"]


@dataclass(frozen=True)
class RandAugment:
    """Called with an RGB image and a generator, returns an image of the same size.

    Raises:
        ValueError: a magnitude outside 0..10, a negative deviation or number, a probability outside 0..1, an unknown filter.
    """

    magnitude: float = 9.0
    """Strength of the operations, 0 to 10."""
    deviation: float = 0.5
    """Standard deviation of the magnitude, which is normally distributed and then clipped to 0..10."""
    number: int = 2
    """Operations drawn for each image, with replacement."""
    probability: float = 0.5
    """Probability that a drawn operation is applied."""
    fill: tuple[int, int, int] = (124, 116, 104)
    """RGB in 0..255 of pixels from outside the image; ImageNet's mean by default."""
    resample: AffineFilter = "bicubic"
    """Filter of rotations, shears and translations."""

    def __post_init__(self) -> None:
        check_probabilities(self, "probability")
        if not 0 <= self.magnitude <= 10:
            raise ValueError(f"magnitude of RandAugment is {self.magnitude}: expected 0 to 10")
        if self.deviation < 0 or self.number < 0:
            raise ValueError(
                f"deviation and number of RandAugment are {self.deviation} and {self.number}: expected >= 0"
            )
        if self.resample not in get_args(AffineFilter):
            raise ValueError(
                f"resample of RandAugment is {self.resample!r}: expected one of {', '.join(get_args(AffineFilter))}"
            )

    def __call__(self, image: Image.Image, rng: random.Random) -> Image.Image:
        for name in rng.choices(tuple(OPERATIONS), k=self.number):
            if rng.random() < self.probability:
                level = min(max(rng.gauss(self.magnitude, self.deviation), 0.0), 10.0) / 10
                image = OPERATIONS[name](self, image, level, 1 if rng.random() < 0.5 else -1)
        return image

    def _affine(self, image: Image.Image, matrix: tuple[float, ...]) -> Image.Image:
        """(x, y) of the result is (ax + by + c, dx + ey + f) of the image."""
        how = Image.Resampling[self.resample.upper()]
        return image.transform(image.size, Image.Transform.AFFINE, matrix, resample=how, fillcolor=self.fill)

    def _rotated(self, image: Image.Image, degrees: float) -> Image.Image:
        return image.rotate(degrees, resample=Image.Resampling[self.resample.upper()], fillcolor=self.fill)


def _enhanced(kind: Callable[[Image.Image], Any]) -> "Operation":
    return lambda how, image, level, sign: kind(image).enhance(max(0.1, 1 + sign * 0.9 * level))


def _brighter_shadows(image: Image.Image, add: int) -> Image.Image:
    return image.point([min(255, value + add) if value < 128 else value for value in range(256)] * 3)


Operation = Callable[[RandAugment, Image.Image, float, int], Image.Image]
"""(settings, image, level in 0..1, sign) -> image."""

OPERATIONS: dict[str, Operation] = {
    "autocontrast": lambda how, image, level, sign: ImageOps.autocontrast(image),
    "equalize": lambda how, image, level, sign: ImageOps.equalize(image),
    "invert": lambda how, image, level, sign: ImageOps.invert(image),
    "rotate": lambda how, image, level, sign: how._rotated(image, sign * 30 * level),
    "posterize": lambda how, image, level, sign: ImageOps.posterize(image, max(1, 4 - int(4 * level))),
    "solarize": lambda how, image, level, sign: ImageOps.solarize(image, 256 - int(256 * level)),
    "solarize_add": lambda how, image, level, sign: _brighter_shadows(image, int(110 * level)),
    "color": _enhanced(ImageEnhance.Color),
    "contrast": _enhanced(ImageEnhance.Contrast),
    "brightness": _enhanced(ImageEnhance.Brightness),
    "sharpness": _enhanced(ImageEnhance.Sharpness),
    "shear_x": lambda how, image, level, sign: how._affine(image, (1, sign * 0.3 * level, 0, 0, 1, 0)),
    "shear_y": lambda how, image, level, sign: how._affine(image, (1, 0, 0, sign * 0.3 * level, 1, 0)),
    "translate_x": lambda how, image, level, sign: how._affine(
        image, (1, 0, sign * 0.45 * level * image.width, 0, 1, 0)
    ),
    "translate_y": lambda how, image, level, sign: how._affine(
        image, (1, 0, 0, 0, 1, sign * 0.45 * level * image.height)
    ),
}
