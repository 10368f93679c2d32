"""Contrastive training of a pair as a task for `Step`: the loss over the pairs of all processes."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from vlm_vision.objectives.clip import clip_loss
from vlm_vision.objectives.siglip import Exchange, siglip_loss
from vlm_vision.pair import Pair
from vlm_vision.train.loop.step import Batch, Step, Task
from vlm_vision.train.optim.groups import parameter_groups
from vlm_vision.train.settings import Training

LARGEST_SCALE = math.log(100)
"""Largest logarithm of the logit scale in CLIP (Radford et al. 2021, section 2.5)."""


@dataclass(frozen=True, kw_only=True)
class ContrastiveLossSettings:
    """The contrastive loss, and how processes share its work."""

    loss: Literal["siglip", "clip"] = "siglip"
    """Loss: siglip (a sigmoid for each pair) or clip (a softmax over the batch)."""
    chunk_size: int = 1024
    """Images that the siglip loss compares at a time: fewer take less memory."""
    exchange: Exchange = "ring"
    """Exchange of texts between processes for the siglip loss: from neighbor to neighbor (ring), or all at once (gather)."""
    rows: Literal["local", "global"] = "local"
    """Logits that a process computes for the clip loss: those of its part of the rows (local) or of all rows (global)."""


class PairWithLoss(nn.Module):
    """A pair whose output is its loss, so that wrappers for several processes see one forward.

    Scale and bias become vectors of one value: a scalar cannot be sharded.
    """

    def __init__(self, pair: Pair, contrast: ContrastiveLossSettings):
        super().__init__()
        for value in (pair.logit_scale, pair.logit_bias):
            if value is not None:
                value.data = value.data.reshape(1)
        self.pair, self.contrast = pair, contrast

    def forward(self, pixels: Tensor, ids: Tensor) -> Tensor:
        """The mean over this process's pairs; over processes, its mean is the loss of the whole batch."""
        pair, contrast = self.pair, self.contrast
        seen, read, scale = pair.embed_images(pixels), pair.embed_texts(ids), pair.logit_scale.exp()
        if contrast.loss == "clip":
            return clip_loss(seen, read, scale, pair.logit_bias, rows=contrast.rows)
        assert pair.logit_bias is not None
        return siglip_loss(
            seen, read, scale, pair.logit_bias, chunk_size=contrast.chunk_size, exchange=contrast.exchange
        )


def contrastive_step(
    settings: Training,
    accelerator: Accelerator,
    pair: Pair,
    contrast: ContrastiveLossSettings,
    *,
    rates: dict[str, float],
) -> Step:
    """Steps that train a pair.

    Every step compares all of its pairs: a process's share is one micro-batch.

    Args:
        rates: learning rate of image, text and logits (scale and bias); what is left out is frozen.

    Raises:
        ValueError: several micro-batches in a step, a siglip loss without bias, or nothing to train.
    """
    share = settings.micro_batch_size * accelerator.num_processes
    if settings.batch_size != share:
        raise ValueError(
            f"batch_size {settings.batch_size} is cut into pieces of {share}, but the loss compares all pairs of a batch: "
            f"set micro_batch_size to {settings.batch_size // accelerator.num_processes}; gradient_checkpointing saves memory"
        )
    if contrast.loss == "siglip" and pair.logit_bias is None:
        raise ValueError(
            "the siglip loss needs a pair with a logit_bias: start from a SigLIP model, or choose the loss clip"
        )
    for name, part in _parts(pair).items():
        part.requires_grad_(name in rates)
    pair.image.model.gradient_checkpointing = pair.text.model.gradient_checkpointing = settings.gradient_checkpointing

    def parts(model: nn.Module) -> dict[str, nn.Module]:
        return {name: part for name, part in _parts(_pair(model)).items() if name in rates}

    def groups(model: nn.Module) -> list[dict]:
        return parameter_groups(
            [(part, rates[name]) for name, part in parts(model).items()], weight_decay=settings.weight_decay
        )

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        return model(batch["pixels"], batch["ids"]) * len(batch["ids"])

    task = Task(
        loss=loss,
        terms=lambda batch: torch.tensor(len(batch["ids"]), device=batch["ids"].device),
        unit="pair",
        parts=parts,
        groups=groups,
        layers=frozenset({"Block"}),
        aside=() if "image" in rates else (pair.image,),
    )
    return Step(settings, accelerator, PairWithLoss(pair, contrast), task)


@torch.no_grad()
def keep_scale(pair: Pair) -> None:
    """Bring the logit scale back to at most 100, as CLIP does after every step."""
    pair.logit_scale.clamp_(max=LARGEST_SCALE)


def _pair(model: nn.Module) -> Pair:
    pair = model.get_submodule("pair")
    assert isinstance(pair, Pair)
    return pair


def _parts(pair: Pair) -> dict[str, nn.Module]:
    logits = [pair.logit_scale] if pair.logit_bias is None else [pair.logit_scale, pair.logit_bias]
    return {"image": pair.image, "text": pair.text, "logits": nn.ParameterList(logits)}
