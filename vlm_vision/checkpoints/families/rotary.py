"""Query and key channels of rotary attention, from a checkpoint's order into the one of `vlm_vision.nn.rope`, and back.

A product of queries and keys does not change when the channels of both are put into another order, so one rotation serves
every layout: plane j of a head of K channels is the channels j and j + K / 2, planes of rows before planes of columns.
"""

from typing import Literal

import torch
from torch import Tensor

from vlm_vision.checkpoints.families.family import Json
from vlm_vision.checkpoints.keys import TensorLayout
from vlm_vision.nn.config import ViTConfig


def channel_order(
    head_dim: int,
    *,
    axes: Literal["rows first", "columns first"] = "rows first",
    planes: Literal["blocks", "alternate"] = "blocks",
    channels: Literal["halves", "neighbors", "axis"] = "halves",
) -> list[int]:
    """For each of our channels of a head, the checkpoint's.

    Args:
        head_dim: K, which 4 divides.
        axes: the axis whose planes come first.
        planes: all planes of an axis, then all of the other; or one of each in turn.
        channels: of plane p: p and p + K / 2; 2 p and 2 p + 1; or halves of each axis's own half of the head.
    """
    count, half = head_dim // 4, head_dim // 2
    first, second = [0] * half, [0] * half
    for axis in range(2):
        place = axis if axes == "rows first" else 1 - axis
        for i in range(count):
            plane = place * count + i if planes == "blocks" else 2 * i + place
            pair = {
                "halves": (plane, plane + half),
                "neighbors": (2 * plane, 2 * plane + 1),
                "axis": (place * half + i, place * half + count + i),
            }[channels]
            first[axis * count + i], second[axis * count + i] = pair
    return first + second


def leading_order(head_dim: int, turned: int) -> list[int]:
    """The order of a head whose first `turned` channels are turned, j with j + turned / 2, and whose others are not."""
    half, still = turned // 2, (head_dim - turned) // 2
    rest = list(range(turned, head_dim))
    return [*range(half), *rest[:still], *range(half, turned), *rest[still:]]


def reordered(order: list[int], heads: int = 1, kept: int = 0) -> TensorLayout:
    """The layout of `heads` heads whose channels are in `order`, then `kept` rows (values) as they are.

    It serves weights (rows, D), biases (rows,) and, with one head, the weights of a norm of each head.
    """
    back = torch.tensor(order).argsort()

    def apply(x: Tensor, index: Tensor) -> Tensor:
        turned, rest = x.split([x.shape[0] - kept, kept])
        turned = turned.unflatten(0, (heads, len(order)))[:, index.to(x.device)].flatten(0, 1)
        return torch.cat([turned, rest])

    return TensorLayout(
        write=lambda x: apply(x, back),
        read=lambda x, shape: apply(x, torch.tensor(order)),
    )


def rope_theta(config: Json, default: float = 10000.0) -> float:
    """Base of the rotary positions. Raises ValueError for a rope_type that transformers' towers refuse too."""
    given = config.get("rope_scaling") or config.get("rope_parameters") or {}
    kind = given.get("rope_type", given.get("type", "default"))
    if kind not in ("default", "axial"):
        raise ValueError(f"rope_type is {kind!r} in a vision tower: expected 'axial'")
    return float(given.get("rope_theta") or config.get("rope_theta") or default)


def rope_back(config: ViTConfig, kind: str = "axial") -> Json:
    """The inverse of `rope_theta`, as rope_parameters. Raises ValueError for a tower without rotary positions."""
    if config.rope is None:
        raise ValueError("transformers cannot express a tower without rotary positions here: set ViTConfig.rope")
    return {"rope_type": kind, "rope_theta": config.rope.base}
