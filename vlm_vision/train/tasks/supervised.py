"""Supervised training of a classifier as a task for `Step`: labels, a frozen teacher, and an average of the weights."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from vlm_vision.checkpoints.manifest import renew_manifest
from vlm_vision.checkpoints.save import hf_files
from vlm_vision.data.images.views import normalize_views
from vlm_vision.encoder import Encoder, Origin
from vlm_vision.files import read_json, write_json
from vlm_vision.load_encoder import load
from vlm_vision.nn.fields import VIT_FIELDS, ViTFields, check_names
from vlm_vision.nn.output import Tap
from vlm_vision.nn.vit import VisionTransformer
from vlm_vision.objectives.distill import hard_distillation_loss, soft_distillation_loss
from vlm_vision.preprocess.spec import Preprocess
from vlm_vision.train.loop.step import Batch, Step, Task
from vlm_vision.train.optim.ema import EmaTeacher
from vlm_vision.train.optim.layer_decay import layer_groups
from vlm_vision.train.settings import Training

PLAIN = {"vit": "vit", "deit": "deit", "vit_mae": "vit"}
"""Families whose classifier reads CLS without a pooler -> family of the classifier (transformers has none for MAE)."""


@dataclass(frozen=True)
class DistillLossSettings:
    """Settings of distillation from a teacher. Touvron et al. 2021, "Training data-efficient image transformers", section 4.

    Raises:
        ValueError: alpha outside 0..1, or a temperature that is not positive.
    """

    kind: Literal["hard", "soft"] = "hard"
    """Target of the student: the teacher's most likely class (hard), or all its logits (soft)."""
    alpha: float = 0.5
    """Share of the loss that comes from the teacher, 0 to 1; the rest comes from the labels."""
    temperature: float = 1.0
    """Temperature of both logits for kind soft: 1 in DeiT's code, 3 in its paper."""

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1 or self.temperature <= 0:
            raise ValueError(f"{self}: expected alpha between 0 and 1, and a positive temperature")


class ClassifierWithLoss(nn.Module):
    """A classifier whose output is its loss, so that wrappers for several processes see one forward.

    Args:
        encoder: with a classification head.
        average: whether an average of its weights is kept, as `average`; the caller moves it after each step.
    """

    def __init__(
        self, encoder: Encoder, distill: DistillLossSettings = DistillLossSettings(), *, average: bool = False
    ):
        super().__init__()
        self.encoder, self.distill = encoder, distill
        self.average = EmaTeacher(encoder) if average else None

    def forward(self, pixels: Tensor, targets: Tensor, told: Tensor | None = None) -> Tensor:
        """The mean over images (B, 3, H, W) with targets (B, K), and the teacher's logits (B, K) where there is one.

        A student with a distillation token learns labels by its class head and the teacher by its distillation head;
        another one learns both by its one head.
        """
        vit, out = self.encoder.model, self.encoder(pixels, patches=False)
        if told is None:
            return F.cross_entropy(out.logits.float(), targets)
        labeled = copied = out.logits
        if vit.head is not None and vit.head_dist is not None:
            labeled, copied = vit.head(out.cls_token), vit.head_dist(out.register_tokens[:, 0])
        if self.distill.kind == "hard":
            follow = hard_distillation_loss(copied, told)
        else:
            follow = soft_distillation_loss(copied, told, temperature=self.distill.temperature)
        return (1 - self.distill.alpha) * F.cross_entropy(labeled.float(), targets) + self.distill.alpha * follow


def supervised_step(
    settings: Training,
    accelerator: Accelerator,
    model: ClassifierWithLoss,
    *,
    lr: float,
    layer_decay: float = 1.0,
    teacher: Encoder | None = None,
) -> Step:
    """Steps that train a classifier on batches of "pixels" (B, 3, H, W) and "targets" (B, K).

    Args:
        lr: of the head; layers below have it times `layer_decay` for each layer between.
        teacher: frozen, whole in every process; sees the student's pixels as its own preprocessing would make them.

    Raises:
        ValueError: a layer_decay that is not above 0 and at most 1.
    """
    if teacher is not None:
        teacher.to(accelerator.device).requires_grad_(False).eval()
    ours = model.encoder.preprocess

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        told = None
        if teacher is not None:
            with torch.no_grad():
                told = teacher(renormalize(teacher, batch["pixels"], ours)).logits
        return model(batch["pixels"], batch["targets"], told) * len(batch["targets"])

    task = Task(
        loss=loss,
        terms=lambda batch: torch.tensor(len(batch["targets"]), device=batch["targets"].device),
        unit="picture",
        parts=lambda model: {name: model.get_submodule(f"encoder.model.{name}") for name in ("blocks", "head")},
        groups=lambda model: layer_groups(
            encoder_of(model), lr=lr, weight_decay=settings.weight_decay, decay=layer_decay
        ),
        layers=frozenset({"Block"}),
    )
    return Step(settings, accelerator, model, task)


def classifier(encoder: Encoder, num_classes: int, changes: ViTFields) -> Encoder:
    """The encoder with a head for so many classes, which is new unless it had one for as many.

    Args:
        changes: fields of `ViTConfig` that are to differ, such as drop_path or class_input.

    Raises:
        ValueError: a change that needs other weights, or a classifier that transformers has no layout for.
    """
    check_names("ViTConfig", changes, VIT_FIELDS)
    family = PLAIN.get(encoder.origin.family, encoder.origin.family)
    if encoder.origin.family in PLAIN:
        changes = {"pool_head": "none", "pool_dim": 0} | changes
    model = VisionTransformer(replace(encoder.config, **{**changes, "num_classes": num_classes}))
    own, state = model.state_dict(), encoder.model.state_dict()
    kept = {name: value for name, value in state.items() if name in own and value.shape == own[name].shape}
    new = {name for name in own.keys() - kept.keys() if not name.startswith(("head.", "head_dist."))}
    if new:
        raise ValueError(
            f"changes {changes} of a loaded encoder need new weights such as {min(new)}: remove these changes"
        )
    model.load_state_dict(kept, strict=False)
    if model.head_dist is not None:
        family = "deit"
    hf_files(model, own, family, encoder.preprocess)  # tells now what could not be written after days
    made = Encoder(model, preprocess=encoder.preprocess, origin=Origin(family, encoder.origin.reference))
    made.hub_id = encoder.hub_id
    return made


def read_teacher(source: str, num_classes: int) -> Encoder:
    """A classifier whose classes are those of the data, in their order.

    Raises:
        ValueError: several towers, no head, or one for another number of classes.
    """
    teacher = load(source, tap=Tap())
    if not isinstance(teacher, Encoder) or teacher.config.num_classes != num_classes:
        has = f"{teacher.config.num_classes} classes" if isinstance(teacher, Encoder) else "several towers"
        raise ValueError(
            f"teacher {source} has {has}: expected one classifier for the {num_classes} classes of the data"
        )
    return teacher


def renormalize(encoder: Encoder, pixels: Tensor, ours: Preprocess) -> Tensor:
    """Pixels (B, 3, H, W) that `ours` normalized, in the encoder's normalization and, where it has one, its size."""
    std, mean = (torch.tensor(each, device=pixels.device).view(3, 1, 1) for each in (ours.std, ours.mean))
    shown, size = (pixels * std + mean) / ours.rescale, encoder.preprocess.output_size
    if size is not None and size != tuple(shown.shape[-2:]):
        shown = F.interpolate(shown, size=size, mode="bicubic", antialias=True)
    return normalize_views(shown, encoder.preprocess)


def save_classifier(encoder: Encoder, folder: Path, classes: Sequence[str]) -> None:
    """Write it for transformers and `vlm_vision.load`, its classes by name."""
    encoder.save_pretrained(folder)
    named = {"id2label": {str(i): name for i, name in enumerate(classes)}}
    named |= {"label2id": {name: i for i, name in enumerate(classes)}}
    write_json(folder / "config.json", read_json(folder / "config.json") | named)
    renew_manifest(folder, "config.json")


def encoder_of(model: nn.Module) -> Encoder:
    """The one that learns."""
    assert isinstance(model, ClassifierWithLoss)
    return model.encoder


def ema_encoder(model: nn.Module) -> EmaTeacher | None:
    """That of the weights, where it is kept."""
    assert isinstance(model, ClassifierWithLoss)
    return model.average
