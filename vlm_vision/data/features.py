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

from vlm_vision.checkpoints.files import whole
from vlm_vision.encoder import Encoder
from vlm_vision.fused import FusedEncoder

log = logging.getLogger(__name__)


def fingerprint(encoder: Encoder | FusedEncoder, images: Sequence[str]) -> str:
    """16 hex digits that change with the tower's weights, preprocessing or tap, and with the list of picture files."""
    digest = hashlib.sha256(json.dumps(encoder.to_dict(), sort_keys=True).encode())
    for name, weight in encoder.state_dict().items():
        digest.update(name.encode())
        digest.update(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    for image in images:
        if not Path(image).is_file():
            raise ValueError(f"there is no picture {image}: check the folder that picture paths start from")
        stat = Path(image).stat()
        digest.update(f"{image}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]


class FeatureCache:
    """Patch tokens of many pictures, memory-mapped.

    `build` makes one, or opens the one in `folder` that has the right fingerprint; `cache[paths]` reads rows.
    """

    def __init__(self, folder: Path):
        about = json.loads((folder / "features.json").read_text())
        self.grid: tuple[int, int] = tuple(about["grid"])
        self._rows = {image: i for i, image in enumerate(about["images"])}
        self._tokens = np.load(folder / "features.npy", mmap_mode="r")

    def __getitem__(self, images: Sequence[str]) -> Tensor:
        """(len(images), N, D) in the stored dtype."""
        return torch.from_numpy(self._tokens[[self._rows[image] for image in images]])

    @classmethod
    @torch.no_grad()
    def build(
        cls,
        folder: str | Path,
        encoder: Encoder | FusedEncoder,
        images: Sequence[str],
        *,
        batch_size: int = 32,
        dtype: str = "float16",
    ) -> "FeatureCache":
        """Encode pictures to `folder`/fingerprint, unless that is there.

        Args:
            folder: of all caches.
            encoder: the frozen tower, on the device to use.
            images: paths; doubles are encoded once.
            batch_size: pictures at a time.
            dtype: numpy dtype on disk, "float16" or "float32".

        Raises:
            ValueError: pictures whose grids differ.
        """
        images = list(dict.fromkeys(images))
        home = Path(folder) / f"{fingerprint(encoder, images)}-{dtype}"
        if (home / "features.json").is_file():
            log.info("features of %d pictures found in %s", len(images), home)
            return cls(home)
        was_training = encoder.training
        encoder.eval()
        with whole(home) as staging:
            tokens, grid = None, None
            for start in tqdm(range(0, len(images), batch_size), desc="encoding pictures", unit="batch"):
                batch = images[start : start + batch_size]
                out = encoder(encoder.preprocess(batch).to(encoder.device), pool=False)
                if grid not in (None, out.grid):
                    raise ValueError(
                        f"pictures give grids {grid} and {out.grid}: a cache needs preprocessing to one size"
                    )
                grid = out.grid
                if tokens is None:
                    shape = (len(images), *out.patch_tokens.shape[1:])
                    tokens = np.lib.format.open_memmap(staging / "features.npy", mode="w+", dtype=dtype, shape=shape)
                tokens[start : start + len(batch)] = out.patch_tokens.float().cpu().numpy()
            assert tokens is not None
            tokens.flush()
            (staging / "features.json").write_text(json.dumps({"grid": grid, "images": images}))
        encoder.train(was_training)
        return cls(home)
