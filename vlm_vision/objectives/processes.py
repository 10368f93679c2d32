"""Rows of other processes and sums over processes, for objectives. Without torch.distributed there is one process."""

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

P = ParamSpec("P")

# Names of torch 2.13, and those before it.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


def in_float32(objective: Callable[P, Tensor]) -> Callable[P, Tensor]:
    """An objective that computes in float32: its tensors are cast, and autocast is off inside."""

    @wraps(objective)
    def run(*args: P.args, **kwargs: P.kwargs) -> Tensor:
        tensors: Any = [one for one in (*args, *kwargs.values()) if isinstance(one, Tensor)]
        with torch.autocast(tensors[0].device.type, enabled=False):
            cast: Any = {name: _float(value) for name, value in kwargs.items()}
            return objective(*map(_float, args), **cast)  # type: ignore[arg-type]

    return run


def _float(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value


def num_processes(group: dist.ProcessGroup | None = None) -> int:
    """Number of processes; 1 without torch.distributed."""
    return dist.get_world_size(group) if dist.is_available() and dist.is_initialized() else 1


def process_index(group: dist.ProcessGroup | None = None) -> int:
    """Rank of this process."""
    return dist.get_rank(group) if dist.is_available() and dist.is_initialized() else 0


def total(value: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """Sum over processes, in place and without gradient."""
    if num_processes(group) > 1:
        dist.all_reduce(value, group=group)
    return value


def largest(value: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """Maximum over processes, in place and without gradient."""
    if num_processes(group) > 1:
        dist.all_reduce(value, op=dist.ReduceOp.MAX, group=group)
    return value


def rows_of_all(rows: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """(B, ...) of each process -> (processes * B, ...), in order of rank; B must be the same everywhere.

    A row's gradients in all processes are summed in the process that it came from.
    """
    return rows if num_processes(group) == 1 else _GatherRows.apply(rows, group)  # type: ignore[return-value]


def reduce_scatter_rows(rows: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """(processes * B, ...) -> (B, ...): the sum over processes of the rows of this one."""
    processes = num_processes(group)
    if processes == 1:
        return rows
    own = rows.new_empty(len(rows) // processes, *rows.shape[1:])
    _reduce_scatter(own, rows.contiguous(), group=group)
    return own


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, group: dist.ProcessGroup | None) -> Tensor:
        ctx.group = group
        everyone = rows.new_empty(num_processes(group) * len(rows), *rows.shape[1:])
        _all_gather(everyone, rows.contiguous(), group=group)
        return everyone

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return reduce_scatter_rows(gradient, ctx.group), None
