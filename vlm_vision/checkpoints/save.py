"""Towers to disk, whole or not at all."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from safetensors.torch import save_file

from vlm_vision.checkpoints import hf, keys
from vlm_vision.checkpoints.hf_preprocess import to_hf
from vlm_vision.encoder import Encoder

SIDECAR = "vlm_vision.json"
"""What a public layout has no place for: tap, reference, fingerprint; for a fused encoder the order of its towers."""


def save(encoder: Encoder, folder: Path, format: str) -> None:
    """See `Encoder.save_pretrained`."""
    if format != "hf":
        raise ValueError(f"cannot save as {format!r}: expected 'hf'")
    family = hf.FAMILIES[encoder.origin.family]
    config = family.write_config(encoder.config)
    labels = encoder.config.num_classes
    if labels:
        config["id2label"] = {str(i): f"LABEL_{i}" for i in range(labels)}
    tensors = keys.write(family.keys(encoder.config), encoder.model.state_dict())
    prefix, architecture = hf.public_layout(encoder.origin.family, classifier=labels > 0)
    tensors = {name if name in family.beside else prefix + name: value for name, value in tensors.items()}
    config |= {
        "model_type": encoder.origin.family,
        "architectures": [architecture],
        "dtype": str(encoder.dtype).removeprefix("torch."),
    }
    with whole(folder) as staging:
        save_file(tensors, staging / "model.safetensors", metadata={"format": "pt"})
        _json(staging / "config.json", config)
        _json(staging / "preprocessor_config.json", to_hf(encoder.preprocess))
        sidecar = {
            "reference": encoder.origin.reference,
            "tap": asdict(encoder.tap),
            "preprocess_fingerprint": encoder.preprocess.fingerprint,
        }
        _json(staging / SIDECAR, sidecar)


def save_fused(towers: Sequence[Encoder], folder: Path, format: str) -> None:
    """See `FusedEncoder.save_pretrained`."""
    names = [f"tower_{i}" for i in range(len(towers))]
    with whole(folder) as staging:
        for name, tower in zip(names, towers, strict=True):
            save(tower, staging / name, format)
        _json(staging / SIDECAR, {"towers": names})


@contextmanager
def whole(folder: Path) -> Iterator[Path]:
    """A staging folder whose contents move into `folder` only when the block ends without an error."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file: give a folder to save to")
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        yield staging
        folder.mkdir(exist_ok=True)
        for item in staging.iterdir():
            target = folder / item.name
            if target.is_dir():
                shutil.rmtree(target)
            os.replace(item, target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
