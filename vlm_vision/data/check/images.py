"""Images of a source: files that are missing or no images, and their sizes, from their headers; or decoded in full."""

import io
import os
import warnings
from collections.abc import Iterable, Sequence

from PIL import ExifTags, Image

from vlm_vision.data.check.report import DataReport
from vlm_vision.data.sample import Samples
from vlm_vision.data.stored_image import ImageSource, open_stored_images
from vlm_vision.preprocess.images import load_image

_HEADER = 16 * 1024
"""Bytes in which the header of most images lies."""
THIN = 200
"""Ratio of the sides above which an image is doubtful."""


class ImageCheck:
    """Checks each image once.

    Args:
        decode: decode images in full, which finds damage behind the header; else read headers alone.
    """

    def __init__(self, report: DataReport, *, decode: bool = False):
        self.report, self.decode = report, decode
        self.problems: dict[ImageSource, str] = {}
        self.sizes: dict[ImageSource, tuple[int, int]] = {}
        """Image -> (height, width)."""

    def __call__(self, image: ImageSource) -> str:
        """What is wrong with an image, in one sentence; empty for nothing."""
        if image not in self.problems:
            self.problems[image] = self._problem(image)
        return self.problems[image]

    def _problem(self, image: ImageSource) -> str:
        name = str(image)
        try:
            if isinstance(image, str) and not os.path.isfile(image):
                what = "is no regular file" if os.path.exists(image) else "does not exist"
                return f"image {name} {what}: check the folder that image paths start from"
            width, height, modes = _header(image)
            if Image.MAX_IMAGE_PIXELS and width * height > Image.MAX_IMAGE_PIXELS:
                return f"image {name} has {width} x {height} pixels, more than PIL.Image.MAX_IMAGE_PIXELS: shrink it"
            if self.decode:
                load_image(open_stored_images([image])[0])
        except (ValueError, OSError, Image.DecompressionBombError, SyntaxError) as error:
            return f"image {name} cannot be read ({' '.join(str(error).split())[:150]}): replace it or leave it out"
        self.sizes[image] = height, width
        if max(width, height) > THIN * min(width, height):
            self.report.doubt("thin images", f"{name} has {width} x {height} pixels")
        if modes.startswith("I") or modes == "F":
            self.report.doubt(
                "images of more than 8 bits", f"{name} is of mode {modes}, whose values above 255 become white"
            )
        return ""

    def facts(self) -> dict[str, object]:
        """Number of images and their sizes."""
        found: dict[str, object] = {"images": len(self.problems)}
        if self.sizes:
            heights, widths = zip(*self.sizes.values(), strict=True)
            found["height"] = f"{min(heights)} to {max(heights)} pixels"
            found["width"] = f"{min(widths)} to {max(widths)} pixels"
        return found


def _header(image: ImageSource) -> tuple[int, int, str]:
    """Width and height of the upright image, and its mode."""
    if isinstance(image, str):
        return _opened(image)
    try:
        return _opened(io.BytesIO(image.head(_HEADER)))
    except (OSError, SyntaxError):  # the size may stand behind a large block of other data
        return _opened(io.BytesIO(image.read()))


def _opened(source: str | io.BytesIO) -> tuple[int, int, str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with Image.open(source) as opened:
            turned = opened.getexif().get(ExifTags.Base.Orientation, 1) >= 5
            width, height = (opened.height, opened.width) if turned else opened.size
            return width, height, opened.mode


def check_samples(source: str, samples: Samples, *, decode: bool = False) -> DataReport:
    """A check of images with captions or labels. Shards by URL are not fetched.

    Args:
        decode: decode every image.
    """
    report = DataReport(source, {"samples": len(samples)})
    if samples.shards is not None:
        report.facts["shards"] = len(samples.shards.sizes)
        if samples.shards.fetch is not None:
            report.facts["not read"] = "shards by URL"
            return report
    look, captions, labels, seen = ImageCheck(report, decode=decode), 0, {}, {}
    for row in range(len(samples)):
        try:
            sample = samples[row]
        except ValueError as error:
            report.error("bad records", str(error), row)
            continue
        if problem := look(sample.image):
            report.error("missing or broken images", f"{sample.name}: {problem}", row)
        captions += bool(sample.caption)
        if sample.label >= 0:
            labels[sample.label] = labels.get(sample.label, 0) + 1
        if (same := seen.setdefault((sample.image, sample.caption, sample.label), row)) != row:
            report.doubt("duplicates", f"{sample.name} is the same as sample {same}")
    report.facts |= look.facts()
    if captions:
        report.facts["captions"] = captions
        if captions < len(samples):
            report.doubt("samples without a caption", f"{len(samples) - captions} of {len(samples)}")
    if samples.classes:
        report.facts["classes"] = len(samples.classes)
        report.facts["samples of a class"] = _range(labels.get(i, 0) for i in range(len(samples.classes)))
        if empty := [name for i, name in enumerate(samples.classes) if i not in labels]:
            report.doubt("classes without a sample", ", ".join(empty[:5]), len(empty))
        if (without := len(samples) - sum(labels.values())) > 0:
            report.doubt("samples without a label", f"{without} of {len(samples)}")
    return report


def _range(values: Iterable[int]) -> str:
    counts: Sequence[int] = sorted(values)
    return f"{counts[0]:,} to {counts[-1]:,}" if counts else "none"
