"""Gram anchoring: distance of patch similarities from those of an earlier teacher."""

from typing import Literal

import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from vlm_vision.objectives.processes import in_float32, rows_of_all

Negatives = Literal["clip", "clip_teacher", "keep"]


@in_float32
def gram_loss(
    student: Tensor,
    teacher: Tensor,
    *,
    normalize: bool = True,
    negatives: Negatives = "clip",
    level: Literal["image", "batch"] = "image",
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    """Mean square difference of the patches' dot products, student's and teacher's.

    Siméoni et al. 2025, "DINOv3", section 4.2.

    Args:
        student, teacher: patch tokens (B, N, D), of equal or different widths; B the same in every process.
        normalize: dot products of unit vectors: cosines.
        negatives: dot products below zero count as zero: of both ("clip"), of the teacher, or of neither.
        level: between the patches of an image, or of all images of all processes.
    """
    if normalize:
        student, teacher = F.normalize(student, dim=-1), F.normalize(teacher, dim=-1)
    if level == "batch":
        student, teacher = student.flatten(0, 1), teacher.flatten(0, 1)
        ours, theirs = student @ rows_of_all(student, group).T, teacher @ rows_of_all(teacher, group).T
    else:
        ours, theirs = student @ student.mT, teacher @ teacher.mT
    if negatives != "keep":
        theirs = theirs.clamp(min=0)
    if negatives == "clip":
        ours = ours.clamp(min=0)
    return F.mse_loss(ours, theirs)
