"""Messages of OpenVLA's client: JSON, in which an array is an object with its bytes in base64.

{"__numpy__": base64, "dtype": "<f4", "shape": [...]} (json_numpy). A client without that library sends {"encoded": text},
the text being such JSON, and gets its answer as text too.
"""

import base64
import json

import numpy as np

from vlm_vision.serve.protocols.arrays import MOST_VALUES, array


def dumps(message: object) -> str:
    """Numbers, strings, lists, dictionaries and arrays of numbers to JSON."""
    return json.dumps(message, default=_dumped)


def loads(text: bytes | str) -> object:
    """The other way.

    Raises:
        ValueError: no JSON, more than `MOST_VALUES` values, or an array of anything but numbers.
    """
    signs = text.encode(errors="replace") if isinstance(text, str) else text
    if sum(signs.count(sign) for sign in (b"[", b"{", b",")) > MOST_VALUES:
        raise ValueError(
            f"the request cannot be read as JSON with arrays (more than {MOST_VALUES} brackets and commas): send images as arrays"
        )
    try:
        return json.loads(text, object_hook=_loaded)
    except (ValueError, RecursionError) as error:
        reason = str(error) or type(error).__name__
        raise ValueError(f"the request cannot be read as JSON with arrays ({reason[:200]})") from None


def _dumped(value: object) -> dict[str, object]:
    if isinstance(value, np.ndarray):
        data = base64.b64encode(value.tobytes()).decode("ascii")
        return {"__numpy__": data, "dtype": value.dtype.str, "shape": value.shape}
    raise TypeError(f"{type(value).__name__} cannot be sent in a message")


def _loaded(found: dict) -> object:
    if "__numpy__" not in found:
        return found
    if not isinstance(found["__numpy__"], str):
        raise ValueError("an array has no base64 text in __numpy__")
    return array(base64.b64decode(found["__numpy__"], validate=True), found.get("dtype"), found.get("shape"))
