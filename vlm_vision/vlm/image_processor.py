"""Pictures to pixel values as transformers' processors do it, with the encoder's own preprocessing."""

from functools import cached_property
from typing import Any

import torch
from transformers import AutoImageProcessor
from transformers.feature_extraction_utils import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor

import projectors
from vlm_vision.encoder import Encoder
from vlm_vision.fused import FusedEncoder
from vlm_vision.vlm.config import VisionLanguageConfig


def encoder_from_dict(state: dict[str, Any]) -> Encoder | FusedEncoder:
    """An encoder with random weights from the `to_dict` of either kind."""
    return FusedEncoder.from_dict(state) if "towers" in state else Encoder.from_dict(state)


def num_image_tokens(encoder: Encoder | FusedEncoder, projector: projectors.Projector, height: int, width: int) -> int:
    """Tokens that pixels of height x width take in the language model: the one formula, for processor and model."""
    return projector.num_tokens(encoder.grid(height, width))


class VisionLanguageImageProcessor(BaseImageProcessor):
    """Holds what decides pixels and token counts: the encoder's and the projector's configuration, no weights."""

    model_input_names = ["pixel_values"]

    def __init__(self, encoder_config: dict[str, Any], projector_config: dict[str, Any], **kwargs):
        super().__init__(**kwargs)
        self.encoder_config = encoder_config
        self.projector_config = projector_config

    @cached_property
    def _shapes(self) -> tuple[Encoder | FusedEncoder, projectors.Projector]:
        with torch.device("meta"):
            return encoder_from_dict(self.encoder_config), projectors.build(**self.projector_config)

    @property
    def fingerprint(self) -> str:
        """Identifies the preprocessing; a model and its processor must agree on it."""
        return self._shapes[0].preprocess.fingerprint

    def num_image_tokens(self, height: int, width: int) -> int:
        """Tokens for one picture whose pixel values are height x width."""
        return num_image_tokens(*self._shapes, height, width)

    def fetch_images(self, image_url_or_urls):
        """Left to `preprocess`, which opens local files; pictures are never fetched from the network."""
        return image_url_or_urls

    def __call__(self, images, *args, return_tensors: str | None = "pt", **kwargs) -> BatchFeature:
        """As `preprocess`."""
        return self.preprocess(images, return_tensors=return_tensors)

    def preprocess(self, images, return_tensors: str | None = "pt", **kwargs) -> BatchFeature:
        """One picture or a list -> pixel_values, float32 (B, C, H, W). Errors as `Preprocess`."""
        return BatchFeature({"pixel_values": self._shapes[0].preprocess(images)}, tensor_type=return_tensors)

    def to_dict(self) -> dict[str, Any]:
        return {name: value for name, value in super().to_dict().items() if name != "_shapes"}


AutoImageProcessor.register(VisionLanguageConfig, image_processor_classes={"pil": VisionLanguageImageProcessor})
