"""Action heads by name, fitted to a model."""

import inspect
from collections.abc import Iterable
from typing import Any

from vlm_vision.nn.fields import check_names
from vlm_vision.robot.observation import PolicySpec
from vlm_vision.vla.heads.base import ActionHead
from vlm_vision.vla.heads.expert import Shape
from vlm_vision.vla.heads.flow import FlowHead
from vlm_vision.vla.heads.parallel import ParallelHead
from vlm_vision.vla.heads.tokens import TokenHead
from vlm_vision.vlm.model import VisionLanguageModel

HEADS: dict[str, type[ActionHead]] = {kind.name: kind for kind in (TokenHead, ParallelHead, FlowHead)}
"""tokens (OpenVLA), parallel (OpenVLA-OFT), flow (pi0)."""


def new_head(name: str, vlm: VisionLanguageModel, spec: PolicySpec, **options: Any) -> ActionHead:
    """A head with random weights, as wide as the language model needs it.

    Args:
        options: of the head, without those that follow from the model.

    Raises:
        ValueError: an unknown name or option, or a language model that the head cannot use.
    """
    check_head_options(name, options)
    text = vlm.config.text_config
    fitted: dict[str, Any] = {}
    if name == "tokens":
        assert vlm.processor is not None
        tokenizer = vlm.processor.tokenizer
        fitted = {"vocab_size": tokenizer.vocab_size, "end_id": tokenizer.eos_token_id}
    elif name == "parallel":
        fitted = {"width": vlm.projector.out_dim}
    else:
        fitted = {"shape": Shape.of(text), "state_dim": spec.state_dim}
    return HEADS[name](action_dim=spec.action_dim, chunk=spec.chunk, **(fitted | options))


def check_head_options(name: str, options: Iterable[str]) -> None:
    """Raise ValueError unless there is a head of this name that takes these options."""
    if name not in HEADS:
        raise ValueError(f"action head {name!r} does not exist: choose one of {', '.join(HEADS)}")
    known = [option for option in inspect.signature(HEADS[name]).parameters if option not in ("action_dim", "chunk")]
    check_names(f"action head {name!r}", options, known)
