"""Features of images out of a token store, as `vlm_vision.probe.features` computes them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from vlm_vision.data.stored_image import ImageSource
from vlm_vision.encoder import Encoder
from vlm_vision.fused import FusedEncoder
from vlm_vision.nn.output import Tap
from vlm_vision.probe.features import Kind, vector
from vlm_vision.tokens.store import TokenStore
from vlm_vision.tokens.training.features import StoredFeatures
from vlm_vision.tokens.wanted import Part

PARTS: dict[Kind, tuple[Part, ...]] = {
    "cls": ("cls_token",),
    "mean": ("patch_tokens",),
    "cls+mean": ("cls_token", "patch_tokens"),
    "pooled": ("pooled",),
}
"""Kind of vector -> parts of a store that it is made of."""


@dataclass(frozen=True)
class StoredProbe:
    """An encoder whose tokens are stored, as probes read it."""

    store: TokenStore
    encoder: Encoder | FusedEncoder
    """Encoder that made the store; architecture and tap are read, not the weights."""
    keys: Mapping[str, str] = field(default_factory=dict)
    """Keys in the store, as in `StoredFeatures`."""

    def image_features(self, images: Sequence[ImageSource], *, kind: Kind = "cls+mean") -> Tensor:
        """(M, D), one vector for each image.

        Raises:
            ValueError: an image that the store lacks, or a kind that it does not hold at this tap.
        """
        features = self._at(None)
        return torch.cat([vector(out, kind) for image in images for out in features.outputs([image])])

    def block_features(self, images: Sequence[ImageSource], *, blocks: int = 4) -> Tensor:
        """(M, blocks + 1, D), as `vlm_vision.probe.features.block_features`.

        Raises:
            ValueError: a store without the last `blocks` layers after the final norm, or without an image.
        """
        each = [self._at(Tap(layer)) for layer in range(-blocks, 0)]
        return torch.cat([torch.cat(list(self._rows(each, image)), dim=1) for image in images])

    def patch_features(self, images: Sequence[ImageSource]) -> Tensor:
        """(M, N, D): the patch tokens of each image.

        Raises:
            ValueError: an image that the store lacks, or images with unlike numbers of patches.
        """
        return self._at(None)[images].float()

    def _rows(self, each: Sequence[StoredFeatures], image: ImageSource) -> Iterator[Tensor]:
        outs = [features.outputs([image])[0] for features in each]
        for out in outs:
            yield vector(out, "mean" if out.cls_token is None else "cls")[:, None]
        yield vector(outs[-1], "mean")[:, None]

    def _at(self, tap: Tap | None) -> StoredFeatures:
        return StoredFeatures(self.store, self.encoder, self.keys, tap=tap)
