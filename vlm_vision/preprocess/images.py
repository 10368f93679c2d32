"""Images of any kind to one kind: upright 8-bit RGB."""

import os
import warnings
from collections.abc import Sequence
from typing import TypeGuard, cast

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from vlm_vision.preprocess.jpeg_file import decode_jpeg

ImageInput = str | os.PathLike[str] | Image.Image | np.ndarray | torch.Tensor


def load_image(image: ImageInput) -> Image.Image:
    """One image, upright, as a PIL image of mode RGB.

    As in transformers, the EXIF orientation is applied (`load_image`), transparency is laid on white, and every other mode
    is converted by Pillow (image processors). So gray of 16 bits saturates above 255, with a warning: `to_8_bits` scales such
    images.

    Args:
        image: path of an image file; PIL image of any mode; uint8 numpy array (H, W) or (H, W, C); uint8 torch tensor
            (H, W) or (C, H, W), on any device. C is 1, 3 or 4.

    Returns:
        A new image. One that is upright RGB in memory already, such as what this function returns, is only copied.

    Raises:
        ValueError: the file is missing, damaged, not an image or larger than `PIL.Image.MAX_IMAGE_PIXELS`; the array has
            another dtype or shape; the image has no pixels.
    """
    if _is_plain(image):
        return image.copy()
    if isinstance(image, np.ndarray | torch.Tensor):
        loaded = _from_array(image)
    elif isinstance(image, str | os.PathLike | Image.Image):
        loaded = _upright(image)
    else:
        raise ValueError(
            f"an image of type {type(image).__name__} is not supported: expected a path, a PIL image, a uint8 numpy "
            "array (H, W, C) or a uint8 torch tensor (C, H, W); convert it to one of these"
        )
    if 0 in loaded.size:
        raise ValueError(f"the image of size {loaded.size} has no pixels: expected at least one; leave it out")
    if loaded.mode.startswith(("I", "F")) and np.asarray(loaded).max() > 255:
        warnings.warn(
            f"{_name(image)} is of mode {loaded.mode}, and its values above 255 become white, as in transformers: scale it with "
            "vlm_vision.preprocess.images.to_8_bits",
            stacklevel=2,
        )
    if "A" in loaded.getbands() or loaded.info.get("transparency") is not None:
        loaded = loaded.convert("RGBA")
        loaded = Image.alpha_composite(Image.new("RGBA", loaded.size, "white"), loaded)
    return loaded if loaded.mode == "RGB" else loaded.convert("RGB")


def load_pixels(image: ImageInput) -> np.ndarray:
    """One image by `load_image`, as an array uint8 (H, W, 3) that may be the memory of `image`: do not write into it.

    Raises:
        ValueError: as `load_image`.
    """
    if _is_plain(image):
        return np.asarray(image)
    if (
        isinstance(image, np.ndarray)
        and image.dtype == np.uint8
        and image.ndim == 3
        and image.shape[2] == 3
        and image.size
    ):
        return np.ascontiguousarray(image)
    if isinstance(image, str | os.PathLike):
        decoded = _decoded(image)
        return decoded if isinstance(decoded, np.ndarray) else np.asarray(load_image(decoded))
    return np.asarray(load_image(image))


def to_8_bits(image: ImageInput, *, low: float = 0.0, high: float = 65535.0) -> Image.Image:
    """A gray image of more than 8 bits (depth, medical, industrial) as one of 8 bits, mode L.

    Args:
        image: path, PIL image of mode I;16, I or F, or an array (H, W) of numbers.
        low, high: values that become black and white; values between are scaled and rounded, others are clipped.

    Raises:
        ValueError: an image of several channels, values that are not finite, or low that is not below high.
    """
    if not low < high:
        raise ValueError(f"low is {low} and high {high}: expected low below high")
    if isinstance(image, str | os.PathLike | Image.Image):
        values = np.asarray(_upright(image), dtype=np.float64)
    else:
        values = np.asarray(image.detach().cpu() if isinstance(image, torch.Tensor) else image, dtype=np.float64)
    if values.ndim != 2 or not np.isfinite(values).all():
        raise ValueError(f"{_name(image)} has shape {values.shape}: expected a gray image (H, W) of finite numbers")
    return Image.fromarray(np.rint((values - low) / (high - low) * 255).clip(0, 255).astype(np.uint8))


def _name(image: ImageInput) -> str:
    if isinstance(image, Image.Image):
        name = getattr(image, "filename", "")
        return f"image {name!r}" if name else "the PIL image"
    return f"image file {os.fspath(image)!r}" if isinstance(image, str | os.PathLike) else "the array"


def _is_plain(image: ImageInput) -> TypeGuard[Image.Image]:
    """Whether an image is in memory, upright, RGB and opaque, so that it needs no conversion."""
    if type(image) is not Image.Image or image.mode != "RGB" or 0 in image.size:
        return False
    return "transparency" not in image.info and image.getexif().get(ExifTags.Base.Orientation, 1) == 1


def load_images(images: ImageInput | Sequence[ImageInput]) -> list[Image.Image]:
    """Images as `each_image` takes them, each by `load_image`.

    Raises:
        ValueError: as `load_image`; also when there is none.
    """
    return [load_image(image) for image in each_image(images)]


def each_image(images: ImageInput | Sequence[ImageInput]) -> Sequence[ImageInput]:
    """One image, a list or tuple of them, or a batch as one uint8 array (numpy (B, H, W, C), torch (B, C, H, W)), one by one.

    Raises:
        ValueError: there is none.
    """
    is_array = isinstance(images, np.ndarray | torch.Tensor)
    batch = images if isinstance(images, list | tuple) or (is_array and images.ndim == 4) else [images]
    if not len(batch):
        raise ValueError("there are no images: expected at least one; leave empty batches out")
    return cast(Sequence[ImageInput], batch)


def _upright(source: str | os.PathLike[str] | Image.Image) -> Image.Image:
    """Decodes a file or a lazily opened PIL image and applies its EXIF orientation; keeps the mode."""
    decoded = _decoded(source)
    return Image.fromarray(decoded) if isinstance(decoded, np.ndarray) else decoded


def _decoded(source: str | os.PathLike[str] | Image.Image) -> Image.Image | np.ndarray:
    """As `_upright`; an array (H, W, 3) where `decode_jpeg` gave one."""
    name = "the PIL image" if isinstance(source, Image.Image) else f"image file {os.fspath(source)!r}"
    try:
        if not isinstance(source, Image.Image) and os.path.exists(source) and not os.path.isfile(source):
            if not os.path.isdir(source):  # a pipe or a device would be read for ever
                raise ValueError(f"{name} is no regular file: expected the path of an image")
        if isinstance(source, Image.Image):
            return _all_pixels(source)
        with warnings.catch_warnings():
            # Pillow warns above its limit and raises above twice that; here the limit is a limit.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(source) as opened:
                if Image.MAX_IMAGE_PIXELS and opened.width * opened.height > Image.MAX_IMAGE_PIXELS:
                    raise ValueError(f"{name} has {opened.width} x {opened.height} pixels: {_limit()}")
                return _all_pixels(opened)
    except Exception as error:  # on damaged bytes Pillow's decoders raise almost any type
        if isinstance(error, ValueError) and str(error).startswith(name):
            raise
        if isinstance(error, Image.DecompressionBombError):
            raise ValueError(f"{name} has too many pixels: {_limit()}") from error
        damaged = f"cannot be decoded ({error}): expected a complete image; it is truncated or damaged, replace it"
        raise ValueError(f"{name} {_FILE_PROBLEMS.get(type(error), damaged)}") from error


def _limit() -> str:
    limit = Image.MAX_IMAGE_PIXELS
    return f"expected at most PIL.Image.MAX_IMAGE_PIXELS, {limit}; shrink it, or raise that limit for images that you trust"


def _all_pixels(opened: Image.Image) -> Image.Image | np.ndarray:
    pixels = decode_jpeg(opened)
    return ImageOps.exif_transpose(opened) if pixels is None else pixels


_FILE_PROBLEMS: dict[type[Exception], str] = {
    FileNotFoundError: "does not exist: expected the path of a local image; check the path",
    IsADirectoryError: "is a folder: expected the path of one image; pass a file inside it",
    UnidentifiedImageError: "is not an image that Pillow can read: expected JPEG, PNG, WebP or the like; convert the file",
}


def _to_uint8(image: np.ndarray | torch.Tensor) -> str:
    """How to make an array of numbers uint8, which depends on its values."""
    cast = ".to(torch.uint8)" if isinstance(image, torch.Tensor) else ".astype(np.uint8)"
    values = image.detach().cpu().float().numpy() if isinstance(image, torch.Tensor) else np.asarray(image)
    if values.dtype.kind not in "biuf" or not values.size or not np.isfinite(values).all():
        return "it holds values that are no finite numbers: repair it"
    least, most = float(values.min()), float(values.max())
    shown = f"its values are in {least:.4g}..{most:.4g}"
    if least < 0:
        return f"{shown}: pixels before normalization, without negative values, are needed"
    if most <= 1:
        return f"{shown}: convert them by (image * 255).round(){cast}"
    if most <= 255:
        return f"{shown}: convert them by image{'.round()' if values.dtype.kind == 'f' else ''}{cast}"
    return f"{shown}: scale a gray image by vlm_vision.preprocess.images.to_8_bits(image, high=...)"


def _from_array(image: np.ndarray | torch.Tensor) -> Image.Image:
    """Wraps a uint8 numpy (H, W[, C]) or torch ([C,] H, W) image without changing a value."""
    is_torch = isinstance(image, torch.Tensor)
    dtype, shape = str(image.dtype).removeprefix("torch."), tuple(image.shape)
    description = f"the {'torch tensor' if is_torch else 'numpy array'} of dtype {dtype} and shape {shape}"
    if dtype != "uint8":
        raise ValueError(f"{description} is not an 8-bit image: expected uint8 in 0..255; {_to_uint8(image)}")
    channels = 1 if image.ndim == 2 else shape[0 if is_torch else -1] if image.ndim == 3 else None
    if channels not in (1, 3, 4):
        layout, reorder = ("(C, H, W)", "permute(2, 0, 1)") if is_torch else ("(H, W, C)", "transpose(1, 2, 0)")
        raise ValueError(
            f"{description} is not one image: expected {layout} with C = 1, 3 or 4; reorder the axes by image.{reorder} or "
            "pass a batch to Preprocess"
        )
    if 0 in shape:
        raise ValueError(f"{description} has no pixels: expected at least one; leave it out")
    if isinstance(image, torch.Tensor):
        image = image.detach().cpu().numpy()
        image = image.transpose(1, 2, 0) if image.ndim == 3 else image
    return Image.fromarray(np.ascontiguousarray(image[..., 0] if image.ndim == 3 and channels == 1 else image))
