"""Quick measurement of an encoder: nearest neighbors of labeled images, compared with untrained controls."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from vlm_vision.data.images.samples import Samples
from vlm_vision.data.stored_image import ImageSource, open_stored_images
from vlm_vision.encoder import Encoder
from vlm_vision.fused import FusedEncoder
from vlm_vision.preprocess.images import load_image
from vlm_vision.probe.controls import most_frequent, pixel_features, random_twin
from vlm_vision.probe.features import image_features
from vlm_vision.probe.knn import NEIGHBORS, knn
from vlm_vision.probe.labeled import LabeledFeatures, held_out

FeatureFunction = Callable[[Sequence[ImageSource]], Tensor]
"""Images to features (M, D)."""


class LabeledImages(NamedTuple):
    """Images and their classes (M,)."""

    images: list[ImageSource]
    labels: Tensor


def neighbors(
    encoder: Encoder | FusedEncoder, train: Samples, test: Samples, *, limit: int, seed: int
) -> dict[str, float]:
    """Share of test images whose nearest training images have their class, for the encoder and its controls; empty for
    fewer than five labeled images.

    Args:
        limit: images of training and of test each, drawn at random.
    """
    known, asked = (labeled_images(samples, limit, seed) for samples in (train, test))
    if min(len(known.labels), len(asked.labels)) < 5:
        return {}
    towers = {"encoder": encoder, "random weights": random_twin(encoder, seed=seed)}
    looks: dict[str, FeatureFunction] = {name: partial(image_features, tower) for name, tower in towers.items()}
    found = {
        name: knn_accuracy(see, known, asked, seed=seed) for name, see in (looks | {"pixels": pixel_features}).items()
    }
    blind = (LabeledFeatures(torch.zeros(len(part.labels), 1), part.labels) for part in (known, asked))
    return found | {"most frequent class": most_frequent(*blind)}


def knn_accuracy(see: FeatureFunction, known: LabeledImages, asked: LabeledImages, *, seed: int) -> float:
    """Share of the images asked whose nearest known ones tell their class; how many are nearest is chosen by a part of
    the known ones."""
    ours, theirs = (LabeledFeatures(see(part.images), part.labels) for part in (known, asked))
    tried = knn(*held_out(ours, 0.2, seed=seed), ks=(1, 5, *NEIGHBORS)).by_k
    return knn(ours, theirs, ks=[max(tried, key=lambda k: tried[k])]).best


def labeled_images(samples: Samples, limit: int, seed: int) -> LabeledImages:
    """At most `limit` images that can be read and have a label, drawn at random."""
    images, labels = [], []
    for row in torch.randperm(len(samples), generator=torch.Generator().manual_seed(seed)).tolist():
        if len(images) == limit:
            break
        try:
            sample = samples[row]
            if sample.label < 0:
                continue
            load_image(open_stored_images([sample.image])[0])
        except (ValueError, OSError):
            continue
        images.append(sample.image)
        labels.append(sample.label)
    return LabeledImages(images, torch.tensor(labels))
