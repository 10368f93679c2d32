"""A teacher that is the exponential moving average of a student."""

import copy
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


class EmaTeacher(nn.Module):
    """teacher <- momentum * teacher + (1 - momentum) * student, parameter by parameter. Tarvainen and Valpola 2017 (arXiv:1703.01780).

    Starts as a copy of the student, in float32 whatever the student is in: in half precision small steps would round to
    none. It has no gradients and stays in evaluation mode. With FSDP2 make it before the student is sharded, then shard
    `teacher.module` in the same way.

    Args:
        student: not wrapped or sharded yet.
    """

    def __init__(self, student: nn.Module):
        super().__init__()
        self.module = copy.deepcopy(student).float().requires_grad_(False)
        self.eval()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the averaged module gives."""
        with torch.no_grad():
            return self.module(*args, **kwargs)

    def train(self, mode: bool = True) -> "EmaTeacher":
        """A teacher stays in evaluation mode, whatever the module around it is set to."""
        return super().train(False)

    @torch.no_grad()
    def update(self, student: nn.Module, momentum: float) -> None:
        """Move toward the student, which may be wrapped by DDP or `torch.compile`; buffers are copied.

        Sharded parameters are averaged shard by shard: no process talks to another.

        Raises:
            ValueError: a momentum outside 0 to 1, a student that is another model or sharded in another way.
        """
        if not 0 <= momentum <= 1:
            raise ValueError(f"momentum is {momentum}, expected 0 (the student) to 1 (the teacher as it is)")
        student = extract_model_from_parallel(student, keep_torch_compile=False)
        differ = _layout(self.module).items() ^ _layout(student).items()
        if differ:
            raise ValueError(
                f"teacher and student differ at {min(name for name, _ in differ)}: update from the model that the teacher "
                "was made of, both sharded in the same way or neither"
            )
        ours, theirs = ([_local(one) for one in model.parameters()] for model in (self.module, student))
        torch._foreach_lerp_(ours, [one.float() for one in theirs], 1 - momentum)  # pyright: ignore
        buffers = dict(student.named_buffers())
        for name, buffer in self.module.named_buffers():
            buffer.copy_(buffers[name])


def _layout(model: nn.Module) -> dict[str, tuple]:
    """Shape of each parameter, and how it is sharded."""
    return {name: (one.shape, getattr(one, "placements", None)) for name, one in model.named_parameters()}


def _local(parameter: Tensor) -> Tensor:
    """This process's part."""
    return parameter.to_local() if isinstance(parameter, DTensor) else parameter
