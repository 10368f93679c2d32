"""Distillation of several frozen teachers' features as a task for `Step`, and the similarity of a student to them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader

from vlm_vision.data.images.batches import ImageBatch, ImageDataset, collate
from vlm_vision.data.images.samples import Sample
from vlm_vision.data.images.views import Plain
from vlm_vision.encoder import Encoder, eval_mode
from vlm_vision.load_encoder import load, load_shape
from vlm_vision.nn.output import Tap, VisionOutput
from vlm_vision.preprocess.spec import IMAGENET, Preprocess
from vlm_vision.tokens.training.weightless import remove_weights
from vlm_vision.train.loop.step import Batch, Step, Task
from vlm_vision.train.optim.groups import parameter_groups
from vlm_vision.train.settings import Training
from vlm_vision.train.tasks.distill_stored import StoredTeachers, stored_output
from vlm_vision.train.tasks.distill_student import AgglomerativeStudent, TeacherFeatures
from vlm_vision.train.tasks.supervised import renormalize

AS_DRAWN = Preprocess(
    resize="none", resize_to=(0, 0), resample="bicubic", crop=None, rescale=1.0, mean=(0, 0, 0), std=(1, 1, 1)
)
"""The normalization of views: none, they are in 0..255."""


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """A frozen encoder whose features the student learns.

    Raises:
        ValueError: a weight that is not positive.
    """

    source: str
    """Teacher to load, an argument of vlm_vision.load with one tower."""
    name: str = ""
    """Name of the teacher in figures and files; empty for the last part of `source`."""
    image_size: int = 0
    """Side in pixels to which the teacher resizes images; 0 for its own."""
    tap_layer: int = -1
    """Block whose tokens the student learns; -1 for the last, which adds the pooled vector."""
    tap_norm: bool = True
    """Apply the final norm to the tokens."""
    weight: float = 1.0
    """Weight of the teacher's losses in the sum."""

    def __post_init__(self) -> None:
        if not self.weight > 0:
            raise ValueError(
                f"weight of teacher {self.source} is {self.weight}: it must be positive; remove the teacher if you do not need it"
            )

    @property
    def called(self) -> str:
        return self.name or Path(self.source).name

    def read(self, *, weights: bool = True) -> Encoder:
        """The tower, frozen.

        Args:
            weights: False for one whose weights are not loaded, see `vlm_vision.tokens.training.weightless`.

        Raises:
            ValueError: several towers, or one that does not see squares of one size.
        """
        options: dict[str, Any] = {"tap": Tap(self.tap_layer, self.tap_norm), "image_size": self.image_size or None}
        tower = load(self.source, **options) if weights else remove_weights(load_shape(self.source, **options))
        if not isinstance(tower, Encoder):
            raise ValueError(f"teacher {self.source} has several towers: write an entry in teachers for each of them")
        square_side(tower, f"teacher {self.source}")
        return tower.requires_grad_(False).eval()


class StudentWithLoss(nn.Module):
    """A student whose output is its loss, so that wrappers for several processes see one forward."""

    def __init__(self, student: AgglomerativeStudent, weights: Sequence[float]):
        super().__init__()
        self.student, self.weights = student, tuple(weights)

    def forward(self, pixels: Tensor, targets: Sequence[VisionOutput]) -> Tensor:
        """The weighted sum over teachers, a mean over images.

        Args:
            pixels: (B, 3, H, W), as the student sees them.
            targets: output of each teacher.
        """
        output = self.student.encode(pixels)
        each = zip(self.weights, self.student.each(), targets, strict=True)
        return torch.stack([weight * heads.loss(output, one) for weight, heads, one in each]).sum()


def distill_step(
    settings: Training, accelerator: Accelerator, model: StudentWithLoss, teachers: Sequence[Encoder], lr: float
) -> Step:
    """Steps that train a student and its heads on batches of "views" (B, 3, H, W) in 0..255; a term of the loss is an image.

    Args:
        teachers: on the accelerator's device, whole in every process; each sees the views in its own size, unless the batches
            hold its output, of `StoredTeachers`.
    """
    encoder = model.student.encoder
    encoder.model.gradient_checkpointing = settings.gradient_checkpointing

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        views = batch["views"]
        return model(renormalize(encoder, views, AS_DRAWN), teacher_outputs(teachers, views, batch)) * len(views)

    def parts(model: nn.Module) -> dict[str, nn.Module]:
        return {name: model.get_submodule(f"student.{name}") for name in ("encoder", "heads")}

    task = Task(
        loss=loss,
        terms=lambda batch: torch.tensor(len(batch["views"]), device=batch["views"].device),
        unit="picture",
        parts=parts,
        groups=lambda model: parameter_groups(
            [(part, lr) for part in parts(model).values()], weight_decay=settings.weight_decay
        ),
        layers=frozenset({"Block"}),
    )
    return Step(settings, accelerator, model, task)


@torch.no_grad()
def teacher_outputs(
    teachers: Sequence[Encoder], views: Tensor, stored: Mapping[str, Tensor] = MappingProxyType({})
) -> list[VisionOutput]:
    """What each teacher gives for views (B, 3, H, W) in 0..255, or what `stored` holds of it, as `StoredTeachers` makes it."""
    if stored.keys() - {"views"}:
        return [stored_output(teacher, stored, number) for number, teacher in enumerate(teachers)]
    return [teacher(renormalize(teacher, views, AS_DRAWN)) for teacher in teachers]


@torch.no_grad()
def standardize(
    accelerator: Accelerator,
    student: AgglomerativeStudent,
    teachers: Sequence[Encoder],
    batches: Iterable[ImageBatch],
    stored: StoredTeachers | None = None,
) -> None:
    """Set mean and std of the heads by the teachers' features of these views, those of all processes together.

    A channel that varies less than a thousandth of the average channel is divided by that much.
    """
    heads = {f"{i}/{part}": head for i, both in enumerate(student.each()) for part, head in both.each().items()}
    sums = {key: torch.zeros(3, len(head.mean), dtype=torch.float64) for key, head in heads.items()}
    for drawn in batches:
        with accelerator.autocast():
            told = teacher_outputs(teachers, drawn.views[0].to(accelerator.device), _read(accelerator, stored, drawn))
        for i, (both, out) in enumerate(zip(student.each(), told, strict=True)):
            for part, values in both.features(out).items():
                rows = values.flatten(0, -2).double().cpu()
                sums[f"{i}/{part}"] += torch.stack([torch.ones_like(rows), rows, rows.square()]).sum(dim=1)
    for key, head in heads.items():
        count, total, squares = torch.as_tensor(accelerator.reduce(sums[key].to(accelerator.device), "sum"))
        mean = total / count
        std = (squares / count - mean.square()).clamp_min(0).sqrt()
        head.mean.copy_(mean)
        head.std.copy_(std.clamp_min(1e-3 * std.mean().item() + 1e-12))


@torch.no_grad()
def teacher_cosine(
    settings: Training,
    accelerator: Accelerator,
    student: AgglomerativeStudent,
    teachers: Sequence[Encoder],
    samples: Sequence[Sample],
    view: Plain,
    stored: StoredTeachers | None = None,
) -> dict[str, float]:
    """Mean cosine similarity to what the teachers give for images, in their own units and on their grids.

    With it, that of the best constant: of all vectors that do not depend on image and place, the one nearest to the
    teacher's. Every process must call it and sees its share. An image that cannot be decoded gives way to the next.

    Args:
        student: on the accelerator's device, as the teachers; one that is sharded within `Step.measured`.
        view: of every image.
        stored: outputs of the teachers; None to encode the views.

    Returns:
        "eval_cosine/TEACHER/patches", "eval_constant/TEACHER/patches", and so for "summary" where there is one.
    """
    size, processes = settings.micro_batch_size, accelerator.num_processes
    batches = [list(range(i, min(i + size, len(samples)))) for i in range(0, len(samples), size)]
    turns = range(accelerator.process_index, -(-len(batches) // processes) * processes, processes)
    loader = DataLoader(
        ImageDataset(samples, [view]),
        batch_sampler=[batches[min(turn, len(batches) - 1)] for turn in turns],
        collate_fn=collate,
        num_workers=settings.workers,
        generator=torch.Generator(),
    )
    sums: dict[str, Tensor] = {}
    with eval_mode(student):
        for turn, drawn in zip(turns, loader, strict=True):
            views = drawn.views[0].to(accelerator.device)
            with accelerator.autocast():
                seen = student.encode(renormalize(student.encoder, views, AS_DRAWN))
                outputs = teacher_outputs(teachers, views, _read(accelerator, stored, drawn))
                for heads, told in zip(student.each(), outputs, strict=True):
                    for key, value in heads.cosine_sums(seen, told).items():
                        counts = turn < len(batches)  # past the last batch a process only keeps the others company
                        sums[key] = sums.get(key, torch.zeros_like(value)) + value * counts
    for key in sums:
        sums[key] = torch.as_tensor(accelerator.reduce(sums[key], "sum")) / len(samples)
    return {key: value.norm().item() if value.ndim else value.item() for key, value in sums.items()}


def _read(accelerator: Accelerator, stored: StoredTeachers | None, drawn: ImageBatch) -> Batch:
    """What is stored of the teachers for a batch, on the accelerator's device."""
    if stored is None:
        return {}
    return {name: value.to(accelerator.device) for name, value in stored(drawn.images).items()}


def teacher_features(name: str, teacher: Encoder) -> TeacherFeatures:
    """Its widths at its tap."""
    config = teacher.config
    pooled = config.pool != "none" and teacher.tap.blocks(config.depth) == (config.depth - 1,)
    return TeacherFeatures(
        name, teacher.embed_dim, config.pooled_dim if pooled else teacher.embed_dim * config.class_token
    )


def square_side(encoder: Encoder, name: str) -> int:
    """Pixels along a side of what it sees. Raises ValueError where that is no square of one size."""
    size = encoder.preprocess.output_size
    if size is None or size[0] != size[1]:
        raise ValueError(
            f"{name} takes images of {size or 'any size'}: expected one square size, as views have; set image_size"
        )
    return size[0]


def center_crop_preprocess(side: int) -> Preprocess:
    """The middle square of an image, in ImageNet's normalization: what a new student sees, and the test shows."""
    mean, std = IMAGENET
    square = (side, side)
    return Preprocess(
        resize="shortest_edge", resize_to=square, resample="bicubic", crop=square, rescale=1 / 255, mean=mean, std=std
    )
