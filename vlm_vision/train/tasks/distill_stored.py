"""Teachers whose outputs are read from token stores, in place of encoding the views."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vlm_vision.data.images.views import Plain
from vlm_vision.data.sample import Samples
from vlm_vision.data.stored_image import ImageSource
from vlm_vision.encoder import Encoder
from vlm_vision.nn.output import VisionOutput
from vlm_vision.tokens.training.features import StoredFeatures
from vlm_vision.tokens.training.keys import find_keys
from vlm_vision.tokens.training.match import matching_store
from vlm_vision.tokens.wanted import Part
from vlm_vision.train.loop.step import Batch

JOINED = " + "
"""Between the stores of several teachers."""


@dataclass(frozen=True)
class StoredTeachers:
    """Images by name to the outputs of the teachers, as tensors of a batch: "0/patch_tokens" (B, N, D) of the first one, and so on."""

    features: tuple[StoredFeatures, ...]
    parts: tuple[tuple[Part, ...], ...]
    """Parts that are read of each teacher."""

    def __call__(self, images: Sequence[ImageSource]) -> Batch:
        """Raises ValueError for an image that a store lacks."""
        found: dict[str, Tensor] = {}
        for i, (features, parts) in enumerate(zip(self.features, self.parts, strict=True)):
            outputs = features.outputs(images)
            found |= {f"{i}/{part}": torch.cat([getattr(out, part) for out in outputs]) for part in parts}
        return found


def stored_teachers(
    folders: str, teachers: Sequence[Encoder], splits: Iterable[Samples | None], *, root: str = ""
) -> StoredTeachers:
    """The stores of all teachers, once every image of the data is found there; images that a store lists as bad are left out.

    Args:
        folders: one store for each teacher, in their order, joined by " + ".
        teachers: without weights.
        splits: training and test data.
        root: folder that image paths start from.

    Raises:
        ValueError: another number of stores; otherwise as `matching_store` and `find_keys`.
    """
    names = folders.split(JOINED)
    if len(names) != len(teachers):
        raise ValueError(
            f"data.tokens names {len(names)} stores for {len(teachers)} teachers: name one for each, in their order, as 'ONE + TWO'"
        )
    parts = [_parts(teacher) for teacher in teachers]
    stores = [matching_store(name, tower, own) for name, tower, own in zip(names, teachers, parts, strict=True)]
    samples = [split for split in splits if split is not None]
    if any(split.shards is not None and split.shards.fetch is not None for split in samples):
        raise ValueError(
            "data.tokens needs images on this machine, and data.train is read by URL: fetch the shards first"
        )
    images = [split[row].image for split in samples for row in range(len(split))]
    keys = [find_keys(store, images, root=root, skip_bad=True) for store in stores]
    features = (StoredFeatures(store, tower, own) for store, tower, own in zip(stores, teachers, keys, strict=True))
    return StoredTeachers(tuple(features), tuple(parts))


def stored_output(teacher: Encoder, batch: Mapping[str, Tensor], number: int) -> VisionOutput:
    """The output of a teacher in a batch of `StoredTeachers`."""
    size = teacher.preprocess.output_size
    assert size is not None
    cls, pooled = (batch.get(f"{number}/{part}") for part in ("cls_token", "pooled"))
    return VisionOutput(batch[f"{number}/patch_tokens"], teacher.grid(*size), cls_token=cls, pooled=pooled)


def stored_view(names: Sequence[str], teachers: Sequence[Encoder], side: int) -> Plain:
    """The view of the student: the part of the image that the teachers' own preprocessing shows, in `side` x `side` pixels.

    Raises:
        ValueError: teachers whose preprocessing shows different parts.
    """
    sizes = [teacher.preprocess.output_size for teacher in teachers]
    shown = [
        teacher.preprocess if size == (side, side) else teacher.preprocess.at(side, side)
        for teacher, size in zip(teachers, sizes, strict=True)
    ]
    plain = [
        replace(one, resample="bicubic", rescale=1.0, mean=(0.0,) * 3, std=(1.0,) * 3, camera=None) for one in shown
    ]
    for name, other in zip(names, plain, strict=True):
        if other != plain[0]:
            raise ValueError(
                f"the preprocessing of teachers {names[0]} and {name} shows different parts of an image, so that their stored tokens do "
                "not fit one view: train with one of them, or leave data.tokens out"
            )
    return Plain(shown[0])


def _parts(teacher: Encoder) -> tuple[Part, ...]:
    """What the student learns of a teacher: patch tokens, and the vector for the whole image where there is one."""
    config = teacher.config
    if config.pool != "none" and teacher.tap.blocks(config.depth) == (config.depth - 1,):
        return ("patch_tokens", "pooled")
    return ("patch_tokens", "cls_token") if config.class_token else ("patch_tokens",)
