"""The vision half of a `VisionLanguageModel`: encoder, projector and layout, from pixels to image tokens."""

from typing import Any

import torch
from torch import Tensor, nn

import projectors
from vlm_vision.encoder import Encoder
from vlm_vision.fused import FusedEncoder
from vlm_vision.nn.output import VisionOutput
from vlm_vision.vlm.deepstack import DeepStack
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
    """The vision half of a `VisionLanguageModel`, which sets these."""

    encoder: Encoder | FusedEncoder
    projector: projectors.Projector
    layout: Layout
    newline: Newline | None
    _deepstack: DeepStack | None

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
        outputs = self._outputs(pixel_values, image_sizes, condition)
        return [(out.patch_tokens, out.grid) for out in outputs]

    def _outputs(
        self, pixel_values: Tensor, image_sizes: Tensor | None, condition: Tensor | None
    ) -> list[VisionOutput]:
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
        """Image tokens, (M, width of the language model) for each image, without deep features.

        Args:
            pixel_values: (canvases, C, H, W).
            image_sizes: (images, 2), where the layout has them.
            patch_tokens: (canvases, N, D) of `encode` or of a `TokenStore`, in place of pixel_values.
            grid: theirs; default the grid of the encoder's own preprocessing.
            condition: (canvases, film_dim), for an encoder with FiLM.

        Raises:
            ValueError: neither, image_sizes that do not fit pixel_values, patch_tokens of another shape than the encoder's, or no
                grid where the encoder has none of its own.
        """
        outputs = self._encoded(pixel_values, image_sizes, patch_tokens, grid, condition)
        return self._projected(outputs, image_sizes)

    def image_tokens(
        self,
        pixel_values: Tensor | None = None,
        *,
        image_sizes: Tensor | None = None,
        patch_tokens: Tensor | None = None,
        grid: Size | None = None,
        condition: Tensor | None = None,
    ) -> list[Tensor]:
        """As `get_image_features`; where the language model reads deep features, with them, (M, width * (1 + levels)).

        Raises:
            ValueError: as `get_image_features`, and patch_tokens where deep features are read.
        """
        outputs = self._encoded(pixel_values, image_sizes, patch_tokens, grid, condition)
        tokens = self._projected(outputs, image_sizes)
        if self._deepstack is None:
            return tokens
        if patch_tokens is not None:
            raise ValueError("this model reads deep features, which patch_tokens do not hold: pass pixel_values")
        deep = [torch.cat([level.to(tokens[0]) for level in out.deepstack], dim=-1) for out in outputs]
        rows = [row for group in deep for row in group]
        return [torch.cat([own, features], dim=-1) for own, features in zip(tokens, rows, strict=True)]

    def words(self, input_ids: Tensor) -> Tensor:
        """Embeddings of text (B, T, width), wider with deep features."""
        words = self.get_input_embeddings()(input_ids)  # type: ignore[attr-defined]
        return words if self._deepstack is None else self._deepstack.widen(words)

    def _encoded(
        self,
        pixel_values: Tensor | None,
        image_sizes: Tensor | None,
        patch_tokens: Tensor | None,
        grid: Size | None,
        condition: Tensor | None,
    ) -> list[VisionOutput]:
        """Outputs of the encoder, or patch_tokens in their place."""
        if patch_tokens is not None:
            size = self.encoder.preprocess.output_size
            if grid is None and size is None:
                raise ValueError("this encoder's images have no fixed size: pass the grid of the patch tokens")
            grid = grid or self.encoder.grid(*size)  # type: ignore[misc]
            wanted = (grid[0] * grid[1], self.encoder.embed_dim)
            if patch_tokens.ndim != 3 or patch_tokens.shape[1:] != wanted:
                raise ValueError(
                    f"patch_tokens are {tuple(patch_tokens.shape)}: expected (images, {wanted[0]}, {wanted[1]}) of a grid of "
                    f"{grid[0]}x{grid[1]}"
                )
            return [VisionOutput(patch_tokens, grid)]
        if pixel_values is None:
            raise ValueError("there are no images: pass pixel_values or patch_tokens")
        self._check_canvases(pixel_values, image_sizes)
        return self._outputs(pixel_values, image_sizes, condition)

    def _projected(self, outputs: list[VisionOutput], image_sizes: Tensor | None) -> list[Tensor]:
        """The sequence of image tokens of each image."""
        weight = next(self.projector.parameters())
        device = None if weight.is_meta else weight.device  # meta: accelerate moves it when it is used
        tokens = [
            (
                self.projector(out.patch_tokens.to(device or out.patch_tokens.device, weight.dtype), out.grid),
                self.projector.out_grid(out.grid),
            )
            for out in outputs
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
