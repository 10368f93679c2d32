"""Towers to disk in a public layout, whole or not at all."""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from vlm_vision.checkpoints import hf, keys
from vlm_vision.checkpoints.files import whole
from vlm_vision.checkpoints.hf_preprocess import to_hf
from vlm_vision.preprocess import Preprocess
from vlm_vision.vit import VisionTransformer

SIDECAR = "vlm_vision.json"
"""What a public layout has no place for: tap, reference, fingerprint; for fused towers their order."""


def save_tower(
    folder: Path,
    format: str,
    *,
    model: VisionTransformer,
    family: str,
    preprocess: Preprocess,
    sidecar: dict[str, Any],
) -> None:
    """See `Encoder.save_pretrained`."""
    if format != "hf":
        raise ValueError(f"cannot save as {format!r}: expected 'hf'")
    layout = hf.FAMILIES[family]
    classes = model.config.num_classes
    config = layout.write_config(model.config)
    if classes:
        config["id2label"] = {str(i): f"LABEL_{i}" for i in range(classes)}
    tensors = keys.write(layout.keys(model.config), model.state_dict())
    prefix, architecture = hf.public_layout(family, model.config)
    tensors = {name if name in layout.beside else prefix + name: value for name, value in tensors.items()}
    dtype = str(model.patch_embed.weight.dtype).removeprefix("torch.")
    config |= {"model_type": family, "architectures": [architecture], "dtype": dtype}
    with whole(folder) as staging:
        save_file(tensors, staging / "model.safetensors", metadata={"format": "pt"})
        write_json(staging / "config.json", config)
        write_json(staging / "preprocessor_config.json", to_hf(preprocess))
        write_json(staging / SIDECAR, sidecar)


def write_json(path: Path, value: object) -> None:
    """Indented, with a newline at the end."""
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
