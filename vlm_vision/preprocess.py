"""Pictures to pixel tensors: any picture to 8-bit RGB, resize, centre crop, rescale, normalise.

`Preprocess` says what is done as plain data, so that it can be saved beside a checkpoint, hashed, and used unchanged in
training, evaluation and serving. It resizes with Pillow on 8-bit pixels, as transformers' PIL image processors do.
"""

import dataclasses
import difflib
import hashlib
import json
import math
import operator
import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, Self, cast, get_args

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

ImageInput = str | os.PathLike[str] | Image.Image | np.ndarray | torch.Tensor
ResizeMode = Literal["none", "squash", "shortest_edge"]
ResampleFilter = Literal["nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"]


def load_image(image: ImageInput) -> Image.Image:
    """One picture, upright, as a PIL image of mode RGB.

    What transformers makes of it: the EXIF orientation is applied, as its `load_image` does; transparency is laid on white
    and every other mode goes through Pillow's conversion, as in its image processors. So 16-bit grey saturates above 255:
    scale such pictures to 8 bits yourself.

    Args:
        image: path of a picture file; PIL image of any mode; uint8 numpy array (H, W) or (H, W, C); uint8 torch tensor
            (H, W) or (C, H, W), on any device. C is 1, 3 or 4.

    Raises:
        ValueError: the file is missing, damaged, no picture or larger than `PIL.Image.MAX_IMAGE_PIXELS`; the array has
            another dtype or shape; the picture has no pixels.
    """
    if isinstance(image, np.ndarray | torch.Tensor):
        picture = _from_array(image)
    elif isinstance(image, str | os.PathLike | Image.Image):
        picture = _upright(image)
    else:
        raise ValueError(
            f"an image of type {type(image).__name__} is not supported: expected a path, a PIL image, a uint8 numpy "
            "array (H, W, C) or a uint8 torch tensor (C, H, W); convert it to one of these"
        )
    if 0 in picture.size:
        raise ValueError(f"the picture of size {picture.size} has no pixels: expected at least one; leave it out")
    if "A" in picture.getbands() or picture.info.get("transparency") is not None:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture.convert("RGB")


def _upright(source: str | os.PathLike[str] | Image.Image) -> Image.Image:
    """Decodes a file or a lazily opened PIL image and applies its EXIF orientation; keeps the mode."""
    name = "the PIL image" if isinstance(source, Image.Image) else f"image file {os.fspath(source)!r}"
    try:
        if isinstance(source, Image.Image):
            return ImageOps.exif_transpose(source)
        with warnings.catch_warnings():
            # Pillow warns above its limit and raises above twice that; here the limit is a limit.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(source) as opened:
                if Image.MAX_IMAGE_PIXELS and opened.width * opened.height > Image.MAX_IMAGE_PIXELS:
                    raise Image.DecompressionBombError
                return ImageOps.exif_transpose(opened)
    except Exception as error:  # on damaged bytes Pillow's decoders raise almost any type
        damaged = f"cannot be decoded ({error}): expected a complete picture; it is truncated or damaged, get it anew"
        raise ValueError(f"{name} {_FILE_PROBLEMS.get(type(error), damaged)}") from error


_FILE_PROBLEMS: dict[type[Exception], str] = {
    FileNotFoundError: "does not exist: expected the path of a local picture; check the path",
    IsADirectoryError: "is a folder: expected the path of one picture; name a file inside it",
    UnidentifiedImageError: "is not a picture Pillow can read: expected JPEG, PNG, WebP or the like; convert the file",
    Image.DecompressionBombError: "has too many pixels: expected at most PIL.Image.MAX_IMAGE_PIXELS; shrink it",
}


def _from_array(image: np.ndarray | torch.Tensor) -> Image.Image:
    """Wraps a uint8 numpy (H, W[, C]) or torch ([C,] H, W) picture without changing a value."""
    is_torch = isinstance(image, torch.Tensor)
    dtype, shape = str(image.dtype).removeprefix("torch."), tuple(image.shape)
    given = f"the {'torch tensor' if is_torch else 'numpy array'} of dtype {dtype} and shape {shape}"
    if dtype != "uint8":
        convert = "(image * 255).round()" + (".to(torch.uint8)" if is_torch else ".astype(np.uint8)")
        raise ValueError(f"{given} is no 8-bit picture: expected uint8 in 0..255; convert values in 0..1 by {convert}")
    channels = 1 if image.ndim == 2 else shape[0 if is_torch else -1] if image.ndim == 3 else None
    if channels not in (1, 3, 4):
        layout, reorder = ("(C, H, W)", "permute(2, 0, 1)") if is_torch else ("(H, W, C)", "transpose(1, 2, 0)")
        raise ValueError(
            f"{given} is not one picture: expected {layout} with C = 1, 3 or 4; reorder the axes by image.{reorder} or "
            "hand a batch to Preprocess"
        )
    if 0 in shape:
        raise ValueError(f"{given} has no pixels: expected at least one; leave it out")
    if isinstance(image, torch.Tensor):
        image = image.detach().cpu().numpy()
        image = image.transpose(1, 2, 0) if image.ndim == 3 else image
    return Image.fromarray(np.ascontiguousarray(image[..., 0] if image.ndim == 3 and channels == 1 else image))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preprocess:
    """What is done to a picture before the encoder sees it, in this order.

    pixels = (centre_crop(resize(rgb)) * rescale - mean) / std

    Raises:
        ValueError: a name is unknown, a size not positive, a number not finite, `std` or `rescale` zero.
    """

    resize: ResizeMode
    """none; squash to `resize_to`; or shortest_edge: bring the shorter edge to `resize_to`, keep the aspect ratio."""
    resize_to: tuple[int, int]
    """(height, width) in pixels; the edge twice for shortest_edge; (0, 0) for none."""
    resample: ResampleFilter
    """Pillow's filter of that name."""
    crop: tuple[int, int] | None
    """(height, width) of the centre crop in pixels; black is added where the picture is smaller. None: no crop."""
    rescale: float
    """Factor on 0..255 values, usually 1/255."""
    mean: tuple[float, float, float]
    """Per channel RGB, after `rescale`; zeros for none."""
    std: tuple[float, float, float]
    """Per channel RGB, after `rescale`; ones for none."""

    def __post_init__(self) -> None:
        for field, allowed in (("resize", get_args(ResizeMode)), ("resample", get_args(ResampleFilter))):
            name = getattr(self, field)
            if name not in allowed:
                near = difflib.get_close_matches(str(name), allowed, n=1)
                hint = f"did you mean {near[0]!r}?" if near else "use one of these"
                raise ValueError(f"{field} is {name!r}: expected one of {', '.join(allowed)}; {hint}")
        least = 0 if self.resize == "none" else 1
        resize_to = _checked("resize_to", self.resize_to, operator.index, 2, lambda size: size >= least)
        expected = {"none": (0, 0), "shortest_edge": (resize_to[0], resize_to[0])}.get(self.resize, resize_to)
        if resize_to != expected:
            raise ValueError(f"resize_to is {resize_to} but resize is {self.resize!r}: expected {expected}")
        object.__setattr__(self, "resize_to", resize_to)
        if self.crop is not None:
            object.__setattr__(self, "crop", _checked("crop", self.crop, operator.index, 2, lambda size: size >= 1))
        object.__setattr__(self, "rescale", *_checked("rescale", [self.rescale], float, 1, _is_factor))
        object.__setattr__(self, "mean", _checked("mean", self.mean, float, 3, math.isfinite))
        object.__setattr__(self, "std", _checked("std", self.std, float, 3, _is_factor))

    def __call__(self, images: ImageInput | Sequence[ImageInput]) -> torch.Tensor:
        """Pictures to pixels, float32 (B, 3, H, W), contiguous, on the CPU.

        Args:
            images: one picture as `load_image` takes it, a list or tuple of them, or a batch of equal ones as one uint8
                array: numpy (B, H, W, C), torch (B, C, H, W).

        Raises:
            ValueError: as `load_image`; also when there is no picture, or the results differ in size.
        """
        is_array = isinstance(images, np.ndarray | torch.Tensor)
        batch = images if isinstance(images, list | tuple) or (is_array and images.ndim == 4) else [images]
        pictures = [self._resize_and_crop(load_image(cast(ImageInput, image))) for image in batch]
        if not pictures:
            raise ValueError("there are no images: expected at least one; leave empty batches out")
        sizes = sorted({(picture.height, picture.width) for picture in pictures})
        if len(sizes) > 1:
            raise ValueError(
                f"the images have sizes {sizes} (height, width) after resizing: expected one size in a batch; set a "
                "crop or resize='squash', or pass the images one at a time"
            )
        scale = np.divide(self.rescale, self.std).astype(np.float32).reshape(3, 1, 1)
        shift = np.divide(self.mean, self.std).astype(np.float32).reshape(3, 1, 1)
        pixels = np.empty((len(pictures), 3, *sizes[0]), dtype=np.float32)
        for row, picture in zip(pixels, pictures, strict=True):
            np.multiply(np.asarray(picture).transpose(2, 0, 1), scale, out=row)
            row -= shift
        return torch.from_numpy(pixels)

    def _resize_and_crop(self, picture: Image.Image) -> Image.Image:
        if self.resize != "none":
            height, width = self.resize_to
            if self.resize == "shortest_edge":
                # transformers rounds the longer edge down; written in its order, for the same floating point result
                if picture.width <= picture.height:
                    height = int(height * picture.height / picture.width)
                else:
                    width = int(width * picture.width / picture.height)
            picture = picture.resize((width, height), Image.Resampling[self.resample.upper()])
        if self.crop is not None:
            top, left = (picture.height - self.crop[0]) // 2, (picture.width - self.crop[1]) // 2
            picture = picture.crop((left, top, left + self.crop[1], top + self.crop[0]))  # zeros outside the picture
        return picture

    @property
    def output_size(self) -> tuple[int, int] | None:
        """(height, width) of the pixels; None when it depends on the picture."""
        return self.crop or (self.resize_to if self.resize == "squash" else None)

    def at(self, height: int, width: int) -> Self:
        """The same kind of preprocessing for another output size, in pixels.

        With a crop, the resize keeps its ratio to the crop, rounded: edge 256 and crop 224 at (448, 448) is edge 512.
        The edge goes by the longer side of a crop that is not square, so that pictures still fill it.

        Raises:
            ValueError: the output size depends on the picture, so that this one cannot be reached.
        """
        if self.crop is None and (self.resize == "none" or (self.resize == "shortest_edge" and height != width)):
            raise ValueError(
                f"resize={self.resize!r} without a crop cannot give every picture the size {(height, width)}: expected "
                "a crop or resize='squash'; set one of them"
            )
        base, resize_to = self.crop or self.resize_to, self.resize_to
        if self.resize == "squash":
            resize_to = (round(resize_to[0] * height / base[0]), round(resize_to[1] * width / base[1]))
        elif self.resize == "shortest_edge":
            resize_to = (round(resize_to[0] * max(height, width) / max(base)),) * 2
        return dataclasses.replace(self, resize_to=resize_to, crop=self.crop and (height, width))

    def to_dict(self) -> dict[str, Any]:
        """Every field, as JSON types."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in vars(self).items()}

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Self:
        """Inverse of `to_dict`.

        Raises:
            ValueError: a key is unknown or missing, or a value is wrong.
        """
        names = {field.name for field in dataclasses.fields(cls)}
        if fields.keys() != names:
            unknown, lacking = sorted(fields.keys() - names), sorted(names - fields.keys())
            raise ValueError(f"preprocess has unknown keys {unknown} and lacks {lacking}: expected {sorted(names)}")
        return cls(**fields)

    @property
    def fingerprint(self) -> str:
        """16 hex digits of the SHA-256 of `to_dict` as canonical JSON: another one as soon as any field differs."""
        canonical = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def _is_factor(value: float) -> bool:
    return math.isfinite(value) and value != 0


def _checked(name: str, given: Iterable, convert: Callable, count: int, valid: Callable[[Any], bool]) -> tuple:
    """`given` as a tuple of `count` ints or floats, so that equal specs have equal fingerprints."""
    try:
        values = tuple(convert(value) for value in given)
    except (TypeError, ValueError):
        values = ()
    if len(values) != count or not all(map(valid, values)):
        kind = "positive whole numbers of pixels" if convert is operator.index else "finite numbers, a factor not zero"
        raise ValueError(f"{name} is {given!r}: expected {count} {kind}")
    return values
