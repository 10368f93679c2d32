"""Fully sharded data parallel training (FSDP2): each process keeps its part of weights, gradients and optimizer state.

It calls `fully_shard` of torch. Each layer is gathered for its forward or backward pass and freed again; weights between the layers
are gathered with the model. A frozen encoder is small compared with a language model and stays whole in every process.
"""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from vlm_vision.nn.position import PositionTable


def shard(
    model: nn.Module,
    device: torch.device,
    *,
    layers: Collection[str],
    aside: Collection[nn.Module] = (),
    dtype: torch.dtype | None = None,
) -> None:
    """Shard a model in place over all processes. Make the optimizer afterwards: the parameters are others.

    Args:
        model: the same in every process; it may be on the CPU, each process keeps its part on `device`.
        device: of this process.
        layers: names of the classes whose modules are gathered one by one.
        aside: modules that do not train and stay whole.
        dtype: in which layers are gathered and computed; parts are kept, and gradients summed, in the weights' own. Run
            the model under autocast to it.
    """
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    # Not only the layers' but also the model's own weights are let go after a forward, so that between steps and after an
    # evaluation every parameter is a part.
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=dtype and torch.float32, cast_forward_inputs=False)
    whole = {weight for module in aside for weight in module.to(device).parameters()}
    for module in model.modules():
        if isinstance(module, PositionTable):
            module.keeps = False
    found = [one for one in model.modules() if type(one).__name__ in layers and not whole & set(one.parameters())]
    still = replace(
        policy, reduce_dtype=None
    )  # torch looks for gradients to widen in layers that were never gathered too
    for layer in reversed(found):  # an outer one comes before what it holds
        trains = any(weight.requires_grad for weight in layer.parameters())
        fully_shard(layer, mesh=mesh, mp_policy=policy if trains else still, reshard_after_forward=True)
    fully_shard(model, mesh=mesh, mp_policy=policy, reshard_after_forward=True, ignored_params=whole)


@contextmanager
def accumulate_gradients(model: nn.Module, *, last: bool) -> Iterator[None]:
    """Gradients of a backward inside stay in this process until that of the last micro-batch of a step."""
    assert isinstance(model, FSDPModule)
    model.set_requires_gradient_sync(last)
    yield


@contextmanager
def unsharded(model: nn.Module) -> Iterator[None]:
    """What is between the layers stays whole inside, so that parts of the model can be called. Every process must enter."""
    assert isinstance(model, FSDPModule)
    model.unshard()
    yield
    model.reshard()


def gather_full_tensor(value: Tensor) -> Tensor:
    """The whole of a tensor of which each process has a part; every process must ask. Others are returned as they are."""
    return value.full_tensor() if isinstance(value, DTensor) else value


@torch.no_grad()
def gather(model: nn.Module, into: nn.Module | None) -> None:
    """Copy all weights and buffers into a model of the same kind that is not sharded. Every process must call it.

    Args:
        into: the model that takes them; None in processes that only give their parts.
    """
    wanted = None if into is None else dict(into.named_parameters())
    for name, weight in model.named_parameters():
        value = gather_full_tensor(weight)
        if wanted is not None:
            wanted[name].copy_(value)
    if into is not None:
        for name, buffer in model.named_buffers():
            into.get_buffer(name).copy_(buffer)
