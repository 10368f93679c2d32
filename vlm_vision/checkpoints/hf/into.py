"""Towers and their projector back into the folder of the whole model: their weights replaced, everything else byte for byte."""

import shutil
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

import projectors
from projectors import Projector
from vlm_vision.checkpoints import keys, sniff
from vlm_vision.checkpoints.checkpoint import Checkpoint
from vlm_vision.checkpoints.connectors.find import find
from vlm_vision.checkpoints.families.all import FAMILIES
from vlm_vision.checkpoints.keys import Key
from vlm_vision.checkpoints.manifest import renew_manifest
from vlm_vision.checkpoints.save import SIDECAR, differences, stored_state
from vlm_vision.checkpoints.towers import MALFORMED_ERRORS, Hints, Tower, TowerWeights, WeightSource, read_state_dict
from vlm_vision.checkpoints.weights import overwrite
from vlm_vision.files import MANIFEST, new_folder, whole
from vlm_vision.nn.vit import VisionTransformer
from vlm_vision.preprocess.spec import Preprocess

_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack")


class TunedTower(NamedTuple):
    """One tower to write."""

    model: VisionTransformer
    family: str
    preprocess: Preprocess


def check_format(format: str) -> None:
    """Raise ValueError for a format other than that of whole models."""
    if format != "hf":
        raise ValueError(f"format is {format!r} with into=, whose folder keeps its own format: leave format= out")


def check_alone(projector: Projector | None, part: str | None) -> None:
    """Raise ValueError for what is written into a whole model alone, where there is none."""
    if projector is not None or part is not None:
        name = "projector" if part is None else "part"
        raise ValueError(f"{name}= needs into=, the folder of the whole model: pass both, or leave {name}= out")


def save_into(
    into: Path,
    out: Path,
    towers: Sequence[TunedTower],
    *,
    projector: Projector | None = None,
    part: str | None = None,
) -> None:
    """See `Encoder.save_pretrained`."""
    if not into.is_dir():
        raise ValueError(f"into is {into}, which is no folder: expected the folder of the whole model")
    in_place = out.exists() and out.samefile(into)
    if not in_place and out.resolve().is_relative_to(into.resolve()):
        raise ValueError(f"{out} lies in {into}, which is copied: choose a folder outside it")
    checkpoint = Checkpoint(into)
    if not checkpoint.has("config.json"):
        raise ValueError(f"{into} has no config.json: expected the folder of a whole model of transformers")
    theirs = sniff.towers(checkpoint, Hints(format="hf", part=part))
    if len(theirs) != len(towers):
        raise ValueError(f"{into} holds {len(theirs)} towers, expected {len(towers)}, those of the encoder")
    tensors: dict[str, Tensor] = {}
    for ours, tower in zip(towers, theirs, strict=True):
        _check_tower(ours, tower, checkpoint, out)
        tensors |= _placed(tower.keys, _on_cpu(stored_state(ours.model)), tower.weights, checkpoint, "tower")
    if projector is not None:
        tensors |= _projector(projector, checkpoint)
    changed: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        changed.setdefault(checkpoint.weights.files[name].name, {})[name] = tensor
    with whole(out) if in_place else new_folder(out) as staging:
        if in_place:
            for file in [*changed, *([MANIFEST] if checkpoint.has(MANIFEST) else [])]:
                shutil.copyfile(into / file, staging / file)
        else:
            _copy(into, staging)
        for file, contents in changed.items():
            overwrite(staging / file, contents)
            renew_manifest(staging, file)
    others = sorted(file.name for file in out.iterdir() if file.suffix in _WEIGHTS and file.name not in changed)
    read = {file.name for file in checkpoint.weights.files.values()}
    if stale := [name for name in others if name not in read]:
        warnings.warn(
            f"{out} also holds {', '.join(stale)}, which may have the tower as it was: remove the files that you do not use",
            stacklevel=3,
        )


def _check_tower(ours: TunedTower, tower: Tower, checkpoint: Checkpoint, out: Path) -> None:
    """Raise ValueError for a tower that is not of the folder's architecture; warn of other preprocessing."""
    sidecar = checkpoint.json(SIDECAR) if checkpoint.has(SIDECAR) else {}
    layouts = [FAMILIES[name].written_as or name for name in (ours.family, tower.family)]
    if layouts[0] != layouts[1]:
        raise ValueError(
            f"{checkpoint} has a tower of the family {tower.family}, expected {ours.family}, the encoder's"
        )
    mine, other = ours.model.config, tower.config
    differ = [
        f"{name} is {value!r} in the encoder and {there!r} there" for name, value, there in differences(mine, other)
    ]
    if (mine.layer_scale is None) != (other.layer_scale is None):
        differ.append(f"only the {'tower there' if mine.layer_scale is None else 'encoder'} has layer_scale")
    if differ:
        raise ValueError(f"{checkpoint} has a tower of another architecture: {', '.join(differ)}; expected the same")
    there = Preprocess.from_dict(sidecar["preprocess"]) if "preprocess" in sidecar else tower.preprocess
    if there.fingerprint != ours.preprocess.fingerprint:
        names = [f.name for f in fields(Preprocess) if getattr(there, f.name) != getattr(ours.preprocess, f.name)]
        warnings.warn(
            f"{out} keeps the preprocessing of {checkpoint}, which differs from the encoder's in {', '.join(names)}: "
            "change preprocessor_config.json if the tower was tuned with the encoder's",
            stacklevel=4,
        )


def _projector(projector: Projector, checkpoint: Checkpoint) -> dict[str, Tensor]:
    """The projector's weights under their names in the folder."""
    try:
        theirs = find(checkpoint, sniff.weights_of(checkpoint))
    except MALFORMED_ERRORS as error:
        raise ValueError(f"{checkpoint} describes its projector in an unknown way ({error!r})") from None
    with torch.device("meta"):
        built = projectors.describe(projectors.build(theirs.name, **theirs.options))
    mine = projectors.describe(projector)
    differ = [
        f"{name} is {mine.get(name)!r} in yours and {built.get(name)!r} there"
        for name in built | mine
        if built.get(name) != mine.get(name)
    ]
    if differ:
        raise ValueError(f"{checkpoint} has another projector: {', '.join(differ)}; expected the same")
    return _placed(theirs.keys, _on_cpu(projector.state_dict()), theirs.weights, checkpoint, "projector")


def _placed(
    table: Sequence[Key], ours: Mapping[str, Tensor], part: WeightSource, checkpoint: Checkpoint, what: str
) -> dict[str, Tensor]:
    """Our weights of a part under their names in the files, in the dtypes that they have there.

    Raises:
        ValueError: weights that are not plain numbers, that have no place or another shape, or that
            are past the range of their dtype there.
    """
    files = checkpoint.weights
    if not isinstance(part, TowerWeights) or part.source is not files:
        raise ValueError(f"{checkpoint} does not store its {what} as plain weights: expected a folder of transformers")
    state = keys.write(table, ours)
    before = _before(table, ours, part, str(checkpoint))
    placed = {}
    for name, value in state.items():
        stored = part.stored[name]
        dtype, file = files.dtypes[stored], files.files[stored]
        if dtype is None:
            raise ValueError(f"{file} stores {stored} in an unknown dtype: expected one that PyTorch has, such as BF16")
        cast = value.to(dtype)
        if not cast.float().isfinite().all() and value.isfinite().all():
            raise ValueError(
                f"{stored} has values past the range of {dtype}, which {file} stores it in: train fewer steps"
            )
        placed[stored] = torch.where(value == before[name], part.get(name), cast)
    return placed


def _before(table: Sequence[Key], ours: Mapping[str, Tensor], part: TowerWeights, source: str) -> dict[str, Tensor]:
    """What `ours` would be written as if nothing had changed it: those numbers keep their bits, and so do the ones that no
    weight of ours stands for."""
    shapes = {name: value.shape for name, value in ours.items()}
    dtype = next(iter(ours.values())).dtype
    read = read_state_dict(list(table), shapes, part, source=source, dtype=dtype, device=torch.device("cpu"))
    return keys.write(table, read)


def _on_cpu(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().cpu() for name, value in state.items()}


def _copy(source: Path, target: Path) -> None:
    """Every file, by its content alone: what may only be read becomes a file that can be written."""
    for item in source.iterdir():
        if item.is_dir():
            (target / item.name).mkdir()
            _copy(item, target / item.name)
        else:
            shutil.copyfile(item, target / item.name)
