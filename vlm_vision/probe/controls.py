"""Controls of a probe: an untrained encoder, plain pixels, the most frequent class."""

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor
from tqdm.auto import tqdm

from vlm_vision.encoder import Encoder
from vlm_vision.fused import FusedEncoder
from vlm_vision.preprocess.spec import Preprocess
from vlm_vision.probe.features import ProbeImage, read_images
from vlm_vision.probe.labeled import LabeledFeatures, accuracy
from vlm_vision.probe.seeded import seeded

E = TypeVar("E", bound=Encoder | FusedEncoder)


def random_twin(encoder: E, *, seed: int = 0) -> E:
    """An encoder like this one, with weights as before training; on its device, in its precision and mode."""
    with seeded(seed):
        twin = type(encoder).from_dict(encoder.to_dict())
    return twin.to(device=encoder.device, dtype=encoder.dtype).train(encoder.training)  # type: ignore[return-value]


def pixel_features(images: Sequence[ProbeImage], *, side: int = 16) -> Tensor:
    """(M, 3 * side**2) in [-1, 1]: images squashed to side x side pixels, as features."""
    half = (0.5, 0.5, 0.5)
    small = Preprocess(
        resize="squash", resize_to=(side, side), resample="bicubic", crop=None, rescale=1 / 255, mean=half, std=half
    )
    return torch.cat([small(read_images([one])).flatten(1) for one in tqdm(images, desc="reading", unit="image")])


def most_frequent(train: LabeledFeatures, test: LabeledFeatures) -> float:
    """Accuracy, from 0 to 1, of answering the most frequent class of the training data every time."""
    answer = train.labels.bincount().argmax()
    return accuracy(answer.expand(len(test)), test.labels)
