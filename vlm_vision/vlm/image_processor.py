"""Image processor in the interface of transformers, with the encoder's own preprocessing."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from transformers import AutoImageProcessor
from transformers.feature_extraction_utils import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor

import projectors
from vlm_vision.encoder import Encoder
from vlm_vision.fused import FusedEncoder
from vlm_vision.vlm.config import VisionLanguageConfig, as_json
from vlm_vision.vlm.layout import AnyRes, Layout, Whole, layout_from_dict
from vlm_vision.vlm.remote_code import RemoteCodeMixin


def encoder_from_dict(state: dict[str, Any]) -> Encoder | FusedEncoder:
    """An encoder with random weights from the `to_dict` of either kind."""
    return FusedEncoder.from_dict(state) if "towers" in state else Encoder.from_dict(state)


class VisionLanguageImageProcessor(RemoteCodeMixin, BaseImageProcessor):
    """Holds what decides pixels and token counts: configuration of encoder, projector and layout, no weights."""

    model_input_names = ["pixel_values", "image_sizes"]

    def __init__(
        self,
        encoder_config: dict[str, Any],
        projector_config: dict[str, Any],
        layout_config: dict[str, Any] | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.encoder_config = as_json(encoder_config)
        self.projector_config = as_json(projector_config)
        self.layout_config = as_json(layout_config or Whole().to_dict())

    @cached_property
    def _shapes(self) -> tuple[Encoder | FusedEncoder, projectors.Projector, Layout]:
        with torch.device("meta"):
            encoder, projector = encoder_from_dict(self.encoder_config), projectors.build(**self.projector_config)
        return encoder, projector, layout_from_dict(self.layout_config)

    @property
    def fingerprint(self) -> str:
        """Identifies the preprocessing; a model and its processor must agree on it."""
        return self._shapes[0].preprocess.fingerprint

    def num_image_tokens(self, height: int, width: int) -> int:
        """Tokens for one image; height and width as `Layout.num_tokens` takes them."""
        encoder, projector, layout = self._shapes
        return layout.num_tokens(encoder, projector, (height, width))

    def num_stored_tokens(self, shape: Sequence[int], grid: tuple[int, int] | None) -> int:
        """Tokens for one image whose patch tokens are stored, (images, N, D).

        Args:
            grid: (h, w) of the patch tokens; None for that of the encoder's own preprocessing.

        Raises:
            ValueError: another shape than the encoder and the grid have, no grid where images have no fixed size, or a layout of
                several canvases.
        """
        encoder, projector, layout = self._shapes
        if type(layout) is AnyRes:
            raise ValueError(
                f"layout {layout.name!r} has several canvases for each image: pass pixel_values, not patch_tokens"
            )
        size = encoder.preprocess.output_size
        if grid is None:
            if size is None:
                raise ValueError("this model's images have no fixed size: pass the grid of the patch_tokens")
            grid = encoder.grid(*size)
        wanted = (grid[0] * grid[1], encoder.embed_dim)
        if len(shape) != 3 or tuple(shape[1:]) != wanted:
            raise ValueError(
                f"patch_tokens are {tuple(shape)}: expected (images, {wanted[0]}, {wanted[1]}) of a grid of {grid[0]}x{grid[1]}"
            )
        return projector.num_tokens(grid)

    @property
    def canvas_size(self) -> tuple[int, int] | None:
        """(height, width) in pixels of every image's one canvas; None where canvases depend on the image."""
        encoder, _, layout = self._shapes
        return encoder.preprocess.output_size if type(layout) is Whole else None

    def fetch_images(self, image_url_or_urls):
        """Left to `preprocess`, which opens local files; images are never fetched from the network."""
        return image_url_or_urls

    def __call__(self, images, *args, return_tensors: str | None = "pt", **kwargs) -> BatchFeature:
        """As `preprocess`."""
        return self.preprocess(images, return_tensors=return_tensors)

    def preprocess(self, images, return_tensors: str | None = "pt", **kwargs) -> BatchFeature:
        """One image or a list -> pixel_values, float32 (canvases, C, H, W); image_sizes (images, 2) where the layout
        has them. Errors as `Preprocess`."""
        encoder, _, layout = self._shapes
        image_list = images if isinstance(images, list | tuple) else list(images) if _is_batch(images) else [images]
        return BatchFeature(layout.pixels(encoder, image_list), tensor_type=return_tensors)

    def to_dict(self) -> dict[str, Any]:
        return {name: value for name, value in super().to_dict().items() if name != "_shapes"}


def _is_batch(images: Any) -> bool:
    return getattr(images, "ndim", 0) == 4


AutoImageProcessor.register(VisionLanguageConfig, image_processor_classes={"pil": VisionLanguageImageProcessor})
