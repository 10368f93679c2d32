"""From a checkpoint to its towers: the format follows from its files, and is never guessed."""

from vlm_vision.checkpoints.big_vision import reader as big_vision
from vlm_vision.checkpoints.checkpoint import ADAPTER, Checkpoint
from vlm_vision.checkpoints.hf import reader as hf
from vlm_vision.checkpoints.lerobot import reader as lerobot
from vlm_vision.checkpoints.open_clip import reader as open_clip
from vlm_vision.checkpoints.openvla import reader as openvla
from vlm_vision.checkpoints.original import reader as original
from vlm_vision.checkpoints.timm import reader as timm
from vlm_vision.checkpoints.towers import Format, Hints, Tower, WeightSource
from vlm_vision.checkpoints.weights import SUFFIXES

READERS: tuple[Format, ...] = (
    open_clip.FORMAT,
    openvla.FORMAT,
    lerobot.FORMAT,
    timm.FORMAT,
    hf.FORMAT,
    big_vision.FORMAT,
    original.FORMAT,
)
"""Every format, specific ones before general ones: the first that recognises a checkpoint reads it."""

FORMATS: dict[str, tuple[str, ...]] = {format.name: format.families for format in READERS}
"""format -> families read from it."""


def towers(checkpoint: Checkpoint, hints: Hints) -> list[Tower]:
    """The towers of a folder or file, in channel order; nearly always one.

    Raises:
        ValueError: an unknown or ambiguous format, several towers of which none is chosen, a damaged file.
    """
    own = is_open_clip(checkpoint, hints.format)
    for format in READERS:
        if own if format is open_clip.FORMAT else format.recognises(checkpoint):
            if hints.pixels != "pil" and format is not hf.FORMAT:
                raise ValueError(
                    f"{checkpoint} is of format {format.name}, whose own code makes its pixels: pixels={hints.pixels!r} is for "
                    "the folders of transformers; leave pixels out"
                )
            return format.read(checkpoint, hints)
    raise _unknown(checkpoint)


def is_open_clip(checkpoint: Checkpoint, format: str | None) -> bool:
    """Whether to read a checkpoint as open_clip's. Raises ValueError if it is transformers' too and `format` is None."""
    own = open_clip.recognises(checkpoint)
    if own and checkpoint.has("config.json") and format is None:
        raise ValueError(
            f'{checkpoint} holds a model for transformers and for open_clip: choose one by format="hf" or '
            'format="open_clip"'
        )
    return own and not (checkpoint.is_folder and format == "hf")


def weights_of(checkpoint: Checkpoint) -> WeightSource:
    """All weights of a folder or file of any format but npz."""
    if open_clip.recognises(checkpoint) and not checkpoint.has("config.json"):
        return open_clip.own_weights(checkpoint)
    return openvla.all_weights(checkpoint)


def _unknown(checkpoint: Checkpoint) -> ValueError:
    path = checkpoint.path
    if not checkpoint.is_folder:
        return ValueError(f"{path} is a file of an unknown format: expected a folder, .pth, .pt, .safetensors or .npz")
    if checkpoint.has("config.json"):
        return ValueError(
            f"{path / 'config.json'} names no model_type (transformers), no architecture (timm) and no policy type "
            "(LeRobot): expected one of them"
        )
    if checkpoint.has(ADAPTER):
        return ValueError(
            f"{path} holds an adapter of peft without its base model: load the base, then put the adapter on it with "
            "vlm_vision.train.adapters.load_adapter, or merge both with peft"
        )
    if (path / "model" / "config.json").is_file():
        return ValueError(f"{path} has no config.json, but its sub-folder has: pass {path / 'model'}")
    files = sorted(file.name for file in path.iterdir() if file.suffix in (*SUFFIXES, ".npz"))
    hint = f"; to load one file of the original code, pass the file: {', '.join(files[:3])}" if files else ""
    return ValueError(f"{path} has no config.json and no {open_clip.CONFIG}: it is no checkpoint folder{hint}")
