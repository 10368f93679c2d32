"""Weights with low-rank updates (LoRA, Hu et al. 2021, arXiv:2106.09685) added as they are read, as peft stores them."""

import re

from torch import Tensor

from vlm_vision.checkpoints.checkpoint import Checkpoint
from vlm_vision.checkpoints.towers import WeightSource

_FACTOR = re.compile(r"(?:base_model\.model\.)?(.+)\.lora_([AB])(?:\.default)?\.weight")
_BASE = re.compile(r"(.+)\.base_layer(\..+)")

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


class MergedLowRank:
    """W + scale B A for every weight W that has factors, W for every other; read one at a time, sums in float32.

    Args:
        weights: W by name; a layer that peft wrapped is called `<layer>.base_layer`.
        factors: A and B, in the same file or in a separate one.
        scale: alpha / rank; None for min(rank, 16) / rank, OpenVLA's rule.
        source: name of the checkpoint in an error.

    Raises:
        ValueError: one factor without the other, or of a layer that does not exist; other tensors in a separate file of
            factors.
    """

    def __init__(self, weights: WeightSource, factors: WeightSource, *, scale: float | None, source: str):
        self._weights, self._factors, self._scale = weights, factors, scale
        found = {name: _FACTOR.fullmatch(name) for name in factors.shapes}
        other = [name for name, match in found.items() if match is None]
        if other and factors is not weights:
            raise ValueError(f"{source} holds {other[0]}, which is not a factor of LoRA: merge it with peft first")
        self._pairs: dict[str, dict[str, str]] = {}
        for name, match in found.items():
            if match is not None:
                self._pairs.setdefault(f"{match[1]}.weight", {})[match[2]] = name
        self._stored = {_BASE.sub(r"\1\2", name): name for name in weights.shapes if not _FACTOR.fullmatch(name)}
        self.shapes = {plain: weights.shapes[name] for plain, name in self._stored.items()}
        for layer, pair in self._pairs.items():
            if layer not in self.shapes or len(pair) != 2:
                missing = "the layer" if len(pair) == 2 else f"lora_{'B' if 'A' in pair else 'A'} for it"
                raise ValueError(f"{source} has LoRA factors of {layer}, but not {missing}: it is for another model")

    def get(self, name: str, *, keep: bool = True) -> Tensor:
        pair = self._pairs.get(name)
        stored = self._weights.get(self._stored[name], keep=keep and pair is None)
        if pair is None:
            return stored
        down, up = (self._factors.get(pair[side], keep=False).float() for side in "AB")
        scale = min(len(down), 16) / len(down) if self._scale is None else self._scale
        return stored.float() + scale * (up @ down)


def described(adapter: Checkpoint) -> tuple[str, float]:
    """(name of the base model, alpha / rank) of an adapter of peft.

    Raises:
        ValueError: an adapter other than plain LoRA of one rank.
    """
    config = adapter.json(CONFIG)
    odd = [
        name
        for name in ("use_dora", "use_rslora", "fan_in_fan_out", "rank_pattern", "alpha_pattern")
        if config.get(name)
    ]
    rank, alpha = config.get("r"), config.get("lora_alpha")
    numbers = all(isinstance(n, int | float) and n > 0 for n in (rank, alpha))
    if config.get("peft_type") != "LORA" or odd or not numbers:
        options = ", ".join(odd) or f"peft_type {config.get('peft_type')!r}, r {rank!r}, lora_alpha {alpha!r}"
        raise ValueError(f"{adapter.path / CONFIG} has {options}: expected plain LoRA; merge it with peft first")
    return str(config.get("base_model_name_or_path")), float(alpha) / float(rank)  # type: ignore[arg-type]


def on_base(weights: WeightSource, adapter: Checkpoint) -> MergedLowRank:
    """The base's weights with an adapter's; errors as `MergedLowRank` and `described`."""
    return MergedLowRank(weights, adapter.weights_in(WEIGHTS), scale=described(adapter)[1], source=str(adapter))
