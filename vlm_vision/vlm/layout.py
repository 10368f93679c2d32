"""Image layouts: the canvases that the encoder sees, and the sequence of their tokens in the language model.

`Whole`: one canvas. `AnyRes`: one canvas and tiles of the enlarged image, a newline after each row (LLaVA-NeXT).
`Native`: the image's own aspect ratio, within a budget of patches (NaFlex) or as the encoder's preprocessing resizes it
(Qwen-VL, Pixtral). Each says by one formula, `num_tokens`, how long the sequence is; processor, collator and model all
use it.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import pad

import projectors
from vlm_vision.encoder import Encoder
from vlm_vision.fused import FusedEncoder, FusedPreprocess
from vlm_vision.nn.output import VisionOutput
from vlm_vision.preprocess.images import ImageInput, load_image
from vlm_vision.preprocess.spec import Preprocess

Size = tuple[int, int]
"""(height, width)"""


@dataclass(frozen=True)
class Layout:
    """Interface of a layout; this base class makes one canvas for each image."""

    name: ClassVar[str]
    newline: ClassVar[bool] = False
    """True if the model has a learned newline token."""

    def check(self, encoder: Encoder | FusedEncoder, projector: projectors.Projector) -> None:
        """Raise ValueError if this layout does not fit encoder and projector."""

    def pixels(self, encoder: Encoder | FusedEncoder, images: Sequence[ImageInput]) -> dict[str, Tensor]:
        """Images -> pixel_values, float32 (canvases, C, H, W); layouts that need them add image_sizes (images, 2)."""
        return {"pixel_values": encoder.preprocess(list(images))}

    def num_canvases(self, encoder: Encoder | FusedEncoder, size: Size) -> int:
        """Rows of pixel_values that one image takes."""
        return 1

    def num_tokens(self, encoder: Encoder | FusedEncoder, projector: projectors.Projector, size: Size) -> int:
        """Tokens that one image takes in the language model.

        Args:
            size: (height, width) in pixels: of its canvas, or where there are image_sizes, its row of them.
        """
        return projector.num_tokens(encoder.grid(*size))

    def encode(
        self,
        encoder: Encoder | FusedEncoder,
        pixel_values: Tensor,
        image_sizes: Tensor | None,
        condition: Tensor | None = None,
    ) -> list[VisionOutput]:
        """The encoder's outputs, in the order of the images; one for all canvases where they share a grid.

        Args:
            condition: (canvases, film_dim), for an encoder with FiLM.
        """
        return [encoder(pixel_values, pool=False, condition=condition)]

    def arrange(
        self,
        encoder: Encoder | FusedEncoder,
        tokens: list[tuple[Tensor, Size | None]],
        image_sizes: Tensor | None,
        newline: Tensor | None,
    ) -> list[Tensor]:
        """Projected tokens (canvases, M, width) and their grids -> the sequence (M, width) of each image."""
        return [row for group, _ in tokens for row in group]

    def to_dict(self) -> dict[str, Any]:
        """As JSON; `layout_from_dict` builds it again."""
        return {"name": self.name} | asdict(self)


@dataclass(frozen=True)
class Whole(Layout):
    """One canvas for each image, as the encoder's own preprocessing makes it."""

    name: ClassVar[str] = "whole"


@dataclass(frozen=True)
class AnyRes(Layout):
    """The whole image, squashed to one canvas, then tiles of it enlarged; a learned newline token ends each row.

    The image is enlarged, its aspect ratio kept, into that of `pinpoints` which keeps most of it and wastes least, and
    black bars fill the rest; tokens that see bars alone are taken out again. LLaVA-NeXT (Liu et al. 2024), with its
    preprocessing and order of tokens.

    Args:
        pinpoints: (height, width) in pixels of the mosaics of tiles to choose from, multiples of the encoder's canvas.
    """

    pinpoints: tuple[Size, ...]
    name: ClassVar[str] = "anyres"
    newline: ClassVar[bool] = True

    def __post_init__(self) -> None:
        try:
            pinpoints = tuple((int(height), int(width)) for height, width in self.pinpoints)
        except (TypeError, ValueError):
            pinpoints = ()
        if not pinpoints or min(side for size in pinpoints for side in size) < 1:
            raise ValueError(
                f"pinpoints are {self.pinpoints}: expected at least one (height, width) in pixels, in a list"
            )
        object.__setattr__(self, "pinpoints", pinpoints)

    def check(self, encoder: Encoder | FusedEncoder, projector: projectors.Projector) -> None:
        canvas = _canvas(encoder)
        for size in self.pinpoints:
            if size[0] % canvas[0] or size[1] % canvas[1]:
                raise ValueError(
                    f"pinpoint {size[0]}x{size[1]} is not a multiple of the encoder's canvas of {canvas[0]}x{canvas[1]} pixels"
                )
        if projector.out_grid(encoder.grid(*canvas)) is None:
            raise ValueError(
                f"the tokens of projector {type(projector).__name__} have no grid, which tiles need for their rows: choose "
                "another projector, or the layout Whole"
            )

    def pixels(self, encoder: Encoder | FusedEncoder, images: Sequence[ImageInput]) -> dict[str, Tensor]:
        if not images:
            raise ValueError("there are no images: expected at least one; skip empty batches")
        canvas, squash = _canvas(encoder), _squashing(encoder.preprocess)
        resample = squash.towers[0].resample if isinstance(squash, FusedPreprocess) else squash.resample
        canvases, sizes = [], []
        for image in images:
            loaded = load_image(image)
            sizes.append((loaded.height, loaded.width))
            mosaic = _fitted(loaded, self._mosaic(sizes[-1]), Image.Resampling[resample.upper()])
            tiles = [
                mosaic.crop((left, top, left + canvas[1], top + canvas[0]))
                for top in range(0, mosaic.height, canvas[0])
                for left in range(0, mosaic.width, canvas[1])
            ]
            canvases.append(squash([loaded, *tiles]))
        return {"pixel_values": torch.cat(canvases), "image_sizes": torch.tensor(sizes)}

    def num_canvases(self, encoder: Encoder | FusedEncoder, size: Size) -> int:
        rows, columns = self._tiles(encoder, size)
        return 1 + rows * columns

    def num_tokens(self, encoder: Encoder | FusedEncoder, projector: projectors.Projector, size: Size) -> int:
        grid = encoder.grid(*_canvas(encoder))
        out = projector.out_grid(grid)
        assert out is not None
        rows, columns = self._tiles(encoder, size)
        down, across = (slice_.stop - slice_.start for slice_ in _unpadded((rows * out[0], columns * out[1]), size))
        return projector.num_tokens(grid) + down * (across + 1)

    def arrange(
        self,
        encoder: Encoder | FusedEncoder,
        tokens: list[tuple[Tensor, Size | None]],
        image_sizes: Tensor | None,
        newline: Tensor | None,
    ) -> list[Tensor]:
        assert newline is not None
        if image_sizes is None:
            raise ValueError("layout 'anyres' needs image_sizes with patch_tokens: pass all outputs of the processor")
        ((group, grid),) = tokens
        assert grid is not None
        sizes = [(int(height), int(width)) for height, width in image_sizes.tolist()]
        given = group.split([self.num_canvases(encoder, size) for size in sizes])
        return [
            self._rows(one, grid, self._tiles(encoder, size), size, newline)
            for one, size in zip(given, sizes, strict=True)
        ]

    def _rows(self, canvases: Tensor, grid: Size, tiles: Size, size: Size, newline: Tensor) -> Tensor:
        """(canvases, M, width) of one image -> its sequence: the whole image, then the mosaic row by row."""
        width = canvases.shape[-1]
        mosaic = (
            canvases[1:]
            .view(*tiles, *grid, width)
            .transpose(1, 2)
            .reshape(tiles[0] * grid[0], tiles[1] * grid[1], width)
        )
        down, across = _unpadded((mosaic.shape[0], mosaic.shape[1]), size)
        mosaic = mosaic[down, across]
        ends = newline.to(mosaic).expand(mosaic.shape[0], 1, width)
        return torch.cat([canvases[0], torch.cat([mosaic, ends], dim=1).flatten(0, 1)])

    def _tiles(self, encoder: Encoder | FusedEncoder, size: Size) -> Size:
        """(rows, columns) of tiles for an image of `size`."""
        mosaic, canvas = self._mosaic(size), _canvas(encoder)
        return mosaic[0] // canvas[0], mosaic[1] // canvas[1]

    def _mosaic(self, size: Size) -> Size:
        """The pinpoint that keeps most pixels of an image of `size`, and among equals the smallest."""

        def merit(pinpoint: Size) -> tuple[int, int]:
            scale = min(pinpoint[1] / size[1], pinpoint[0] / size[0])
            kept = min(int(size[1] * scale) * int(size[0] * scale), size[0] * size[1])
            return kept, -pinpoint[0] * pinpoint[1]

        return max(self.pinpoints, key=merit)


@dataclass(frozen=True)
class Native(Layout):
    """One canvas for each image in its own aspect ratio, of at most `max_patches` patches; packed, each attends to itself.

    NaFlex (Tschannen et al. 2025, arXiv:2502.14786), for any single tower. image_sizes are the parts of pixel_values, from
    their top left, that the images fill.

    Args:
        max_patches: budget of an image; None for the sizes of the encoder's own preprocessing.
        multiple: sides of the grid are multiples of it, for projectors that merge neighbors.
    """

    max_patches: int | None = 256
    multiple: int = 1
    name: ClassVar[str] = "native"

    def __post_init__(self) -> None:
        whole = isinstance(self.max_patches, int | None) and isinstance(self.multiple, int)
        if not whole or self.multiple < 1 or (self.max_patches or self.multiple**2) < self.multiple**2:
            raise ValueError(
                f"max_patches is {self.max_patches} and multiple is {self.multiple}: expected a budget of at least one square of "
                "multiple x multiple patches"
            )

    def check(self, encoder: Encoder | FusedEncoder, projector: projectors.Projector) -> None:
        if isinstance(encoder, FusedEncoder):
            raise ValueError("layout Native takes a single tower, but this encoder is fused: use Whole or AnyRes")
        sides = self.multiple
        if self.max_patches is None and encoder.preprocess.patch_size:
            sides = encoder.preprocess.patch_size // encoder.config.patch_size
        grid = encoder.grid(*(sides * encoder.config.patch_size,) * 2)
        projector.num_tokens(grid)  # says what is wrong

    def pixels(self, encoder: Encoder | FusedEncoder, images: Sequence[ImageInput]) -> dict[str, Tensor]:
        assert isinstance(encoder, Encoder)
        preprocess = encoder.preprocess
        if self.max_patches is not None:
            patch = encoder.config.patch_size * self.multiple
            preprocess = preprocess.with_budget(self.max_patches // self.multiple**2, patch)
        each = preprocess.each(list(images))
        sizes = torch.tensor([pixels.shape[-2:] for pixels in each])
        height, width = sizes.amax(dim=0).tolist()
        canvases = [pad(pixels, (0, width - pixels.shape[-1], 0, height - pixels.shape[-2])) for pixels in each]
        return {"pixel_values": torch.stack(canvases), "image_sizes": sizes}

    def encode(
        self,
        encoder: Encoder | FusedEncoder,
        pixel_values: Tensor,
        image_sizes: Tensor | None,
        condition: Tensor | None = None,
    ) -> list[VisionOutput]:
        assert isinstance(encoder, Encoder) and image_sizes is not None
        sizes = image_sizes.tolist()
        images = [canvas[:, :height, :width] for canvas, (height, width) in zip(pixel_values, sizes, strict=True)]
        return encoder.packed(images, pool=False)


LAYOUTS: dict[str, type[Layout]] = {kind.name: kind for kind in (Whole, AnyRes, Native)}
"""Name of a layout -> class."""


def layout_from_dict(state: dict[str, Any]) -> Layout:
    """Inverse of `to_dict`. Raises ValueError for a name or a field that no layout has."""
    options = {name: value for name, value in state.items() if name != "name"}
    try:
        return LAYOUTS[state["name"]](**options)
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"the image layout {state!r} is not known ({error}): expected one of {', '.join(LAYOUTS)}"
        ) from None


def _canvas(encoder: Encoder | FusedEncoder) -> Size:
    """(height, width) in pixels of the images that the encoder's own preprocessing makes."""
    size = encoder.preprocess.output_size
    if size is None:
        raise ValueError("this encoder's images have no fixed size: load it with image_size=..., or use layout Native")
    return size


def _squashing(preprocess: Preprocess | FusedPreprocess) -> Preprocess | FusedPreprocess:
    """The same filters and normalization, but every image squashed to the canvas; a tile of its size stays as it is."""
    if isinstance(preprocess, FusedPreprocess):
        return FusedPreprocess(tuple(_squashed(tower) for tower in preprocess.towers))
    return _squashed(preprocess)


def _squashed(preprocess: Preprocess) -> Preprocess:
    size = preprocess.output_size
    assert size is not None
    none = dict(
        crop=None, crop_rounding="floor", crop_place="centre", fill=(0, 0, 0), multiple=0, patch_size=0, max_patches=0
    )
    return replace(preprocess, resize="squash", resize_to=size, **none)  # type: ignore[arg-type]


def _fitted(image: Image.Image, size: Size, resample: Image.Resampling) -> Image.Image:
    """The image as large as fits into `size`, its aspect ratio kept, in the middle of black."""
    height, width = size
    if width / image.width < height / image.height:
        fits = (min(math.ceil(image.height * (width / image.width)), height), width)
    else:
        fits = (height, min(math.ceil(image.width * (height / image.height)), width))
    mosaic = Image.new("RGB", (width, height))
    mosaic.paste(image.resize((fits[1], fits[0]), resample), ((width - fits[1]) // 2, (height - fits[0]) // 2))
    return mosaic


def _unpadded(grid: Size, size: Size) -> tuple[slice, slice]:
    """Rows and columns of a grid of tokens that see the image of `size` and not only its bars, as LLaVA-NeXT counts."""
    down, across = grid
    if size[1] / size[0] > across / down:
        bar = (down - int(round(size[0] * (across / size[1]), 7))) // 2
        return slice(bar, down - bar), slice(0, across)
    bar = (across - int(round(size[1] * (down / size[0]), 7))) // 2
    return slice(0, down), slice(bar, across - bar)
