"""Steps of a robot's policy on an image before its image processor: resizes, a center crop, bars."""

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from vlm_vision.preprocess.area import resize_area
from vlm_vision.preprocess.resize import as_image

Kind = Literal["squash", "shortest_edge", "longest_edge", "crop", "square"]
StepKernel = Literal["bicubic", "area", "mean"]


@dataclass(frozen=True, kw_only=True)
class ImageStep:
    """One step on an image (H, W, 3).

    Raises:
        ValueError: an unknown name, a size or share out of range.
    """

    kind: Kind
    """
    squash: to `size`.
    shortest_edge: the shorter edge to that of `size`, both rounded.
    longest_edge: the longer edge to that of `size`, the other rounded down.
    crop: the middle, `share` of each side.
    square: black bars on both sides of the shorter edge.
    """
    size: tuple[int, int] = (0, 0)
    """(height, width) in pixels; the edge twice; (0, 0) for crop and square."""
    share: float = 1.0
    """Share of each side that crop keeps."""
    rounded: bool = False
    """Rounding of a side by crop to the nearest whole number, instead of down."""
    kernel: StepKernel = "bicubic"
    """
    bicubic: antialiased, rounded to 8 bits by torch, as torchvision.
    area: OpenCV's INTER_AREA, 8 bits.
    mean: means of pixels by torch (adaptive_avg_pool2d), not rounded.
    """

    def __post_init__(self) -> None:
        for name, value, allowed in (("kind", self.kind, Kind), ("kernel", self.kernel, StepKernel)):
            if value not in get_args(allowed):
                raise ValueError(f"{name} of a step is {value!r}: expected one of {', '.join(get_args(allowed))}")
        size = tuple(self.size) if isinstance(self.size, list | tuple) else ()
        least = 0 if self.kind in ("crop", "square") else 1
        if len(size) != 2 or not all(type(side) is int and side >= least for side in size):
            raise ValueError(f"size of a step {self.kind!r} is {self.size!r}: expected two sides in whole pixels")
        if self.kind in ("shortest_edge", "longest_edge") and size[0] != size[1]:
            raise ValueError(f"size of a step {self.kind!r} is {self.size!r}: expected the edge twice")
        if not isinstance(self.share, int | float) or not 0 < self.share <= 1:
            raise ValueError(f"share of a step is {self.share!r}: expected a number above 0 up to 1")
        object.__setattr__(self, "size", size)

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """(H, W, 3) in 0..255 -> the same, uint8, or float32 after a mean."""
        height, width = pixels.shape[:2]
        if self.kind == "square":
            edge = max(height, width)
            down, across = edge - height, edge - width
            return np.pad(pixels, ((down // 2, down - down // 2), (across // 2, across - across // 2), (0, 0)))
        if self.kind == "crop":
            tall, wide = (max(1, (round if self.rounded else int)(side * self.share)) for side in (height, width))
            top, left = (height - tall) // 2, (width - wide) // 2
            return pixels[top : top + tall, left : left + wide]
        size = self._size(height, width)
        return pixels if size == (height, width) else self._resized(pixels, size)

    def _size(self, height: int, width: int) -> tuple[int, int]:
        edge = self.size[0]
        if self.kind == "shortest_edge":
            scale = edge / min(height, width)
            return max(1, round(height * scale)), max(1, round(width * scale))
        if self.kind == "longest_edge":
            size = (int(edge * height / width), edge) if width > height else (edge, int(edge * width / height))
            if min(size) < 1:
                raise ValueError(
                    f"an image of {height}x{width} pixels has no pixels left at {edge} along its longer side: crop it"
                )
            return size
        return self.size

    def _resized(self, pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        if self.kernel == "area":
            return resize_area(pixels, size)
        planes = torch.from_numpy(np.array(pixels)).permute(2, 0, 1)[None]
        if self.kernel == "mean":
            planes = F.adaptive_avg_pool2d(planes.float(), size)
        else:
            planes = F.interpolate(planes, size, mode="bicubic", align_corners=False, antialias=True)
        return planes[0].permute(1, 2, 0).numpy()

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON, without those that have their default."""
        plain = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}
        defaults = {field.name: field.default for field in fields(self)}
        return {name: value for name, value in plain.items() if getattr(self, name) != defaults[name]}

    @classmethod
    def from_dict(cls, state: Any) -> "ImageStep":
        """Inverse of `to_dict`. Raises ValueError for other keys."""
        known = {field.name for field in fields(cls)}
        if not isinstance(state, dict) or state.keys() - known or "kind" not in state:
            raise ValueError(f"a step is {state!r}: expected an object with kind, and of {', '.join(sorted(known))}")
        return cls(**state)


def after(image: Image.Image | np.ndarray, steps: tuple[ImageStep, ...]) -> Image.Image | np.ndarray:
    """The image after the steps; float32 (H, W, 3) where the last does not round."""
    pixels = np.asarray(image)
    for step in steps:
        pixels = step(pixels)
    return as_image(pixels)
