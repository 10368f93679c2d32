"""Images as bytes and in tar files, for tests of data."""

import io
import tarfile
from pathlib import Path

from support.models import make_image
from vlm_vision.data.images.views import Color, Crop, View

VIEW = View(crop=Crop(16), color=Color())


def encoded(seed: int) -> bytes:
    file = io.BytesIO()
    make_image(seed).save(file, "JPEG")
    return file.getvalue()


def write_tar(file: Path, members: dict[str, bytes]) -> str:
    """Write a tar file. Returns its path."""
    with tarfile.open(file, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return str(file)
