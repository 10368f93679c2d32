"""Random views of an image, as in the recipes of DINO, MAE, DeiT and CLIP, each a function of one seed.

Pillow does the work: its resize, ImageOps, ImageEnhance and ImageFilter are the functions that the published recipes call
through torchvision and timm, so that pixels are equal, on 8 bits, without another dependency.
"""

import dataclasses
import math
import random
from dataclasses import dataclass
from typing import get_args

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from torch import Tensor

from vlm_vision.data.images.augment import RandAugment
from vlm_vision.data.seeds import Range, check_probabilities, check_range
from vlm_vision.preprocess.spec import Preprocess, ResampleFilter


@dataclass(frozen=True)
class Crop:
    """A random crop of the image, resized to a square: Szegedy et al. 2015, "Going deeper with convolutions", with the
    distribution of torchvision's RandomResizedCrop.

    The part is cropped before the resize, so that no pixel outside it has an effect.

    Raises:
        ValueError: a size that is not positive, a scale outside 0..1, or an unknown filter.
    """

    size: int = 224
    """Pixels along a side of the view."""
    scale: Range = (0.08, 1.0)
    """Area of the part, as a fraction of the image."""
    ratio: Range = (3 / 4, 4 / 3)
    """Width by height, drawn uniformly in its logarithm."""
    resample: ResampleFilter = "bicubic"

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size of Crop is {self.size}: expected a positive number of pixels")
        check_range(self, "scale", 0, 1)
        check_range(self, "ratio", 1e-3, 1e3)
        if self.resample not in get_args(ResampleFilter):
            raise ValueError(
                f"resample of Crop is {self.resample!r}: expected one of {', '.join(get_args(ResampleFilter))}"
            )

    def __call__(self, image: Image.Image, rng: random.Random) -> Image.Image:
        part = image.crop(self.box(*image.size, rng))
        return part.resize((self.size, self.size), Image.Resampling[self.resample.upper()])

    def box(self, width: int, height: int, rng: random.Random) -> tuple[int, int, int, int]:
        """(left, top, right, bottom). Where ten tries do not fit: the largest central part whose ratio is in range."""
        for _ in range(10):
            area = rng.uniform(*self.scale) * width * height
            ratio = math.exp(rng.uniform(math.log(self.ratio[0]), math.log(self.ratio[1])))
            wide, tall = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < wide <= width and 0 < tall <= height:
                left, top = rng.randint(0, width - wide), rng.randint(0, height - tall)
                return left, top, left + wide, top + tall
        wide = min(width, max(1, round(height * self.ratio[1])))
        tall = min(height, max(1, round(width / self.ratio[0])))
        left, top = (width - wide) // 2, (height - tall) // 2
        return left, top, left + wide, top + tall


@dataclass(frozen=True)
class Color:
    """Brightness, contrast, saturation and hue changed in random order, with the distribution of torchvision's ColorJitter.

    Raises:
        ValueError: a probability outside 0..1, a negative strength, or a hue outside 0..0.5.
    """

    brightness: float = 0.4
    """Range of the factor: 1 - this .. 1 + this, at least 0; likewise for contrast and saturation."""
    contrast: float = 0.4
    saturation: float = 0.2
    hue: float = 0.1
    """Largest shift of the hue, 1 for the whole circle."""
    probability: float = 0.8
    """Probability of any change."""

    def __post_init__(self) -> None:
        check_probabilities(self, "probability")
        if not (min(self.brightness, self.contrast, self.saturation) >= 0 and 0 <= self.hue <= 0.5):
            raise ValueError(
                f"{self}: expected brightness, contrast and saturation of at least 0, hue between 0 and 0.5"
            )

    def __call__(self, image: Image.Image, rng: random.Random) -> Image.Image:
        if rng.random() >= self.probability:
            return image
        strengths = (self.brightness, self.contrast, self.saturation)
        factors = [rng.uniform(max(0, 1 - strength), 1 + strength) for strength in strengths]
        turn = rng.uniform(-self.hue, self.hue)
        for which in rng.sample(range(4), 4):
            if which < 3:
                image = _ENHANCERS[which](image).enhance(factors[which])
            elif self.hue:
                image = _turned(image, turn)
        return image


_ENHANCERS = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)


def _turned(image: Image.Image, turn: float) -> Image.Image:
    """The image with its hue shifted by a fraction of the circle."""
    hues = [(hue + int(turn * 255)) % 256 for hue in range(256)]
    return image.convert("HSV").point(hues + 2 * list(range(256))).convert("RGB")


@dataclass(frozen=True, kw_only=True)
class View:
    """One random view. The fields are steps in this order; a float is the probability of a step.

    Crop alone, scale (0.2, 1), is MAE's; with `randaugment` it is DeiT's, whose `mixing.Erase` and `mixing.Mix` follow on
    the batch; `dino_views` are DINO's.

    Raises:
        ValueError: a probability outside 0..1, or as the parts.
    """

    crop: Crop = Crop()
    flip: float = 0.5
    """Horizontal flip."""
    randaugment: RandAugment | None = None
    color: Color | None = None
    gray: float = 0.0
    blur: float = 0.0
    """Pillow's Gaussian blur, as in DINO and MoCo v3; DINOv2 takes a kernel of 9 pixels."""
    blur_sigma: Range = (0.1, 2.0)
    """Pixels of the view."""
    solarize: float = 0.0
    """Solarization: values from 128 on are inverted."""

    def __post_init__(self) -> None:
        check_probabilities(self, "flip", "gray", "blur", "solarize")
        check_range(self, "blur_sigma", 0, 1e3)

    def __call__(self, image: Image.Image, seed: int) -> Tensor:
        """An RGB image to uint8 (3, size, size), the same for the same seed on every machine and in every worker."""
        rng = random.Random(seed)
        image = self.crop(image, rng)
        if rng.random() < self.flip:
            image = ImageOps.mirror(image)
        for change in (self.randaugment, self.color):
            if change is not None:
                image = change(image, rng)
        if rng.random() < self.gray:
            image = image.convert("L").convert("RGB")
        if rng.random() < self.blur:
            image = image.filter(ImageFilter.GaussianBlur(rng.uniform(*self.blur_sigma)))
        if rng.random() < self.solarize:
            image = ImageOps.solarize(image, 128)
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


@dataclass(frozen=True)
class Plain:
    """The view without randomness, for evaluation: an image preprocessed by `preprocess`, in 0..255, before `normalize_views`."""

    preprocess: Preprocess

    def __call__(self, image: Image.Image, seed: int) -> Tensor:
        """An RGB image to float32 (3, H, W)."""
        return dataclasses.replace(self.preprocess, rescale=1.0, mean=(0.0,) * 3, std=(1.0,) * 3)(image)[0]


def normalize_views(pixels: Tensor, preprocess: Preprocess) -> Tensor:
    """Views (B, 3, H, W) in 0..255, of any dtype and device, to the float32 pixels of the encoder."""
    scale = np.divide(preprocess.rescale, preprocess.std).astype(np.float32)
    shift = np.divide(preprocess.mean, preprocess.std).astype(np.float32)
    scale, shift = (torch.from_numpy(each).to(pixels.device).view(3, 1, 1) for each in (scale, shift))
    return pixels * scale - shift


def dino_views(
    *,
    size: int = 224,
    local_size: int = 96,
    num_local: int = 8,
    scale: float = 0.32,
    color: Color = Color(),
    flip: float = 0.5,
) -> tuple[View, ...]:
    """Two large views, then `num_local` small ones, as in DINOv2 (Oquab et al. 2023, "DINOv2").

    Args:
        scale: area that separates large from small views: large views are of `scale` to 1 of the image, small ones of 0.05 to `scale`.
            DINO's own is 0.4, with six small views (Caron et al. 2021).
        flip: probability of a horizontal flip; 0 in DINOv3.
    """
    large, small = Crop(size, (scale, 1.0)), Crop(local_size, (0.05, scale))
    first = View(crop=large, flip=flip, color=color, gray=0.2, blur=1.0)
    second = View(crop=large, flip=flip, color=color, gray=0.2, blur=0.1, solarize=0.2)
    return (first, second, *[View(crop=small, flip=flip, color=color, gray=0.2, blur=0.5)] * num_local)
