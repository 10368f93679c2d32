"""Features with the class of each: training and test data of probes."""

from dataclasses import dataclass

import torch
from torch import Tensor

from vlm_vision.probe.seeded import seeded


@dataclass(frozen=True)
class LabeledFeatures:
    """Features of M images and their classes. Raises ValueError if there are none, or not as many of one as of the other."""

    features: Tensor
    """Features (M, ...)."""
    labels: Tensor
    """Labels (M,), whole numbers from 0 on."""

    def __post_init__(self):
        if self.labels.ndim != 1 or self.labels.is_floating_point():
            raise ValueError(
                f"labels are {self.labels.dtype} {tuple(self.labels.shape)}, expected whole numbers (M,), one for each image"
            )
        if len(self.features) != len(self.labels) or not len(self.labels):
            raise ValueError(
                f"there are {len(self.features)} features and {len(self.labels)} labels: expected one label for each, at least one"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: Tensor | slice) -> "LabeledFeatures":
        return LabeledFeatures(self.features[rows], self.labels[rows])

    def to(self, device: str | torch.device) -> "LabeledFeatures":
        """On another device."""
        return LabeledFeatures(self.features.to(device), self.labels.to(device))

    @property
    def num_classes(self) -> int:
        """The highest label and one."""
        return int(self.labels.max()) + 1


def held_out(data: LabeledFeatures, share: float, *, seed: int) -> tuple[LabeledFeatures, LabeledFeatures]:
    """(the rest, a random part): for choices that may not be made on the test data.

    Raises:
        ValueError: too few images for both.
    """
    count = round(len(data) * share)
    if not 0 < count < len(data):
        raise ValueError(
            f"{share:.0%} of {len(data)} images is {count}: expected some images on both sides; pass more images"
        )
    with seeded(seed):
        order = torch.randperm(len(data)).to(data.labels.device)
    return data[order[count:]], data[order[:count]]


def accuracy(predicted: Tensor, labels: Tensor) -> float:
    """Share of rows, from 0 to 1, where the predicted class (M,) is the right one."""
    return (predicted == labels).double().mean().item()
