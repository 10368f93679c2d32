"""Three measurements that show whether a model uses its images, which a training curve does not show.

Loss and right answers with the right images, with other ones and with blank ones; the gradient that reaches each group;
the size of image tokens compared with words. A model that ignores its images may still train smoothly: it learns which
answers are frequent.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from vlm_vision.data.conversations.collate import Collator
from vlm_vision.data.conversations.records import Conversation
from vlm_vision.data.patch_features import PatchFeatures
from vlm_vision.encoder import eval_mode
from vlm_vision.measure.answers import TeacherForcedCounts, shuffled_images, teacher_forced
from vlm_vision.train.loss import answer_loss, num_answer_tokens
from vlm_vision.train.trainable import group_modules
from vlm_vision.vlm.model import VisionLanguageModel

SMALLEST_GAP = 0.01
"""Smallest gain by the right images, as a share of the loss with shuffled images."""
SMALLEST_RATIO, LARGEST_RATIO = 0.1, 10.0
"""Usual range of the size of image tokens divided by the size of words."""


@dataclass(frozen=True)
class ImageUse:
    """Result of `image_use`."""

    right: TeacherForcedCounts
    shuffled: TeacherForcedCounts
    """Counts with the images of other conversations."""
    blank: TeacherForcedCounts
    """Counts with all pixels in mid-gray, 128."""
    gradients: dict[str, float | None]
    """Gradient norm of each group for the mean loss of the first batch; None for a group that does not train."""
    token_ratio: float
    """Root mean square of image tokens divided by that of word embeddings, in the first batch."""

    def table(self) -> str:
        """As text."""
        lines = [f"{'images':9} {'loss per answer token':>22} {'answers right':>14}"]
        for name, counts in (("right", self.right), ("shuffled", self.shuffled), ("blank", self.blank)):
            lines.append(f"{name:9} {counts.loss_per_token:22.4f} {counts.accuracy:14.1%}")
        norms = [f"{name} {'-' if norm is None else f'{norm:.3g}'}" for name, norm in self.gradients.items()]
        lines.append(f"gradient norm: {', '.join(norms)}")
        lines.append(f"image tokens are {self.token_ratio:.3g} times as large as word embeddings")
        return "\n".join(lines)

    @property
    def warning(self) -> str | None:
        """Faults and what to try, one sentence for each; None if the model uses its images.

        The size of image tokens is a likely reason why images are ignored, but not a fault by itself: each block
        normalizes what it reads, so that a model which learned with large tokens works (the demo's are some 140 times as
        large as its words).
        """
        sentences = []
        gap = self.shuffled.loss_per_token - self.right.loss_per_token
        if not gap > SMALLEST_GAP * self.shuffled.loss_per_token:
            sentences.append(
                f"The model ignores its images: other images raise the loss by {gap:.2g} per answer token, less than "
                f"{SMALLEST_GAP:.0%} of it; train the projector alone first and at a higher rate, unfreeze the encoder, or "
                "check whether the questions can be answered without the images."
            )
            if (
                not SMALLEST_RATIO <= self.token_ratio <= LARGEST_RATIO
            ):  # a likely cause; harmless in a model that learned
                sentences.append(
                    f"Image tokens are {self.token_ratio:.2g} times as large as words, where {SMALLEST_RATIO:g} to "
                    f"{LARGEST_RATIO:g} is usual: take tokens after the encoder's final norm (tap), scale the projector's last "
                    "layer, or warm up longer."
                )
        if not self.gradients["projector"]:
            sentences.append(
                "No gradient reaches the projector: look for a detach, a multiplication by zero or a frozen path between "
                "projector and language model."
            )
        return " ".join(sentences) or None


def image_use(
    model: VisionLanguageModel,
    conversations: Sequence[Conversation],
    *,
    features: PatchFeatures | None = None,
    batch_size: int = 16,
    seed: int = 0,
) -> ImageUse:
    """Measure it on conversations, before, during or after training; nothing of the model is changed.

    Conversations without images, and those whose number of images no other has, are left out.

    Args:
        features: patch tokens of a frozen encoder, read in place of the images.
        batch_size: conversations at a time.
        seed: of which image takes whose place.

    Raises:
        ValueError: no two conversations with different images; or as the collator.
    """
    if model.processor is None:
        raise ValueError("this model has no processor: load it from a folder with a tokenizer, or set model.processor")
    other = shuffled_images([one.images for one in conversations], seed=seed)
    pairs = [(one, replace(one, images=p)) for one, p in zip(conversations, other, strict=True) if p is not None]
    if not pairs:
        raise ValueError(
            f"{len(conversations)} conversations have no two different images: expected at least two, which the "
            "control exchanges"
        )
    collate = Collator(model.processor, features=features)

    def batch_of(chosen: Sequence[Conversation]) -> dict[str, Tensor]:
        return {name: value.to(model.device) for name, value in collate(chosen).items()}

    right = shuffled = blank = TeacherForcedCounts()
    for start in tqdm(range(0, len(pairs), batch_size), desc="image use", unit="batch", leave=False):
        own, others = zip(*pairs[start : start + batch_size], strict=True)
        batch = batch_of(own)
        right += teacher_forced(model, batch)
        shuffled += teacher_forced(model, batch_of(others))
        blank += teacher_forced(model, blank_batch(model, batch))
    first = batch_of([one for one, _ in pairs[:batch_size]])
    return ImageUse(right, shuffled, blank, gradient_norms(model, first), token_ratio(model, first))


@torch.no_grad()
def blank_batch(model: VisionLanguageModel, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The batch with every pixel in the mid-gray that the encoder's preprocessing makes of 128, or its patch tokens."""
    height, width = model.encoder.preprocess.output_size or (224, 224)
    gray = model.encoder.preprocess(torch.full((3, height, width), 128, dtype=torch.uint8)).to(model.device)
    if "patch_tokens" in batch:
        with eval_mode(model):
            ((tokens, _),) = model.encode(gray)
        return batch | {"patch_tokens": tokens.to(batch["patch_tokens"].dtype).expand_as(batch["patch_tokens"])}
    pixels = batch["pixel_values"]
    if gray.shape[1:] != pixels.shape[1:]:  # canvases of other sizes
        gray = gray[:, :, gray.shape[2] // 2, gray.shape[3] // 2, None, None]
    return batch | {"pixel_values": gray.expand_as(pixels)}


def gradient_norms(model: VisionLanguageModel, batch: dict[str, Tensor]) -> dict[str, float | None]:
    """Norm of the gradient of the mean loss per answer token, for each group over its parameters that train.

    The projector is measured over all its parameters where it is frozen. Other groups of which nothing trains, and an
    encoder whose tokens are stored, give None. In evaluation mode; `.grad` and modes stay as they are.
    """
    weights = {name: [w for w in group.parameters() if w.requires_grad] for name, group in group_modules(model).items()}
    thawed = [] if weights["projector"] else list(group_modules(model)["projector"].parameters())
    weights["projector"] = weights["projector"] or thawed
    if "patch_tokens" in batch:
        weights["vision"] = []
    for weight in thawed:
        weight.requires_grad_(True)
    try:
        with eval_mode(model), torch.enable_grad():
            loss = answer_loss(model, batch) / num_answer_tokens(batch)
            wanted = [weight for own in weights.values() for weight in own]
            found = iter(
                torch.autograd.grad(loss, wanted, allow_unused=True) if loss.requires_grad else [None] * len(wanted)
            )
    finally:
        for weight in thawed:
            weight.requires_grad_(False)
    squares = {
        name: [g.float().square().sum() for _ in own if (g := next(found)) is not None] for name, own in weights.items()
    }
    return {name: math.sqrt(sum(map(float, squares[name]))) if own else None for name, own in weights.items()}


@torch.no_grad()
def token_ratio(model: VisionLanguageModel, batch: dict[str, Tensor]) -> float:
    """Root mean square of the image tokens that enter the language model over that of the words of the same texts."""
    ids = batch["input_ids"]
    images: dict[str, Any] = {
        name: batch[name] for name in ("pixel_values", "image_sizes", "patch_tokens") if name in batch
    }
    with eval_mode(model):
        embeds = model.embed(ids, **images).float()
    seen = ids == model.config.image_token_id
    words = ~seen & batch.get("attention_mask", torch.ones_like(ids)).bool()
    return (embeds[seen].square().mean().sqrt() / embeds[words].square().mean().sqrt()).item()
