"""From a name to a local path: a checkpoint of the package, a path, a hub id."""

import difflib
import os
import re
from collections.abc import Sequence
from pathlib import Path

SHIPPED = {"mini": Path(__file__).parents[1] / "mini"}
"""Checkpoints in the package. Write a folder of the same name as ./mini."""

_FILES = [
    "*.json", "*.safetensors", "pytorch_model*.bin", "open_clip_pytorch_model*.bin", "vision_backbone--*_checkpoint.pt"
]  # fmt: skip
"""Patterns of downloaded files: configurations and weights; never code. The last are towers of OpenVLA-OFT with FiLM."""
_HUB_ID = r"[\w.-]+/[\w.-]+"
TOKENIZER_FILES = ["tokenizer.model", "merges.txt", "*.jinja"]
"""Patterns of a tokenizer's files other than JSON."""


def packaged_source(source: str | Path) -> str | Path:
    """The folder of a checkpoint in the package; any other source unchanged."""
    return SHIPPED.get(source, source) if isinstance(source, str) else source


def hub_id(source: object) -> str:
    """The hub id that a source is, once something was loaded from it; empty for a path or what comes with the package."""
    if not isinstance(source, str) or source in SHIPPED or not re.fullmatch(_HUB_ID, source):
        return ""
    return "" if source.startswith((".", "/")) or os.path.exists(source) else source


def resolve(source: str | Path, revision: str | None, also: Sequence[str] = ()) -> Path:
    """The local folder or file of a shipped name, path or hub id. Raises ValueError if there is none.

    Args:
        also: patterns of files to fetch from the hub in addition to configurations and weights.
    """
    source = packaged_source(source)
    path = Path(source).expanduser()
    if os.path.exists(path):  # unlike Path.exists, no error for a name that no file could have
        return path
    if isinstance(source, Path) or not re.fullmatch(_HUB_ID, source) or source.startswith((".", "/")):
        near = (
            difflib.get_close_matches(path.name, [p.name for p in path.parent.iterdir()])
            if os.path.isdir(path.parent)
            else []
        )
        hint = f"; did you mean {path.parent / near[0]}?" if near else ""
        raise ValueError(
            f"there is no folder {source}, and it is no hub id of the form owner/name, nor {' or '.join(SHIPPED)}{hint}"
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(source, revision=revision, allow_patterns=[*_FILES, *also]))
    except Exception as error:  # the hub client raises many kinds: offline, unknown, gated
        reason = str(error).strip().split("\n")[0]
        raise ValueError(
            f"there is no folder {source}, and the hub did not give it ({type(error).__name__}: {reason})"
        ) from error
