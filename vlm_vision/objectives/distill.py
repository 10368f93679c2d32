"""Distillation: a student's logits or features toward a teacher's."""

import torch.nn.functional as F
from torch import Tensor

from vlm_vision.objectives.processes import in_float32


@in_float32
def hard_distillation_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Cross entropy of the student's logits (B, K) with the teacher's most likely class.

    Touvron et al. 2021, "Training data-efficient image transformers", equation 3, right term.
    """
    return F.cross_entropy(student, teacher.argmax(dim=-1))


@in_float32
def soft_distillation_loss(student: Tensor, teacher: Tensor, *, temperature: float = 1.0) -> Tensor:
    """temperature^2 times KL(teacher || student) of the softened logits (B, K), divided by B K.

    Touvron et al. 2021, "Training data-efficient image transformers", equation 2, divided as its code does
    (facebookresearch/deit, losses.py); Hinton et al. 2015 take the mean over B alone: multiply by K.
    """
    ours, theirs = (student / temperature).log_softmax(dim=-1), (teacher / temperature).log_softmax(dim=-1)
    return F.kl_div(ours, theirs, reduction="sum", log_target=True) * temperature**2 / student.numel()


@in_float32
def feature_distillation_loss(
    student: Tensor, teacher: Tensor, *, cosine: float = 0.9, smooth_l1: float = 0.1
) -> Tensor:
    """cosine (1 - cos(s, t)) + smooth_l1 L1_smooth(s, t), mean over tokens and values.

    Ranzinger et al. 2024, "AM-RADIO: agglomerative vision foundation model", equations 2 and 3; for a summary token
    alone cosine=1, smooth_l1=0.

    Args:
        student, teacher: (..., D), of one width.
    """
    loss = student.new_zeros(())
    if cosine:
        loss = loss + cosine * (1 - F.cosine_similarity(student, teacher, dim=-1)).mean()
    if smooth_l1:
        loss = loss + smooth_l1 * F.smooth_l1_loss(student, teacher)
    return loss
