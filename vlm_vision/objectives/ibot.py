"""iBOT: cross entropy of the student on masked patches with the teacher on the same visible patches."""

from torch import Tensor

from vlm_vision.objectives.processes import in_float32


@in_float32
def ibot_loss(student: Tensor, teacher: Tensor, mask: Tensor, *, temperature: float = 0.1) -> Tensor:
    """Mean over images of the mean over masked patches of -sum_k t_k log softmax(s / temperature)_k.

    Zhou et al. 2022, "iBOT: image BERT pre-training with online tokenizer", equation 2. An image without a masked patch
    counts as zero.

    Args:
        student: logits (M, K) of the masked patches, image after image in reading order: `logits[mask]`.
        teacher: probabilities (M, K) of the same patches.
        mask: (B, N), True where a patch is masked, M in total.

    Raises:
        ValueError: a number of rows other than that of masked patches.
    """
    mask = mask.bool()
    counts = mask.sum(dim=1)
    if not len(student) == len(teacher) == int(counts.sum()):
        raise ValueError(
            f"{len(student)} rows of the student and {len(teacher)} of the teacher for {int(counts.sum())} masked patches: "
            "pass the masked patches alone, logits[mask]"
        )
    weights = (1 / counts.clamp(min=1)).repeat_interleave(counts, output_size=len(student))
    each = (teacher * (student / temperature).log_softmax(dim=-1)).sum(dim=-1)
    return -(each * weights).sum() / len(mask)
