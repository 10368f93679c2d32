"""A row of the census: how one model type is built tiny, and how its own code gives the tokens of its tower."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor, nn

import vlm_vision as vv

Json = dict[str, Any]


class Reference(NamedTuple):
    """What transformers' own code gives."""

    tokens: Tensor
    """(B, frames * h * w, D) in raster order, before any merger at the end of the tower."""
    deepstack: tuple[Tensor, ...] = ()
    """(B, M, E) each, in raster order."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One model type, or one more configuration of it."""

    model_type: str
    label: str = ""
    """Name of the row, for a model type with several."""
    tower: str
    """Name of the tower inside the model, with dots."""
    reference: Callable[[nn.Module, Tensor], Reference]
    """(tower, pixels (B, C, H, W) or (B, T, C, H, W)) -> its tokens."""
    changes: Json = field(default_factory=dict)
    """Fields of config.json that differ from the tiny defaults of `support.census.build`."""
    model: str = ""
    """Class of transformers to build, if it is not the one of AutoModel."""
    tap: vv.Tap = vv.Tap()
    sizes: tuple[tuple[int, int], ...] = ((64, 64), (32, 96))
    """(height, width) in pixels to compare at: native, and not square where the reference takes it."""
    frames: int = 0
    """Frames of a video to compare too; 0 where the tower takes none."""
    bare: bool = True
    """Whether transformers can save the tower alone."""
    part: str | None = None
    """`part=` of vv.load, for a model with several towers."""
    connector: Callable[[nn.Module, Tensor, tuple[int, int]], Tensor] | None = None
    """(whole model, tokens of its tower, grid) -> tokens for the language model (B, M, E) in raster order; None for no check."""
    connector_taps: tuple[vv.Tap, ...] = ()
    """Taps whose tokens the connector reads side by side in the channels; () for the one of `tap`."""
    wide_connector: bool = False
    """Whether the connector takes grids that are not square."""

    @property
    def name(self) -> str:
        return self.label or self.model_type
