"""The store that a recipe makes of its own images, once for all runs with the same tower."""

import hashlib
import json
import logging
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm.auto import tqdm

from vlm_vision.data.stored_image import ImageSource, StoredImage
from vlm_vision.encoder import Encoder
from vlm_vision.fused import FusedEncoder
from vlm_vision.tokens.about import ABOUT, read_about, weights_fingerprint
from vlm_vision.tokens.extraction.extract import extract
from vlm_vision.tokens.source import Item, Opened
from vlm_vision.tokens.store import TokenStore
from vlm_vision.tokens.training.features import StoredFeatures
from vlm_vision.tokens.training.match import towers_of
from vlm_vision.tokens.wanted import StoredDtype, Wanted

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImageList:
    """Images of a data set as a source: the key of each is `str(image)`."""

    listed: tuple[ImageSource, ...]

    def items(self) -> Iterator[Item]:
        for number, image in enumerate(self.listed):
            yield Item(str(image), start=number)

    def images(self, items: Sequence[Item]) -> Iterator[Opened]:
        return (self.listed[item.start] for item in items)

    def check(self) -> None:
        """Nothing: each image has a place of its own."""


def fingerprint(encoder: Encoder | FusedEncoder, images: Sequence[ImageSource]) -> str:
    """16 hex digits that change with the tower's weights, preprocessing or tap, and with the list of images.

    Images count by name and by size and time of their file, or by the version of a stored image; they are
    not read. Raises ValueError for a missing one.
    """
    described = {"encoder": encoder.to_dict(), "weights": weights_fingerprint(encoder)}
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode())
    for image in images:
        digest.update(f"{image}\0{_version(image)}\n".encode(errors="surrogatepass"))
    return digest.hexdigest()[:16]


def has_one_tap(encoder: Encoder | FusedEncoder) -> bool:
    """Whether all towers have the same tap, as a store has."""
    return len({tower.tap for tower in towers_of(encoder)}) == 1


def build_features(
    folder: str | Path,
    encoder: Encoder | FusedEncoder,
    images: Sequence[ImageSource],
    *,
    dtype: StoredDtype = "float16",
    batch_size: int = 32,
) -> StoredFeatures:
    """Encode images to a store in `folder`/fingerprint, or open the one there; a build that was killed resumes.

    Args:
        folder: folder of all such stores, which runs may share.
        encoder: the frozen tower, on the device to use, with one tap for all of its towers.
        images: paths and stored images; doubles are encoded once.
        dtype: number format on disk.
        batch_size: images at a time.

    Raises:
        ValueError: no image, one that is missing or damaged, or tokens too large for dtype.
    """
    listed = tuple({str(image): image for image in images}.values())
    if not listed:
        raise ValueError("there are no images to encode: expected at least one")
    home = Path(folder) / f"{fingerprint(encoder, listed)}-{dtype}"
    if (home / ABOUT).is_file() and read_about(home)["finished"]:
        log.info("patch tokens of %d images are read from %s", len(listed), home)
    else:
        _encode(home, encoder, listed, dtype, batch_size)
    return StoredFeatures(TokenStore(home), encoder)


def _encode(
    home: Path, encoder: Encoder | FusedEncoder, images: tuple[ImageSource, ...], dtype: StoredDtype, batch_size: int
) -> None:
    tap = towers_of(encoder)[0].tap
    wanted = Wanted(
        layers=(tap.layer, *tap.more), norm=tap.norm, parts=("patch_tokens",), dtype=dtype, batch_size=batch_size
    )
    with tqdm(total=len(images), desc="encoding images", unit="image") as bar:
        try:
            extract(
                ImageList(images),
                encoder,
                home,
                wanted=wanted,
                described={"sources": [f"{len(images)} images of a recipe"]},
                max_bad=0,
                progress=lambda done, total, bad: bar.update(done - bar.n),  # type: ignore[func-returns-value]
            )
        except ValueError:  # an image or the tower is at fault: once that is mended, the fingerprint is another
            shutil.rmtree(home, ignore_errors=True)
            raise


def _version(image: ImageSource) -> str:
    if isinstance(image, StoredImage):
        return image.version()
    if not Path(image).is_file():
        raise ValueError(f"there is no image {image}: check the folder that image paths start from")
    stat = Path(image).stat()
    return f"{stat.st_size}\0{stat.st_mtime_ns}"
