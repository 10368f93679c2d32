"""Patch tokens of a frozen tower, computed once and kept on disk."""

import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from vlm_vision.data.stored_image import ImageSource, StoredImage, open_stored_images
from vlm_vision.encoder import Encoder, eval_mode
from vlm_vision.files import whole
from vlm_vision.fused import FusedEncoder

log = logging.getLogger(__name__)


def fingerprint(encoder: Encoder | FusedEncoder, images: Sequence[ImageSource]) -> str:
    """16 hex digits that change with the tower's weights, preprocessing or tap, and with the list of images.

    Images count by name and by size and time of their file, or by the version of a stored image; they are
    not read. Raises ValueError for a missing one.
    """
    digest = hashlib.sha256(json.dumps(encoder.to_dict(), sort_keys=True).encode())
    for name, weight in encoder.state_dict().items():
        digest.update(name.encode())
        digest.update(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    for image in images:
        digest.update(f"{image}\0{_version(image)}\n".encode())
    return digest.hexdigest()[:16]


def _version(image: ImageSource) -> str:
    if isinstance(image, StoredImage):
        return image.version()
    if not Path(image).is_file():
        raise ValueError(f"there is no image {image}: check the folder that image paths start from")
    stat = Path(image).stat()
    return f"{stat.st_size}\0{stat.st_mtime_ns}"


class FeatureCache:
    """Patch tokens of many images, memory-mapped.

    `build` makes one, or opens the one in `folder` with the right fingerprint; `cache[images]` reads rows. Workers
    of a DataLoader get the folder, not the tokens.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        about = json.loads((folder / "features.json").read_text())
        self.grid: tuple[int, int] = tuple(about["grid"])
        self._rows = {image: i for i, image in enumerate(about["images"])}
        self._tokens = np.load(folder / "features.npy", mmap_mode="r")

    def __reduce__(self) -> tuple[type["FeatureCache"], tuple[Path]]:
        return FeatureCache, (self._folder,)

    def __getitem__(self, images: Sequence[ImageSource]) -> Tensor:
        """(len(images), N, D) in the stored dtype. Raises ValueError for an image that was not built."""
        try:
            rows = [self._rows[str(image)] for image in images]
        except KeyError as error:
            raise ValueError(
                f"{self._folder} has no features of image {error.args[0]}: build it with that image too"
            ) from None
        return torch.from_numpy(self._tokens[rows])

    @classmethod
    @torch.no_grad()
    def build(
        cls,
        folder: str | Path,
        encoder: Encoder | FusedEncoder,
        images: Sequence[ImageSource],
        *,
        batch_size: int = 32,
        dtype: str = "float16",
    ) -> "FeatureCache":
        """Encode images to `folder`/fingerprint, unless that exists.

        Args:
            folder: folder of all caches.
            encoder: the frozen tower, on the device to use.
            images: paths and stored images; doubles are encoded once.
            batch_size: images at a time.
            dtype: numpy dtype on disk, "float16" or "float32".

        Raises:
            ValueError: no image, one that is missing or damaged, images whose grids differ, or tokens too large for dtype.
        """
        images = list(dict.fromkeys(images))
        if not images:
            raise ValueError("there are no images to encode: expected at least one")
        home = Path(folder) / f"{fingerprint(encoder, images)}-{dtype}"
        if (home / "features.json").is_file() and (home / "features.npy").is_file():
            log.info("features of %d images are read from %s", len(images), home)
            return cls(home)
        with eval_mode(encoder), whole(home) as staging:
            tokens, grid = None, None
            for start in tqdm(range(0, len(images), batch_size), desc="encoding images", unit="batch"):
                batch = open_stored_images(images[start : start + batch_size])
                out = encoder(encoder.preprocess(batch).to(encoder.device), pool=False)
                if grid not in (None, out.grid):
                    raise ValueError(
                        f"images give grids {grid} and {out.grid}: a cache needs preprocessing to one size"
                    )
                grid = out.grid
                if tokens is None:
                    shape = (len(images), *out.patch_tokens.shape[1:])
                    tokens = np.lib.format.open_memmap(staging / "features.npy", mode="w+", dtype=dtype, shape=shape)
                with np.errstate(over="ignore"):
                    found = out.patch_tokens.float().cpu().numpy().astype(dtype)
                if not np.isfinite(found).all():
                    raise ValueError(
                        f"patch tokens of the images from {images[start]} on are not finite in {dtype}: keep them in "
                        "float32, or look for damage in the tower"
                    )
                tokens[start : start + len(batch)] = found
            assert tokens is not None
            tokens.flush()
            (staging / "features.json").write_text(json.dumps({"grid": grid, "images": [str(one) for one in images]}))
        return cls(home)
