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
    is converted by Pillow (image processors). So 16-bit gray saturates above 255:
    scale such images to 8 bits yourself.

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
        if isinstance(source, Image.Image):
            return _all_pixels(source)
        with warnings.catch_warnings():
            # Pillow warns above its limit and raises above twice that; here the limit is a limit.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(source) as opened:
                if Image.MAX_IMAGE_PIXELS and opened.width * opened.height > Image.MAX_IMAGE_PIXELS:
                    raise Image.DecompressionBombError
                return _all_pixels(opened)
    except Exception as error:  # on damaged bytes Pillow's decoders raise almost any type
        damaged = f"cannot be decoded ({error}): expected a complete image; it is truncated or damaged, replace it"
        raise ValueError(f"{name} {_FILE_PROBLEMS.get(type(error), damaged)}") from error


def _all_pixels(opened: Image.Image) -> Image.Image | np.ndarray:
    pixels = decode_jpeg(opened)
    return ImageOps.exif_transpose(opened) if pixels is None else pixels


_FILE_PROBLEMS: dict[type[Exception], str] = {
    FileNotFoundError: "does not exist: expected the path of a local image; check the path",
    IsADirectoryError: "is a folder: expected the path of one image; pass a file inside it",
    UnidentifiedImageError: "is not an image that Pillow can read: expected JPEG, PNG, WebP or the like; convert the file",
    Image.DecompressionBombError: "has too many pixels: expected at most PIL.Image.MAX_IMAGE_PIXELS; shrink it",
}


def _from_array(image: np.ndarray | torch.Tensor) -> Image.Image:
    """Wraps a uint8 numpy (H, W[, C]) or torch ([C,] H, W) image without changing a value."""
    is_torch = isinstance(image, torch.Tensor)
    dtype, shape = str(image.dtype).removeprefix("torch."), tuple(image.shape)
    description = f"the {'torch tensor' if is_torch else 'numpy array'} of dtype {dtype} and shape {shape}"
    if dtype != "uint8":
        convert = "(image * 255).round()" + (".to(torch.uint8)" if is_torch else ".astype(np.uint8)")
        raise ValueError(
            f"{description} is not an 8-bit image: expected uint8 in 0..255; convert values in 0..1 by {convert}"
        )
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
