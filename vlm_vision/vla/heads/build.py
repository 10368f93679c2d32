"""Action heads by name, fitted to a model."""

from typing import Any

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
        options: of the head; what follows from the model is not given.

    Raises:
        ValueError: an unknown name or option, or a language model that the head cannot use.
    """
    if name not in HEADS:
        raise ValueError(f"there is no action head {name!r}: choose one of {', '.join(HEADS)}")
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
    try:
        return HEADS[name](action_dim=spec.action_dim, chunk=spec.chunk, **(fitted | options))
    except TypeError as error:
        raise ValueError(f"these are not the options of action head {name!r}: {error}") from None
