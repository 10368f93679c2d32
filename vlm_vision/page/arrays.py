"""Numbers and images inside the page: typed arrays, compressed, in base64."""

import base64
import io
import zlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

DTYPES = ("float32", "float16", "uint8", "int16")
"""Types that the page's script reads."""


@dataclass
class Arrays:
    """Arrays by number. `add` returns what the description of the page holds in an array's place.

    An array is its bytes, all first bytes of the numbers, then all second bytes and so on (exponents compress well side by
    side), deflated (RFC 1951), in base64.
    """

    texts: list[str] = field(default_factory=list)
    """Base64 of each array."""

    def add(self, values: Tensor | np.ndarray, dtype: str = "float32") -> dict[str, Any]:
        """Keep an array as `dtype`, one of `DTYPES`."""
        array = values.detach().cpu().float().numpy() if isinstance(values, Tensor) else values
        array = np.ascontiguousarray(array, dtype=np.dtype(dtype).newbyteorder("<"))
        planes = array.reshape(-1).view(np.uint8).reshape(-1, array.itemsize).T
        squeeze = zlib.compressobj(6, zlib.DEFLATED, -15)
        self.texts.append(base64.b64encode(squeeze.compress(planes.tobytes()) + squeeze.flush()).decode())
        return {"array": len(self.texts) - 1, "dtype": dtype, "shape": list(array.shape)}

    @property
    def size(self) -> int:
        """Bytes of all texts."""
        return sum(map(len, self.texts))


def unpack(text: str, described: dict[str, Any]) -> np.ndarray:
    """The array of a text, as the page's script reads it."""
    dtype = np.dtype(described["dtype"]).newbyteorder("<")
    planes = np.frombuffer(zlib.decompress(base64.b64decode(text), -15), dtype=np.uint8)
    return planes.reshape(dtype.itemsize, -1).T.copy().view(dtype).reshape(described["shape"])


def image_url(image: Image.Image, *, exact: bool) -> str:
    """A data URL: PNG if every pixel counts, else JPEG."""
    buffer = io.BytesIO()
    if exact:
        image.save(buffer, "PNG", optimize=True)
    else:
        image.save(buffer, "JPEG", quality=85)
    kind = "png" if exact else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
