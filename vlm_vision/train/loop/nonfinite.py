"""Search for the module whose loss or gradient is not finite."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from vlm_vision.train.loop.shard import gather_full_tensor

ADVICE = "lower the learning rate, or train in float32"


@torch.no_grad()
def first_bad_module(model: nn.Module, forwards: Iterable[Callable[[], Any]]) -> str:
    """The first module whose output holds NaN or infinity, in any process; "the loss itself" if no module does.

    Args:
        model: whose modules are watched.
        forwards: run the model, one after the other; every process has equally many.
    """
    found: list[str] = []
    with _watched(model, found):
        for forward in forwards:
            forward()
    return next(iter(gather_object(found[:1])), "the loss itself")


def first_bad_gradient(model: nn.Module) -> str:
    """The first weight whose gradient holds NaN or infinity. Every process must ask."""
    grown = ((name, weight.grad) for name, weight in model.named_parameters() if weight.grad is not None)
    return next((_plain(name) for name, grad in grown if not gather_full_tensor(grad).isfinite().all()), "their sum")


@contextmanager
def _watched(model: nn.Module, found: list[str]) -> Iterator[None]:
    """Names of modules whose outputs are bad, in the order in which they return."""

    def look(name: str) -> Callable:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            tensors = [one for one in tree_leaves(output) if _holds_floats(one)]
            if not found and not all(one.isfinite().all() for one in tensors):
                found.append(_plain(name) or type(module).__name__)

        return hook

    handles = [module.register_forward_hook(look(name)) for name, module in model.named_modules()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _holds_floats(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _plain(name: str) -> str:
    """Without what wrappers add."""
    return name.removeprefix("module.").replace("_fsdp_wrapped_module.", "").replace("_checkpoint_wrapped_module.", "")
