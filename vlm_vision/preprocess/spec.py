"""Images to pixel tensors: any image to 8-bit RGB, resize, center crop, rescale, normalize.

`Preprocess` describes the steps as plain data, so that it can be saved with a checkpoint, hashed, and used unchanged in
training, evaluation and serving. By default it resizes with Pillow on 8-bit pixels, as transformers' PIL image
processors, timm and open_clip do.
"""

import dataclasses
import hashlib
import json
import math
import operator
from collections.abc import Sequence
from typing import Any, Self, get_args

import numpy as np
import torch
from PIL import Image

from vlm_vision.preprocess.checks import STATISTICS, bounded, check_name, checked, is_factor, whole_number
from vlm_vision.preprocess.images import ImageInput, each_image, load_pixels
from vlm_vision.preprocess.openvla import CameraPath, camera_path
from vlm_vision.preprocess.resize import (
    KERNEL_FILTERS,
    CropPlace,
    CropRounding,
    Kernel,
    ResampleFilter,
    as_image,
    crop_array,
    resize_array,
    size_on_canvas,
    with_bars,
)
from vlm_vision.preprocess.sizes import AREAS, COUNTED, SIDED, SIZES, Bounds, ResizeMode
from vlm_vision.preprocess.steps import ImageStep, after

# Mean and standard deviation of RGB in 0..1, as checkpoints were trained with them.
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
OPENAI = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preprocess:
    """The steps from an image to the pixels of an encoder, in this order.

    pixels = (crop(resize(before(camera(rgb)))) * rescale - mean) / std

    A field without effect keeps its default, so that equal steps have equal fingerprints.

    Raises:
        ValueError: an unknown name, a size that is not positive, a number that is not finite, `std` or `rescale` zero;
            fields that contradict each other.
    """

    resize: ResizeMode
    """
    none: no resize.
    squash: to `resize_to`, without regard to the aspect ratio.
    shortest_edge: the shorter edge to `resize_to`, the aspect ratio kept, the longer edge rounded down.
    longest_edge: the longer edge to `resize_to`, the aspect ratio kept, the shorter edge rounded (SAM).
    max_patches: the largest size that keeps the aspect ratio, has sides that are multiples of `patch_size` and at most
        `max_patches` patches; at most 100 times the image's own (NaFlex, Tschannen et al. 2025, arXiv:2502.14786).
    fill_patches: scaled to the area of `max_patches` patches, each side rounded down to a multiple of `patch_size` (Gemma 4).
    whole_patches: the same, but at least one patch in each direction and no more for that in the other (Pix2Struct).
    within_patches: an image larger than `resize_to` as within; then each side rounded up to a multiple of `patch_size`
        (Pixtral).
    shaped_patches: an image of more than `max_patches` patches scaled to that area; then each side rounded down or up to a
        multiple of `patch_size`, whichever sides come nearest to its aspect ratio (Muse).
    shrunk_patches: an image of more than `max_patches` patches, or with an edge above `resize_to`, scaled down to both, each
        side rounded down; then filled up to multiples of `multiple` (Kimi K2.5).
    bounded_patches: each side rounded up to a multiple of `patch_size`; scaled so that the number of patches is within
        `resize_to`; each side then changed to a multiple of `multiple` (Nemotron Omni).
    area: each side rounded to a multiple of `patch_size`; where the area is then outside `resize_to`, scaled into it first,
        the aspect ratio kept (Qwen2-VL, Wang et al. 2024, arXiv:2409.12191).
    floored_area, rounded_area: as area, but an image with a side below `patch_size` is enlarged first: until it has none,
        both sides rounded down (GLM-4V); or each such side to `patch_size`, the other side rounded (PaddleOCR-VL).
    padded_area: at the top left of a black canvas, whose sides are multiples of `patch_size`, each as little above the
        image's as that allows; where the canvas's area is outside `resize_to`, the image is scaled first (GLM-5).
    near_area: scaled to the area of `resize_to`, each side then rounded to a multiple of `patch_size` (MiniCPM-V 4.6).
    half_area: half the size, each side rounded to a multiple of `patch_size`, the edges within the roots of `resize_to`
        (GLM-Image).
    letterbox: made square by equal bars of `fill` on both sides, then `resize_to` (OpenVLA).
    square: made square by zeros below or at the right, then `resize_to` (OWLv2).
    cover, fit: the aspect ratio kept, the smallest size that covers `resize_to`, or the largest within it, both edges
        rounded (timm's ResizeKeepRatio).
    within: as fit, both edges rounded down after a division by the larger ratio (resize_with_pad of openpi, LeRobot).
    scaled_within: as fit, both edges rounded down after a product with the smaller ratio (transformers' max_height).
    between: an image whose longer edge is above `resize_to[1]` to that edge, the aspect ratio kept, the shorter edge
        rounded down; then each edge below `resize_to[0]` to that (Idefics2).
    edges_rounded, edges_floored: the longer edge to `resize_to[1]`, the shorter by the same factor, rounded to even (Janus)
        or down (Aria), but at least `resize_to[0]`.
    edges_divided: the shorter edge to `resize_to[0]`, or the longer to `resize_to[1]` if it were above; then both down to
        multiples of `patch_size` (BridgeTower).
    """
    resize_to: tuple[int, int]
    """(height, width) in pixels; the least and the most patches for bounded_patches; the edge twice for shortest_edge,
    longest_edge, near_area, shrunk_patches and letterbox; two edges for between and edges_...; the least and the most area
    for the areas but near_area; (0, 0) for none and numbers of patches."""
    resample: ResampleFilter
    """Pillow's filter of that name."""
    crop: tuple[int, int] | None
    """(height, width) of the crop in pixels; `fill` is added where the image is smaller. None for no crop."""
    rescale: float
    """Factor on 0..255 values, usually 1/255."""
    mean: tuple[float, float, float]
    """Mean of each channel RGB, after `rescale`; zeros for none."""
    std: tuple[float, float, float]
    """Standard deviation of each channel RGB, after `rescale`; ones for none."""
    patch_size: int = 0
    """Pixels along a patch's side, or of a square of patches that are merged, for numbers of patches and areas; else 0."""
    max_patches: int = 0
    """Most patches, or squares, of an image; 0 where `resize` does not count them."""
    multiple: int = 0
    """Pixels that divide each side: after the resize, `fill` is added at the right and below; 0 for none."""
    fill: tuple[float, float, float] = (0, 0, 0)
    """RGB in 0..255 of pixels that letterbox (whole numbers) or a crop larger than the image adds."""
    crop_rounding: CropRounding = "floor"
    """Rounding of half a pixel: floor as in transformers; half_even as in torchvision, hence timm and open_clip;
    truncated, toward zero, as in transformers' processors with torchvision."""
    kernel: Kernel = "pillow"
    """
    pillow: antialiased, rounded to 8 bits.
    float: antialiased, not rounded, as transformers' DINOv3 processor; bilinear or bicubic.
    point: between two by two pixels, no antialiasing, truncated to 8 bits, as big_vision's `resize`; bilinear.
    point_float: between two by two pixels, no antialiasing, not rounded, as LeRobot; bilinear.
    point_rounded: between two by two pixels, no antialiasing, rounded to 8 bits, as Molmo2 and MolmoAct2; bilinear.
    torch: antialiased, in whole numbers by torch, as torchvision.transforms.v2, hence transformers' processors
        with torchvision; bilinear, bicubic, lanczos (from torch 2.12), or nearest, without antialiasing.
    torchvision: antialiased, rounded to 8 bits at the end, as torchvision.transforms.functional (EVO-1); bilinear or bicubic.
    gaussian: a Gauss filter before two by two pixels, not rounded, as scikit-image and transformers' Owlv2 with Pillow; bilinear.
    blurred: the same by torch, the filter cut sooner, as transformers' Owlv2 with torchvision; bilinear.
    """
    crop_place: CropPlace = "centre"
    """The part of the image that a crop keeps; of a crop that is larger, where the image lies in it."""
    standardize: bool = False
    """Each image less its own mean and over its own deviation, of all pixels and channels, before the resize (Pix2Struct)."""
    sample_deviation: bool = False
    """Deviation of `standardize` over one less than the number of values, as torch's, not over their number."""
    camera: CameraPath | None = None
    """Steps on a camera's image before all others, which the training images went through. None for none."""
    before: tuple[ImageStep, ...] = ()
    """Resizes and crops by a robot's policy before its image processor."""

    def __post_init__(self) -> None:
        names = {"resize": ResizeMode, "resample": ResampleFilter, "crop_rounding": CropRounding, "kernel": Kernel}
        names["crop_place"] = CropPlace
        for field, allowed in names.items():
            check_name(field, getattr(self, field), get_args(allowed))
        least = 0 if self.resize in ("none", *COUNTED) else 1
        pixels = "positive whole numbers of pixels"
        resize_to = checked("resize_to", self.resize_to, operator.index, 2, lambda size: size >= least, pixels)
        if self.resize in ("none", *COUNTED):
            expected = (0, 0)
        elif self.resize in ("shortest_edge", "longest_edge", "letterbox", "near_area", "shrunk_patches"):
            expected = (resize_to[0], resize_to[0])
        else:
            expected = resize_to
        if resize_to != expected:
            raise ValueError(f"resize_to is {resize_to} but resize is {self.resize!r}: expected {expected}")
        object.__setattr__(self, "resize_to", resize_to)
        if self.crop is not None:
            object.__setattr__(self, "crop", checked("crop", self.crop, operator.index, 2, lambda n: n >= 1, pixels))
        factor = "finite numbers, a factor not zero"
        object.__setattr__(self, "rescale", *checked("rescale", [self.rescale], float, 1, is_factor, factor))
        for field, (valid, kind) in STATISTICS.items():
            object.__setattr__(self, field, checked(field, getattr(self, field), float, 3, valid, kind))
        darkest = -1 if self.multiple and self.resize != "letterbox" else 0  # Inkling 2 fills up with one below black
        color = checked("fill", self.fill, float, 3, lambda c: darkest <= c <= 255, f"numbers in {darkest}..255")
        if self.resize == "letterbox" or all(value == int(value) for value in color):
            whole = f"whole numbers in {darkest}..255"
            color = checked("fill", color, whole_number, 3, lambda c: True, whole)
        object.__setattr__(self, "fill", color)
        if self.camera is not None and not isinstance(self.camera, CameraPath):
            raise ValueError(f"camera is {self.camera!r}: expected a CameraPath or None; see with_evaluation")
        if not isinstance(self.before, list | tuple) or not all(isinstance(step, ImageStep) for step in self.before):
            raise ValueError(f"before is {self.before!r}: expected a tuple of ImageStep")
        object.__setattr__(self, "before", tuple(self.before))
        for field, modes in (
            ("patch_size", (*COUNTED, *AREAS, *SIDED, "within_patches", "edges_divided")),
            ("max_patches", (*COUNTED, "shrunk_patches")),
        ):
            value, needed = getattr(self, field), self.resize in modes
            if not isinstance(value, int) or (value < 1 if needed else value != 0):
                allowed = "a positive whole number" if needed else "0"
                raise ValueError(f"{field} is {value!r} but resize is {self.resize!r}: expected {allowed}")
        self._check_combination()

    def _check_combination(self) -> None:
        filters = KERNEL_FILTERS[self.kernel]
        if self.resample not in filters:
            raise ValueError(f"kernel {self.kernel!r} has no filter {self.resample!r}: expected {' or '.join(filters)}")
        if self.kernel != "pillow" and self.resize == "none":
            raise ValueError(f"kernel is {self.kernel!r} but resize is 'none': expected 'pillow', or a resize")
        means = [step.kernel == "mean" for step in self.before]
        if any(means) and (any(means[:-1]) or (self.kernel != "float" and self.resize != "none")):
            raise ValueError(
                f"before is {self.before}: expected a step of kernel 'mean', which does not round, as the last, and kernel 'float'"
            )
        if self.standardize and self.kernel != "float":
            raise ValueError(f"standardize is True but kernel is {self.kernel!r}, which rounds: expected 'float'")
        if self.sample_deviation and not self.standardize:
            raise ValueError("sample_deviation is True but standardize is False: expected False, or standardize=True")
        if not isinstance(self.multiple, int) or self.multiple < (self.resize in SIDED):
            least = "a positive" if self.resize in SIDED else "a"
            raise ValueError(
                f"multiple is {self.multiple!r} for resize {self.resize!r}: expected {least} number of pixels"
            )
        if self.crop is not None and (self.resize in (*COUNTED, *AREAS, *SIDED) or self.multiple):
            raise ValueError(
                f"crop is {self.crop} but resize is {self.resize!r}, which keeps the whole image: expected crop=None"
            )
        within = self.resize in AREAS and self.resize != "near_area"
        if within and not self.patch_size**2 <= self.resize_to[1] >= self.resize_to[0]:
            raise ValueError(f"resize_to is {self.resize_to}: expected the least and the most pixels of an image")
        if self.crop is None and self.crop_rounding != "floor":
            raise ValueError(f"crop_rounding is {self.crop_rounding!r} but crop is None: expected 'floor', or a crop")
        if self.crop_place != "centre" and (self.crop is None or self.crop_rounding != "floor"):
            raise ValueError(
                f"crop_place is {self.crop_place!r} but crop is {self.crop} and crop_rounding {self.crop_rounding!r}: "
                "expected 'centre', or a crop with crop_rounding 'floor', which has no effect there"
            )
        if self.crop is None and not self.multiple and self.resize != "letterbox" and self.fill != (0, 0, 0):
            raise ValueError(
                f"fill is {self.fill} but nothing is added to the image: expected (0, 0, 0), a crop, a multiple or "
                "resize='letterbox'"
            )

    def __call__(self, images: ImageInput | Sequence[ImageInput]) -> torch.Tensor:
        """Images to pixels, float32 (B, 3, H, W), contiguous, on the CPU.

        Args:
            images: one image as `load_image` takes it, a list or tuple of them, or a batch of equal ones as one uint8
                array: numpy (B, H, W, C), torch (B, C, H, W).

        Raises:
            ValueError: as `load_image`; also when there is no image, or the results differ in size.
        """
        resized_images = [self._resize_and_crop(load_pixels(image)) for image in each_image(images)]
        sizes = sorted({image.shape[:2] for image in resized_images})
        if len(sizes) > 1:
            raise ValueError(
                f"the images have sizes {sizes} (height, width) after resizing: expected one size in a batch; set a "
                "crop or resize='squash', or keep the sizes by encoder.packed(preprocess.each(images))"
            )
        pixels = np.empty((len(resized_images), 3, *sizes[0]), dtype=np.float32)
        for row, image in zip(pixels, resized_images, strict=True):
            self._normalize(image, row)
        return torch.from_numpy(pixels)

    def each(self, images: ImageInput | Sequence[ImageInput]) -> list[torch.Tensor]:
        """Images to pixels, one float32 (3, H, W) each, whose sizes may differ.

        Raises:
            ValueError: as `load_image`; also when there is no image.
        """
        pixels = []
        for image in each_image(images):
            resized = self._resize_and_crop(load_pixels(image))
            pixels.append(np.empty((3, *resized.shape[:2]), dtype=np.float32))
            self._normalize(resized, pixels[-1])
        return [torch.from_numpy(planes) for planes in pixels]

    def _normalize(self, image: np.ndarray, out: np.ndarray) -> None:
        """(H, W, 3) in 0..255 to float32 (3, H, W)."""
        scale = np.divide(self.rescale, self.std).astype(np.float32).reshape(3, 1, 1)
        shift = np.divide(self.mean, self.std).astype(np.float32).reshape(3, 1, 1)
        np.multiply(image.transpose(2, 0, 1), scale, out=out)
        out -= shift

    def _resize_and_crop(self, original: np.ndarray) -> np.ndarray:
        """(H, W, 3) in 0..255, uint8 or float32."""
        image = original if self.camera is None else self.camera(Image.fromarray(original))
        if self.before:
            image = after(image, self.before)
        if self.resize == "letterbox":
            image = as_image(with_bars(np.asarray(image), self.fill))
        if self.resize == "square":
            whole = np.asarray(image)
            image = as_image(crop_array(whole, (max(whole.shape[:2]),) * 2, (0, 0, 0), "floor", "top_left"))
        height, width = (image.height, image.width) if isinstance(image, Image.Image) else image.shape[:2]
        if self.resize == "none":
            pixels = np.asarray(image)
        else:
            pixels = resize_array(
                image, bounded(self.resized(height, width), height, width), self.resample, self.kernel
            )
        if self.resize == "letterbox":  # a bar is whole pixels, so that the square may lack one
            pixels = crop_array(pixels, self.resize_to, self.fill, "half_even")
        if self.resize == "padded_area":
            _, canvas = size_on_canvas(height, width, self.patch_size, *self.resize_to)
            pixels = crop_array(pixels, canvas, self.fill, "floor", "top_left")
        if self.multiple:
            pixels = crop_array(pixels, self._filled(*pixels.shape[:2]), self.fill, "floor", "top_left")
        if self.standardize:
            whole = np.asarray(image, dtype=np.float32)
            pixels = (pixels - whole.mean()) / max(
                whole.std(ddof=int(self.sample_deviation)), 1 / math.sqrt(whole.size)
            )
        place = self.crop_rounding, self.crop_place
        return pixels if self.crop is None else crop_array(pixels, self.crop, self.fill, *place)

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) to which an image of this height and width is resized, before padding and crop."""
        bounds = Bounds(self.resize_to, self.patch_size, self.max_patches, self.multiple)
        return SIZES[self.resize](height, width, bounds)

    def _filled(self, height: int, width: int) -> tuple[int, int]:
        """The sides up to multiples of `multiple`, if there is one."""
        step = self.multiple or 1
        return -(-height // step) * step, -(-width // step) * step

    @property
    def output_size(self) -> tuple[int, int] | None:
        """(height, width) of the pixels; None when it depends on the image."""
        return self.crop or (
            self._filled(*self.resize_to) if self.resize in ("squash", "letterbox", "square") else None
        )

    def at(self, height: int, width: int) -> Self:
        """The same kind of preprocessing for another output size, in pixels.

        With a crop, the resize keeps its ratio to the crop, rounded: edge 256 and crop 224 at (448, 448) is edge 512.
        For a crop that is not square the edge follows its longer side, so that images still fill it.

        Raises:
            ValueError: the output size depends on the image, so that none can be set; sides that `multiple` does not divide.
        """
        if self._filled(height, width) != (height, width):
            raise ValueError(f"sides are filled up to multiples of {self.multiple} pixels, got {(height, width)}")
        by_edge = self.resize in ("shortest_edge", "letterbox")
        if self.crop is None and self.resize != "squash" and not (by_edge and height == width):
            raise ValueError(
                f"resize={self.resize!r} without a crop cannot give every image the size {(height, width)}: set "
                "a crop or resize='squash'"
            )
        base, resize_to = self.crop or self.resize_to, self.resize_to
        if by_edge:
            resize_to = (round(resize_to[0] * max(height, width) / max(base)),) * 2
        elif self.resize != "none":
            resize_to = (round(resize_to[0] * height / base[0]), round(resize_to[1] * width / base[1]))
        return dataclasses.replace(self, resize_to=resize_to, crop=self.crop and (height, width))

    def with_budget(self, max_patches: int, patch_size: int) -> Self:
        """The whole image in at most `max_patches` patches, its aspect ratio kept: this filter and normalization,
        resize "max_patches", no crop.

        Raises:
            ValueError: a number that is not positive and whole.
        """
        return dataclasses.replace(
            self,
            resize="max_patches",
            resize_to=(0, 0),
            crop=None,
            patch_size=patch_size,
            max_patches=max_patches,
            multiple=0,
            fill=(0, 0, 0),
            crop_rounding="floor",
            crop_place="centre",
        )

    def with_evaluation(self, name: str, *, crop: bool) -> Self:
        """The same preprocessing after the camera path of a published policy's evaluation.

        Args:
            name: "openvla" or "openvla_oft", see `vlm_vision.preprocess.openvla.EVALUATIONS`; "none" removes it.
            crop: the middle 0.9 of the area, for a policy trained with image augmentation, as those for LIBERO.

        Raises:
            ValueError: an unknown name.
        """
        return dataclasses.replace(self, camera=camera_path(name, crop=crop))

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON types, without those that have their default."""
        given = {
            field.name: getattr(self, field.name) for field in _FIELDS if getattr(self, field.name) != field.default
        }
        plain = {name: list(value) if isinstance(value, tuple) else value for name, value in given.items()}
        plain |= {} if self.camera is None else {"camera": self.camera.to_dict()}
        return plain | ({"before": [step.to_dict() for step in self.before]} if self.before else {})

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Self:
        """Inverse of `to_dict`.

        Raises:
            ValueError: an unknown or missing key, or a wrong value.
        """
        names = {field.name for field in _FIELDS}
        required = {field.name for field in _FIELDS if field.default is dataclasses.MISSING}
        unknown, lacking = sorted(fields.keys() - names), sorted(required - fields.keys())
        if unknown or lacking:
            raise ValueError(f"preprocess has unknown keys {unknown} and lacks {lacking}: expected {sorted(names)}")
        given = dict(fields)
        if given.get("camera") is not None:
            given["camera"] = CameraPath.from_dict(given["camera"])
        if given.get("before") is not None:
            given["before"] = tuple(ImageStep.from_dict(step) for step in given["before"])
        return cls(**given)

    @property
    def fingerprint(self) -> str:
        """16 hex digits of the SHA-256 of `to_dict` as canonical JSON, different for any other field."""
        canonical = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]


_FIELDS = dataclasses.fields(Preprocess)
