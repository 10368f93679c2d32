"""Zero-shot classification: the class with the most similar description, by an image and a text encoder."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vlm_vision.pair import Pair
from vlm_vision.probe.features import text_embeddings
from vlm_vision.probe.labeled import LabeledFeatures


@dataclass(frozen=True)
class ZeroShot:
    """Accuracies from 0 to 1."""

    top1: float
    top5: float
    """Accuracy among the five nearest classes, or among all if there are fewer."""


def class_embeddings(
    pair: Pair, classes: Sequence[str], templates: Sequence[str] = ("a photo of a {}.",), *, batch_size: int = 256
) -> Tensor:
    """(classes, E), of length one: each class's name in every template, embedded, averaged and normalized.

    Radford et al. 2021, "Learning transferable visual models from natural language supervision", section 3.1.4.

    Args:
        templates: sentences with {} where the name goes.

    Raises:
        ValueError: no class, no template, or one without {}; as `text_embeddings`.
    """
    if wrong := [template for template in templates if "{}" not in template]:
        raise ValueError(f"the template {wrong[0]!r} has no {{}}: write it in the place of the class name")
    if not templates or not classes:
        raise ValueError(
            f"there are {len(classes)} classes and {len(templates)} templates: expected at least one of each"
        )
    texts = [template.replace("{}", name) for name in classes for template in templates]
    each = text_embeddings(pair, texts, batch_size=batch_size).unflatten(0, (len(classes), len(templates)))
    return F.normalize(each.mean(dim=1), dim=-1)


@torch.no_grad()
def zero_shot(test: LabeledFeatures, classes: Tensor) -> ZeroShot:
    """How often the right class is nearest, or among the five nearest.

    Args:
        test: embeddings of images (M, E), of length one.
        classes: of `class_embeddings`; row c is that of label c.

    Raises:
        ValueError: a label without a class, or embeddings of another width.
    """
    if test.features.ndim != 2 or test.features.shape[-1] != classes.shape[-1] or test.num_classes > len(classes):
        raise ValueError(
            f"images are {tuple(test.features.shape)} of {test.num_classes} classes, descriptions {tuple(classes.shape)}: "
            "expected equal widths, and a description for each class"
        )
    nearest = (test.features @ classes.T).topk(min(5, len(classes)), dim=1).indices
    hits = (nearest == test.labels[:, None]).double()
    return ZeroShot(top1=hits[:, 0].mean().item(), top5=hits.sum(dim=1).mean().item())
