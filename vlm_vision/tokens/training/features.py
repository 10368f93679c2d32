"""Tokens of images in a store, in place of a tower's output."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor

from vlm_vision.data.stored_image import ImageSource
from vlm_vision.encoder import Encoder
from vlm_vision.fused import FusedEncoder
from vlm_vision.nn.output import Tap, VisionOutput
from vlm_vision.tokens.store import Row, TokenStore
from vlm_vision.tokens.training.match import stored_layers, towers_of


class StoredFeatures:
    """Outputs of an encoder at one tap, read from a store. It can be pickled: the folder and the keys are sent.

    Args:
        store: made by that encoder.
        encoder: tells the tap and the widths; it needs no weights.
        keys: `str(image)` -> its key in the store, for the images whose key is another text; see `find_keys`.
        tap: of every tower; default the encoder's own.

    Raises:
        ValueError: the store lacks that tap.
    """

    def __init__(
        self,
        store: TokenStore,
        encoder: Encoder | FusedEncoder,
        keys: Mapping[str, str] = MappingProxyType({}),
        *,
        tap: Tap | None = None,
    ):
        self.store, self.keys = store, dict(keys)
        self.layers = stored_layers(store, encoder, tap)
        depths = {(tower.config.depth, tap or tower.tap) for tower in towers_of(encoder)}
        self.has_pooled = all(depth - 1 in one.blocks(depth) for depth, one in depths)
        self.widths = [tower.embed_dim // (1 + len(tower.tap.more)) for tower in towers_of(encoder)]

    def __getitem__(self, images: Sequence[ImageSource]) -> Tensor:
        """(len(images), N, D), the patch tokens in the stored dtype, float32 of int8.

        Raises:
            ValueError: an image that the store lacks, or images with different numbers of tokens.
        """
        rows = [self._row(image) for image in images]
        return self._joined([self.store.patch_tokens(rows, layer) for layer in self.layers])

    def outputs(self, images: Sequence[ImageSource]) -> list[VisionOutput]:
        """The output of each image, (1, ...) in float32, with what the store holds of it.

        Raises:
            ValueError: an image that the store lacks.
        """
        return [self._output(self.store[self._row(image)]) for image in images]

    def means(self, images: Sequence[ImageSource]) -> Tensor:
        """(len(images), D): the mean of the patch tokens of each image, in float32. Raises ValueError as `outputs`."""
        return torch.cat([out.patch_tokens.mean(dim=1) for out in self.outputs(images)])

    def _row(self, image: ImageSource) -> int:
        name = str(image)
        try:
            return self.store.index(self.keys.get(name, name))
        except KeyError:
            raise ValueError(f"{self.store.folder} has no tokens of the image {name}: extract them too") from None

    def _output(self, row: Row) -> VisionOutput:
        def part(name: str) -> Tensor | None:
            layers = [getattr(row.taps[layer], name) for layer in self.layers]
            return None if layers[0] is None else self._joined([one.float() for one in layers])[None]

        patches = part("patch_tokens")
        return VisionOutput(
            patch_tokens=torch.empty(1, 0, sum(self.widths)) if patches is None else patches,
            grid=row.grid,
            frames=row.frames,
            cls_token=part("cls_token"),
            register_tokens=part("register_tokens"),
            pooled=row.pooled.float()[None] if row.pooled is not None and self.has_pooled else None,
        )

    def _joined(self, layers: Sequence[Tensor]) -> Tensor:
        """Layers (..., D) side by side, those of each tower together, as an encoder puts them."""
        if len(layers) == 1:
            return layers[0]
        each = zip(*(layer.split(self.widths, dim=-1) for layer in layers), strict=True)
        return torch.cat([part for tower in each for part in tower], dim=-1)
