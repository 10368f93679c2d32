"""The loss of visual instruction tuning: cross entropy of the answers, weighted by token."""

import torch.nn.functional as F
from torch import Tensor, nn

from vlm_vision.data.conversations.labels import IGNORED


def answer_loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Sum over answer tokens of -log p(token | what is before it), a scalar in fp32.

    Divide it by the number of answer tokens of the whole step, over all its micro-batches and processes: then the step
    does not depend on how the batch is cut. Logits are computed only where some row of the batch has an answer.

    Args:
        model: a `VisionLanguageModel`, wrapped or not.
        batch: its inputs, and labels (B, T) with -100 where there is no loss.
    """
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    labels = batch["labels"]
    predicts = (labels[:, 1:] != IGNORED).any(dim=0).nonzero().squeeze(1)  # positions whose next token is an answer
    logits = model(**inputs, logits_to_keep=predicts, use_cache=False).logits
    if logits.shape[1] != len(predicts):  # a language model without logits_to_keep
        logits = logits[:, predicts]
    return F.cross_entropy(
        logits.flatten(0, 1).float(), labels[:, predicts + 1].flatten(), ignore_index=IGNORED, reduction="sum"
    )


def num_answer_tokens(batch: dict[str, Tensor]) -> Tensor:
    """How many terms `answer_loss` sums."""
    return (batch["labels"][:, 1:] != IGNORED).sum()
