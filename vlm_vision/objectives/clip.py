"""CLIP: contrastive cross entropy of pairs, in both directions."""

from typing import Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from vlm_vision.objectives.processes import in_float32, process_index, rows_of_all


@in_float32
def clip_loss(
    image: Tensor,
    text: Tensor,
    logit_scale: Tensor,
    logit_bias: Tensor | None = None,
    *,
    rows: Literal["local", "global"] = "local",
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    """1/2 of the mean over i of -log softmax(s I T')_ii and -log softmax(s T I')_ii, over the pairs of all processes.

    Radford et al. 2021, "Learning transferable visual models from natural language supervision", figure 3.

    Args:
        image, text: (B, E), L2-normalised, row i of one belonging to row i of the other; B the same in every process.
        logit_scale: s, a scalar, already exponentiated.
        logit_bias: a scalar added to all logits, or none; it changes nothing but keeps its place in the graph.
        rows: "local": each process computes the logits of its own rows, B x all; "global": every process computes all of
            them, which gives the same gradients and costs more.
    """
    every_image, every_text = rows_of_all(image, group), rows_of_all(text, group)
    bias = 0 if logit_bias is None else logit_bias
    if rows == "global":
        by_image = logit_scale * every_image @ every_text.T + bias
        by_text, first = by_image.T, 0
    else:
        by_image = logit_scale * image @ every_text.T + bias
        by_text = logit_scale * text @ every_image.T + bias
        first = process_index(group) * len(image)
    own = torch.arange(first, first + len(by_image), device=image.device)
    return (F.cross_entropy(by_image, own) + F.cross_entropy(by_text, own)) / 2
