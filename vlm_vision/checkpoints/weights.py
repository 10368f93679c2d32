"""Weights of a folder or file as a lazy mapping of names to tensors; nothing in a file is executed."""

import argparse
import os
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from vlm_vision.checkpoints import safetensors_file
from vlm_vision.checkpoints.safetensors_file import SafetensorsFile
from vlm_vision.files import read_json


class WeightFiles:
    """All tensors of a checkpoint folder, or of one file, read one at a time; each file is opened once.

    `shapes`, `dtypes` and `files` map each stored name to its shape, its dtype and its file; `get(name)` reads that tensor. Safetensors are
    memory-mapped; PyTorch pickles are read with weights_only=True, so that code in them never runs.
    """

    def __init__(self, path: Path):
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, torch.dtype | None] = {}
        self._home: dict[str, SafetensorsFile | _Pickle] = {}
        self.files: dict[str, Path] = {}
        for file in _files(path):
            home = SafetensorsFile(file) if file.suffix == ".safetensors" else _Pickle(file)
            for name, shape in home.shapes.items():
                if name in self.shapes:
                    raise ValueError(f"{path} holds the weight {name} twice: remove the wrong file")
                self.shapes[name], self.dtypes[name] = shape, home.dtypes[name]
                self._home[name], self.files[name] = home, file

    def get(self, name: str, *, keep: bool = True) -> Tensor:
        """The tensor called `name`, in its stored dtype.

        keep: False for a tensor that is copied at once: its pages of a mapped file are released with it.
        """
        return self._home[name].get(name, keep=keep)


def overwrite(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors over those of the same names, shapes and dtypes in a file; all others keep their bits.

    Of a safetensors file every other byte stays. A PyTorch file is written again as a whole, unless all of them are as they were.
    """
    if path.suffix == ".safetensors":
        safetensors_file.overwrite(path, tensors)
        return
    state = load_pickle(path)
    stored = {name: value for name, value in _flat(state) if name in tensors}
    if all(torch.equal(_bytes(value), _bytes(tensors[name])) for name, value in stored.items()):
        return
    for name, value in stored.items():
        value.copy_(tensors[name])  # in pages of the process: the file is mapped privately
    fresh = path.with_name(f"{path.name}.new")
    torch.save(state, fresh)
    fresh.replace(path)


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1).view(torch.uint8)


SUFFIXES = (".pth", ".pt", ".bin", ".safetensors", ".ckpt", ".tar")
"""Suffixes of a file of weights."""
STEMS = ("model.safetensors", "pytorch_model.bin", "open_clip_model.safetensors", "open_clip_pytorch_model.bin")
"""Files of weights in a folder, the first that exists; sharded ones have an index in the same folder."""


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
    raise ValueError(f"{path} holds none of {', '.join(STEMS)}: expected a checkpoint folder")


class _Pickle:
    """The tensors of a PyTorch file, by the path to them in nested dicts."""

    def __init__(self, file: Path):
        self._tensors = dict(_flat(load_pickle(file)))
        self.shapes = {name: tuple(value.shape) for name, value in self._tensors.items()}
        self.dtypes = {name: value.dtype for name, value in self._tensors.items()}

    def get(self, name: str, *, keep: bool = True) -> Tensor:
        return self._tensors[name]


def load_pickle(file: Path) -> dict[str, Any]:
    """The state dict in a PyTorch file, its tensors mapped where the format allows it.

    Raises:
        ValueError: no PyTorch file, one with objects that are not plain data, or no state dict.
    """
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # options of MAE and DeiT training; plain data
            state = _unpickled(file)
    except Exception as error:  # zipfile, pickle and torch each raise their own
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"{file} is not a PyTorch file of plain tensors ({reason}): use a safetensors copy") from None
    if not isinstance(state, dict):
        raise ValueError(f"{file} holds a {type(state).__name__}, expected a state dict of tensors")
    return state


def _unpickled(file: Path) -> Any:
    with file.open("rb") as opened:
        mapped = _can_be_mapped(opened)
    return torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)


def _can_be_mapped(file: BinaryIO) -> bool:
    """Whether a file is a PyTorch archive whose members are stored; compressed ones, and files of PyTorch before 1.6, cannot.

    Raises:
        ValueError: a member whose checksum differs, or members that unpack to much more than the file.
    """
    if not zipfile.is_zipfile(file):
        return False
    with zipfile.ZipFile(file) as archive:
        members, size = archive.infolist(), file.seek(0, os.SEEK_END)
        if sum(member.file_size for member in members) > 20 * size + _LEAST_UNPACKED:
            raise ValueError("it unpacks to more than 20 times its size")
        if (damaged := archive.testzip()) is not None:
            raise ValueError(f"the checksum of its member {damaged} differs: it is damaged, download it again")
    return all(member.compress_type == zipfile.ZIP_STORED for member in members)


_LEAST_UNPACKED = 64 * 2**20
"""Bytes that a compressed file may unpack to, however small it is."""


def _flat(state: Mapping[Any, Any], depth: int = 0, outer: tuple[int, ...] = ()) -> Iterator[tuple[str, Tensor]]:
    """Tensors of nested dicts, named by the path to them: {"model": {"norm.bias": x}} gives ("model.norm.bias", x)."""
    for name, value in state.items():
        if isinstance(value, Tensor):
            yield str(name), value
        elif isinstance(value, Mapping) and depth < 4 and id(value) not in (*outer, id(state)):
            inside = _flat(value, depth + 1, (*outer, id(state)))
            yield from ((f"{name}.{inner}", tensor) for inner, tensor in inside)
