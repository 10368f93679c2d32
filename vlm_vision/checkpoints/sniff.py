"""From a path to the towers in it: the format is told by what is there, never guessed."""

from pathlib import Path

from vlm_vision.checkpoints.big_vision import reader as big_vision
from vlm_vision.checkpoints.hf import reader as hf
from vlm_vision.checkpoints.lerobot import reader as lerobot
from vlm_vision.checkpoints.open_clip import reader as open_clip
from vlm_vision.checkpoints.openvla import oft as openvla_oft
from vlm_vision.checkpoints.openvla import reader as prismatic
from vlm_vision.checkpoints.original import reader as pth
from vlm_vision.checkpoints.timm import reader as timm
from vlm_vision.checkpoints.towers import Hints, Tower, WeightSource
from vlm_vision.checkpoints.weights import WeightFiles
from vlm_vision.files import read_json

FORMATS: dict[str, tuple[str, ...]] = {
    "hf": tuple(hf.FAMILIES),
    "timm": timm.FAMILIES,
    "pth": pth.FAMILIES,
    "open_clip": open_clip.FAMILIES,
    "big_vision": big_vision.FAMILIES,
    "openvla": prismatic.FAMILIES,
    "lerobot": lerobot.FAMILIES,
}
"""format -> families read from it."""


def towers(path: Path, hints: Hints) -> list[Tower]:
    """The towers of a folder or file, in channel order; nearly always one.

    Raises:
        ValueError: a format that is not known or not told, several towers of which none is chosen, a damaged file.
    """
    return _folder(path, hints) if path.is_dir() else _file(path, hints)


def weights_of(path: Path) -> WeightSource:
    """All weights of a folder or file of any format but npz."""
    if path.is_file():
        return WeightFiles(path)
    if (path / open_clip.CONFIG).is_file() and not (path / "config.json").is_file():
        return open_clip.own_weights(path)
    run = prismatic.run_weights(path)
    return openvla_oft.weights(path) if run is None else WeightFiles(run)


def is_open_clip(folder: Path, format: str | None) -> bool:
    """Whether to read a folder as open_clip's. Raises ValueError if it is transformers' too and `format` is None."""
    own, theirs = (folder / open_clip.CONFIG).is_file(), (folder / "config.json").is_file()
    if own and theirs and format is None:
        raise ValueError(
            f'{folder} holds a model for transformers and for open_clip: say which one by format="hf" or format="open_clip"'
        )
    return own and format != "hf"


def _only(path: Path, hints: Hints, *read: str) -> None:
    """Raise ValueError if a hint is given that the format at `path` does not read: it tells that itself."""
    for name in ("part", "architecture", "num_heads"):
        if name not in read and getattr(hints, name) is not None:
            raise ValueError(f"{path} tells its {name.replace('_', ' ')} itself: leave {name}= out")


def _folder(folder: Path, hints: Hints) -> list[Tower]:
    if is_open_clip(folder, hints.format):
        _only(folder, hints, "num_heads")
        return [open_clip.read(folder, read_json(folder / open_clip.CONFIG), open_clip.own_weights(folder), hints)]
    described = openvla_oft.base(folder) / "config.json"
    if not described.is_file() and lerobot.is_openpi(folder):
        return [lerobot.read(folder, {}, hints)]
    if not described.is_file():
        files = sorted(
            file.name for file in folder.iterdir() if file.suffix in (".pth", ".pt", ".npz", ".bin", ".safetensors")
        )
        hint = f"; to load one file of the original code, give the file: {', '.join(files[:3])}" if files else ""
        raise ValueError(f"{folder} has no config.json and no {open_clip.CONFIG}: it is no checkpoint folder{hint}")
    config = read_json(described)
    if prismatic.recognises(config):
        _only(folder, hints, "num_heads")
        places = [place / "preprocessor_config.json" for place in (folder, described.parent)]
        preprocessor = next((read_json(place) for place in places if place.is_file()), None)
        weights = openvla_oft.tower_weights(folder) or weights_of(folder)
        return prismatic.read(folder, config, preprocessor, weights, hints)
    if lerobot.recognises(config):
        _only(folder, hints, "num_heads")
        return [lerobot.read(folder, config, hints)]
    if timm.recognises(config):
        _only(folder, hints, "num_heads")
        return [timm.read(folder, config, hints)]
    if hf.recognises(config):
        _only(folder, hints, "part")
        return [hf.read(folder, config, hints)]
    raise ValueError(
        f"{folder / 'config.json'} names no model_type (transformers), no architecture (timm) and no policy type (LeRobot): "
        "expected one of them"
    )


def _file(path: Path, hints: Hints) -> list[Tower]:
    run = path.parent.parent / "config.json"
    if path.suffix == ".pt" and path.parent.name == "checkpoints" and run.is_file():
        if prismatic.recognises(config := read_json(run)):
            _only(path, hints, "num_heads")
            return prismatic.read(path, config, None, WeightFiles(path), hints)
    if path.suffix == ".npz":
        _only(path, hints, "num_heads")
        return [big_vision.read(path, hints)]
    if path.suffix not in (".pth", ".pt", ".bin", ".safetensors", ".ckpt", ".tar"):
        raise ValueError(
            f"{path} is a file of a format that is not known: expected a folder, .pth, .pt, .safetensors or .npz"
        )
    weights = WeightFiles(path)
    if any(name.endswith(open_clip.LANDMARKS) for name in weights.shapes):
        return [open_clip.read(path, open_clip.described_by(path, weights, hints), weights, hints)]
    return [pth.read(path, weights, hints)]
