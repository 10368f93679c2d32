"""store.json: the settings of a store, and the encoder that made it; and the first difference of two."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from projectors import Projector
from vlm_vision.encoder import Encoder
from vlm_vision.files import read_json, write_json
from vlm_vision.fused import FusedEncoder
from vlm_vision.tokens.shard import WORK

ABOUT = "store.json"
FORMAT = "vlm_vision tokens 1"
SETTINGS = ("format", "encoder", "weights", "projector", "settings")
"""Fields that two runs must share to write one store; `encoder` holds architecture and preprocessing."""


def read_about(folder: Path) -> dict[str, Any]:
    """Content of store.json.

    Raises:
        ValueError: no store, or one of another version.
    """
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}: expected a token store, which `vlm-vision tokens` writes")
    if not (folder / ABOUT).is_file():
        raise ValueError(f"{folder} has no {ABOUT}: expected a token store, which `vlm-vision tokens` writes")
    about = read_json(folder / ABOUT)
    if about.get("format") != FORMAT:
        raise ValueError(
            f"{folder} has the format {about.get('format')!r}: expected {FORMAT!r}; extract the tokens again"
        )
    return about


def write_about(folder: Path, about: Mapping[str, Any]) -> None:
    """Replace store.json in one step."""
    staging = folder / WORK / ABOUT
    write_json(staging, dict(about))
    os.replace(staging, folder / ABOUT)


def stamp_of(about: Mapping[str, Any]) -> str:
    """16 hex digits of the settings."""
    same = {name: about[name] for name in SETTINGS}
    return hashlib.sha256(json.dumps(same, sort_keys=True).encode()).hexdigest()[:16]


def weights_fingerprint(module: Encoder | FusedEncoder | Projector) -> str:
    """16 hex digits of all weights, by name and to the bit."""
    digest = hashlib.sha256()
    for name, weight in module.state_dict().items():
        digest.update(f"{name}\0{weight.dtype}\0{tuple(weight.shape)}\0".encode())
        digest.update(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def difference(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """The first field of the settings that differs, in words; empty for none."""
    names = {"weights": "the encoder's weights (fingerprint)", "settings": ""}
    for field in SETTINGS:
        if found := _first(names.get(field, field), there.get(field), here.get(field)):
            return found
    return ""


def encoder_difference(about: Mapping[str, Any], encoder: Mapping[str, Any]) -> str:
    """As `difference`, of architecture and preprocessing alone, with `Encoder.to_dict` of an encoder."""
    return _first("encoder", about["encoder"], json.loads(json.dumps(without_tap(dict(encoder)))))


def without_tap(state: dict[str, Any]) -> dict[str, Any]:
    """Description of an encoder (`Encoder.to_dict`) without its tap and reference."""
    if "towers" in state:
        return {"towers": [without_tap(tower) for tower in state["towers"]]}
    return {key: value for key, value in state.items() if key not in ("tap", "reference")}


def _first(name: str, there: Any, here: Any) -> str:
    if there == here:
        return ""
    if isinstance(there, Mapping) and isinstance(here, Mapping):
        for key in [*there, *(key for key in here if key not in there)]:
            if key == "preprocess_fingerprint":
                continue
            if found := _first(f"{name} {key}".strip(), there.get(key), here.get(key)):
                return found
        return ""
    if isinstance(there, list) and isinstance(here, list) and len(there) == len(here):
        for i, (one, other) in enumerate(zip(there, here, strict=True)):
            if isinstance(one, Mapping) and (found := _first(f"{name} {i}", one, other)):
                return found
    return f"{name} is {_short(there)} in the store and {_short(here)} here"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
