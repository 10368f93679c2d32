"""Augmentation of a batch of normalized pixels: erasing parts, mixing images and their targets."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vlm_vision.data.seeds import Range, check_probabilities, check_range


@dataclass(frozen=True)
class Erase:
    """A rectangle of each image becomes normal noise, one value for each pixel and channel.

    Zhong et al. 2020, "Random erasing data augmentation", with noise as in DeiT and timm's `RandomErasing(mode="pixel")`.

    Raises:
        ValueError: a probability outside 0..1, or ranges without a rectangle.
    """

    probability: float = 0.25
    """Probability that a rectangle of an image is erased."""
    area: Range = (0.02, 1 / 3)
    """Least and greatest area of the rectangle, as a share of the image."""
    ratio: Range = (0.3, 1 / 0.3)
    """Least and greatest height by width of the rectangle, drawn uniformly in its logarithm."""

    def __post_init__(self) -> None:
        check_probabilities(self, "probability")
        check_range(self, "area", 0, 1)
        check_range(self, "ratio", 1e-3, 1e3)

    def __call__(self, pixels: Tensor, seeds: Sequence[int]) -> Tensor:
        """(B, C, H, W), normalized, and a seed for each image -> the same with parts erased; `pixels` is not changed."""
        erased, (height, width) = pixels.clone(), pixels.shape[-2:]
        for row, seed in zip(erased, seeds, strict=True):
            box = self.box(height, width, random.Random(seed))
            if box is not None:
                top, left, tall, wide = box
                noise = torch.randn(len(row), tall, wide, generator=torch.Generator().manual_seed(seed))
                row[:, top : top + tall, left : left + wide] = noise.to(row)
        return erased

    def box(self, height: int, width: int, rng: random.Random) -> tuple[int, int, int, int] | None:
        """(top, left, height, width) of the part to erase from such an image; None for none, also where ten tries do not fit."""
        if rng.random() >= self.probability:
            return None
        for _ in range(10):
            area = rng.uniform(*self.area) * height * width
            ratio = math.exp(rng.uniform(math.log(self.ratio[0]), math.log(self.ratio[1])))
            tall, wide = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if tall < height and wide < width:
                return rng.randint(0, height - tall), rng.randint(0, width - wide), tall, wide
        return None


@dataclass(frozen=True)
class Mix:
    """Each image mixed with its mirror place in the batch, by Mixup or CutMix, with targets mixed in the same way.

    Zhang et al. 2018, "mixup: beyond empirical risk minimization"; Yun et al. 2019, "CutMix: regularization strategy to train
    strong classifiers with localizable features". One share for the whole batch, of Beta(alpha, alpha); the defaults are
    DeiT's, the distribution is that of timm's `Mixup(mode="batch")`.

    Raises:
        ValueError: a probability outside 0..1, or a negative alpha.
    """

    mixup: float = 0.8
    """Alpha of Mixup; 0 for no Mixup."""
    cutmix: float = 1.0
    """Alpha of CutMix; 0 for no CutMix."""
    probability: float = 1.0
    """Probability that a micro-batch is mixed."""
    cut: float = 0.5
    """Probability that a mixed micro-batch is mixed by CutMix and not by Mixup, where both have an alpha."""
    smoothing: float = 0.1
    """Share of every target that is spread over all classes (label smoothing)."""

    def __post_init__(self) -> None:
        check_probabilities(self, "probability", "cut", "smoothing")
        if not (self.mixup >= 0 and self.cutmix >= 0):
            raise ValueError(
                f"mixup and cutmix of Mix are {self.mixup} and {self.cutmix}: expected alphas of at least 0"
            )

    def __call__(self, pixels: Tensor, labels: Tensor, num_classes: int, *, seed: int) -> tuple[Tensor, Tensor]:
        """Mixed images and their targets.

        Args:
            pixels: (B, C, H, W), normalized; not changed.
            labels: (B,), int64.
            seed: seed of this batch: a function of the run's seed, the micro-batch and the process.

        Returns:
            pixels (B, C, H, W), and float32 targets (B, num_classes) whose rows sum to 1.
        """
        rng, share, (height, width) = random.Random(seed), 1.0, pixels.shape[-2:]
        if rng.random() < self.probability and (self.mixup or self.cutmix):
            if self.cutmix and (rng.random() < self.cut or not self.mixup):
                top, bottom, left, right = _window(height, width, rng.betavariate(self.cutmix, self.cutmix), rng)
                share = 1 - (bottom - top) * (right - left) / (height * width)
                mixed = pixels.clone()
                mixed[..., top:bottom, left:right] = pixels.flip(0)[..., top:bottom, left:right]
                pixels = mixed
            else:
                share = rng.betavariate(self.mixup, self.mixup)
                pixels = share * pixels + (1 - share) * pixels.flip(0)
        targets = F.one_hot(labels, num_classes) * (1 - self.smoothing) + self.smoothing / num_classes
        return pixels, share * targets + (1 - share) * targets.flip(0)


def _window(height: int, width: int, share: float, rng: random.Random) -> tuple[int, int, int, int]:
    """(top, bottom, left, right) of a window that leaves `share` of the image, with a random center, clipped."""
    side = math.sqrt(1 - share)
    tall, wide = int(height * side) // 2, int(width * side) // 2
    y, x = rng.randrange(height), rng.randrange(width)
    return max(y - tall, 0), min(y + tall, height), max(x - wide, 0), min(x + wide, width)
