"""The tables of `vlm-vision models` and `vlm-vision formats`, computed. As a script it stores them:

python -m vlm_vision.cli.tables
"""

from pathlib import Path

import torch

from vlm_vision import presets
from vlm_vision.checkpoints.families.all import ALL
from vlm_vision.checkpoints.save import FORMATS as WRITTEN
from vlm_vision.checkpoints.sniff import FORMATS as READ
from vlm_vision.cli import stored

_COLUMNS = {
    "hf": "transformers folder",
    "timm": "timm folder",
    "pth": "original `.pth`",
    "open_clip": "open_clip",
    "big_vision": "big_vision `.npz`",
    "openvla": "Prismatic, OpenVLA",
    "lerobot": "LeRobot (pi0, SmolVLA, GR00T N1.7, VLA-JEPA, WALL-OSS, EO-1, EVO-1, MolmoAct2), openpi",
}


def models() -> str:
    """Every preset with its sizes, and a public checkpoint of towers that come inside vision-language models."""
    lines = [
        f"{'name':34} {'parameters':>12} {'width':>6} {'blocks':>7} {'patch':>6} {'native':>7} {'patches':>8}  public checkpoint"
    ]
    for name in presets.names():
        with torch.device("meta"):
            model = presets.create(name)
        config, count = model.config, sum(weight.numel() for weight in model.parameters())
        height, width = (side * config.patch_size for side in config.grid)
        patches = config.num_patch_tokens(height, width)
        row = (config.embed_dim, config.depth, config.patch_size, config.image_size[0], patches)
        sizes = f"{name:34} {count / 1e6:10.1f} M {row[0]:6} {row[1]:7} {row[2]:6} {row[3]:7} {row[4]:8}"
        lines.append(f"{sizes}  {presets.public_id(name) or ''}".rstrip())
    return "".join(f"{line}\n" for line in lines)


def formats() -> str:
    """Which families are read from which formats, and written to them, in Markdown."""
    lines = [
        f"| family | {' | '.join(_COLUMNS.values())} | references of its positions |",
        "|---" * (len(_COLUMNS) + 2) + "|",
    ]
    for family in ALL:
        cells = []
        for name in _COLUMNS:
            read = (family.written_as if name == "hf" and family.written_as else family.name) in READ[name]
            cells.append("read, written" if read and name in WRITTEN else "read" if read else "")
        references = "none needed" if family.unresized else ", ".join(family.resize)
        lines.append(f"| {family.name} | {' | '.join(cells)} | {references} |")
    return "".join(f"{line}\n" for line in lines)


if __name__ == "__main__":
    for name, table in (("models", models()), ("formats", formats())):
        Path(stored.path(name)).write_text(table, encoding="utf-8")
