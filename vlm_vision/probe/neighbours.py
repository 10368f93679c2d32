"""What an encoder is worth at a glance: nearest neighbours of labelled pictures, beside what learns nothing."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from vlm_vision.data.images.samples import Samples
from vlm_vision.data.stored_image import Picture, opened
from vlm_vision.encoder import Encoder
from vlm_vision.fused import FusedEncoder
from vlm_vision.preprocess.images import load_image
from vlm_vision.probe.controls import most_frequent, pixel_features, random_twin
from vlm_vision.probe.features import picture_features
from vlm_vision.probe.knn import NEIGHBOURS, knn
from vlm_vision.probe.labelled import Labelled, held_out

See = Callable[[Sequence[Picture]], Tensor]
"""Pictures to features (M, D)."""


class Known(NamedTuple):
    """Pictures and their classes (M,)."""

    pictures: list[Picture]
    labels: Tensor


def neighbours(
    encoder: Encoder | FusedEncoder, train: Samples, test: Samples, *, limit: int, seed: int
) -> dict[str, float]:
    """Share of test pictures whose nearest training pictures tell their class, by who looks; nothing for fewer than five
    labelled pictures.

    Args:
        limit: pictures of training and of test each, drawn at random.
    """
    known, asked = (labelled(samples, limit, seed) for samples in (train, test))
    if min(len(known.labels), len(asked.labels)) < 5:
        return {}
    towers = {"encoder": encoder, "random weights": random_twin(encoder, seed=seed)}
    looks: dict[str, See] = {name: partial(picture_features, tower) for name, tower in towers.items()}
    found = {
        name: share_told(see, known, asked, seed=seed) for name, see in (looks | {"pixels": pixel_features}).items()
    }
    blind = (Labelled(torch.zeros(len(part.labels), 1), part.labels) for part in (known, asked))
    return found | {"most frequent class": most_frequent(*blind)}


def share_told(see: See, known: Known, asked: Known, *, seed: int) -> float:
    """Share of the pictures asked whose nearest known ones tell their class; how many are nearest is chosen by a part of
    the known ones."""
    ours, theirs = (Labelled(see(part.pictures), part.labels) for part in (known, asked))
    tried = knn(*held_out(ours, 0.2, seed=seed), ks=(1, 5, *NEIGHBOURS)).by_k
    return knn(ours, theirs, ks=[max(tried, key=lambda k: tried[k])]).best


def labelled(samples: Samples, limit: int, seed: int) -> Known:
    """At most `limit` pictures that can be read and have a label, drawn at random."""
    pictures, labels = [], []
    for row in torch.randperm(len(samples), generator=torch.Generator().manual_seed(seed)).tolist():
        if len(pictures) == limit:
            break
        try:
            sample = samples[row]
            if sample.label < 0:
                continue
            load_image(opened([sample.picture])[0])
        except (ValueError, OSError):
            continue
        pictures.append(sample.picture)
        labels.append(sample.label)
    return Known(pictures, torch.tensor(labels))
