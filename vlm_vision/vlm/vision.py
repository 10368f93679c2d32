"""The vision half of a `VisionLanguageModel`: encoder, projector and layout, from pixels to image tokens."""

from typing import Any

import torch
from torch import Tensor, nn

import projectors
from vlm_vision.encoder import Encoder
from vlm_vision.fused import FusedEncoder
from vlm_vision.vlm.layout import Layout, Size, Whole


class Newline(nn.Module):
    """A learned token, (width,), like `like` in type and device. A module, so that peft can save it with adapters."""

    def __init__(self, width: int, like: Tensor):
        super().__init__()
        self.weight = nn.Parameter(like.new_empty(width))
        nn.init.normal_(self.weight, std=width**-0.5)

    def forward(self) -> Tensor:
        return self.weight


def active_peft_copy(module: Any) -> Any:
    """The copy of a module that trains in peft's `modules_to_save`, or the module itself."""
    return module.modules_to_save[module.active_adapter] if hasattr(module, "original_module") else module


class VisionMixin:
    """The vision half of a `VisionLanguageModel`, which sets these four."""

    encoder: Encoder | FusedEncoder
    projector: projectors.Projector
    layout: Layout
    newline: Newline | None

    @property
    def image_newline(self) -> nn.Parameter | None:
        """(width,) token that ends a row of tiles, for layouts that have one."""
        return None if self.newline is None else self.newline.weight

    def num_image_tokens(self, height: int, width: int) -> int:
        """Tokens that one image takes in the language model; height and width as `Layout.num_tokens` takes them."""
        return self.layout.num_tokens(self.encoder, self.projector, (height, width))

    def encode(
        self, pixel_values: Tensor, image_sizes: Tensor | None = None, condition: Tensor | None = None
    ) -> list[tuple[Tensor, Size]]:
        """Patch tokens (canvases, N, D) and their grid, in the order of the images; one pair where all share a grid.

        No graph is kept where nothing in the encoder trains. An encoder with FiLM wants its condition (canvases, film_dim).
        """
        trains = pixel_values.requires_grad or any(weight.requires_grad for weight in self.encoder.parameters())
        with torch.set_grad_enabled(torch.is_grad_enabled() and trains):
            return self.layout.encode(self.encoder, pixel_values, image_sizes, condition)

    def get_image_features(
        self,
        pixel_values: Tensor | None = None,
        *,
        image_sizes: Tensor | None = None,
        patch_tokens: Tensor | None = None,
        grid: Size | None = None,
        condition: Tensor | None = None,
    ) -> list[Tensor]:
        """Image tokens, (M, width of the language model) for each image.

        Args:
            pixel_values: (canvases, C, H, W).
            image_sizes: (images, 2), where the layout has them.
            patch_tokens: (canvases, N, D) of `encode`, in place of pixel_values, for towers whose output is cached.
            grid: theirs; default the grid of the encoder's own preprocessing.
            condition: (canvases, film_dim), for an encoder with FiLM.

        Raises:
            ValueError: neither, image_sizes that do not fit pixel_values, or no grid where the encoder has none of its own.
        """
        if patch_tokens is not None:
            size = self.encoder.preprocess.output_size
            if grid is None and size is None:
                raise ValueError("this encoder's images have no fixed size: pass the grid of the patch tokens")
            seen = [(patch_tokens, grid or self.encoder.grid(*size))]  # type: ignore[misc]
        else:
            if pixel_values is None:
                raise ValueError("there are no images: pass pixel_values or patch_tokens")
            self._check_canvases(pixel_values, image_sizes)
            seen = self.encode(pixel_values, image_sizes, condition)
        weight = next(self.projector.parameters())
        device = None if weight.is_meta else weight.device  # meta: accelerate brings it when it is used
        tokens = [
            (self.projector(group.to(device or group.device, weight.dtype), own), self.projector.out_grid(own))
            for group, own in seen
        ]
        return self.layout.arrange(self.encoder, tokens, image_sizes, self.newline() if self.newline else None)

    def _check_canvases(self, pixel_values: Tensor, image_sizes: Tensor | None) -> None:
        if type(self.layout) is Whole:
            return
        if image_sizes is None:
            raise ValueError(
                f"layout {self.layout.name!r} needs image_sizes with pixel_values: pass all outputs of the processor"
            )
        sizes = [(int(height), int(width)) for height, width in image_sizes.tolist()]
        number = sum(self.layout.num_canvases(self.encoder, size) for size in sizes)
        if number != len(pixel_values):
            raise ValueError(
                f"image_sizes of {len(sizes)} images need {number} canvases, but pixel_values hold {len(pixel_values)}: "
                "pass both as the processor returns them"
            )
