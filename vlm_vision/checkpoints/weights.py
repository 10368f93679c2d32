"""Files of a checkpoint: weights as a lazy mapping, nothing executed; and folders written whole or not at all."""

import argparse
import os
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vlm_vision.files import read_json


class WeightFiles:
    """All tensors of a checkpoint folder, or of one file, read one at a time.

    `shapes` maps each stored name to its shape; `get(name)` reads that tensor. Safetensors are memory-mapped;
    PyTorch pickles are read with weights_only=True, so that code in them never runs.
    """

    def __init__(self, path: Path):
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._home: dict[str, Any] = {}
        self._file: dict[str, Path] = {}
        for file in _files(path):
            for name, shape, handle in _safetensors(file) if file.suffix == ".safetensors" else _pickle(file):
                if name in self.shapes:
                    raise ValueError(f"{path} holds the weight {name} twice: remove the file that does not belong")
                self.shapes[name], self._home[name], self._file[name] = shape, handle, file

    def get(self, name: str, *, keep: bool = True) -> Tensor:
        """The tensor called `name`, in its stored dtype.

        keep: False for one that is copied at once: its pages of a mapped file are let go with it.
        """
        home = self._home[name]
        if isinstance(home, Mapping):
            return home[name]
        if keep:
            return home.get_tensor(name)
        with safe_open(self._file[name], framework="pt") as handle:
            return handle.get_tensor(name)


STEMS = ("model.safetensors", "pytorch_model.bin", "open_clip_model.safetensors", "open_clip_pytorch_model.bin")
"""Files of weights in a folder, the first that is there; sharded ones have an index beside them."""


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    for stem in STEMS:
        index = path / f"{stem}.index.json"
        if index.is_file():
            weight_map = read_json(index).get("weight_map")
            if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
                raise ValueError(f"{index} has no weight_map from weight to file: download it again")
            shards = [path / name for name in sorted(set(weight_map.values()))]
            lost = [shard.name for shard in shards if shard.parent != path or not os.path.isfile(shard)]
            if lost:
                raise ValueError(f"{path} lacks {', '.join(lost)}, named in {index.name}: download the folder again")
            return shards
        if (path / stem).is_file():
            return [path / stem]
    raise ValueError(f"{path} holds none of {', '.join(STEMS)}: is it a checkpoint folder?")


def _safetensors(file: Path):
    try:
        handle = safe_open(file, framework="pt")
        return [(name, tuple(handle.get_slice(name).get_shape()), handle) for name in handle.keys()]
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file} is not a complete safetensors file ({error}): download it again") from None


def _pickle(file: Path):
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # options of MAE and DeiT training; plain data
            state = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except Exception as error:  # zipfile, pickle and torch each raise their own
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"{file} is not a PyTorch file of plain tensors ({reason}): use a safetensors copy") from None
    if not isinstance(state, dict):
        raise ValueError(f"{file} holds a {type(state).__name__}, expected a state dict of tensors")
    flat = dict(_flat(state))
    return [(name, tuple(value.shape), flat) for name, value in flat.items()]


def _flat(state: Mapping[Any, Any], depth: int = 0) -> Iterator[tuple[str, Tensor]]:
    """Tensors of nested dicts, named by the path to them: {"model": {"norm.bias": x}} gives ("model.norm.bias", x)."""
    for name, value in state.items():
        if isinstance(value, Tensor):
            yield str(name), value
        elif isinstance(value, Mapping) and depth < 4:
            yield from ((f"{name}.{inner}", tensor) for inner, tensor in _flat(value, depth + 1))
