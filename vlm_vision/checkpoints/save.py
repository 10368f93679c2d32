"""Save towers in a public layout, whole or not at all."""

from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from vlm_vision.checkpoints import keys
from vlm_vision.checkpoints.families.all import FAMILIES
from vlm_vision.checkpoints.hf import reader as hf
from vlm_vision.checkpoints.hf.card import Card, write_card
from vlm_vision.checkpoints.hf.preprocess import from_hf
from vlm_vision.checkpoints.hf.write_preprocess import to_hf
from vlm_vision.checkpoints.manifest import write_manifest
from vlm_vision.checkpoints.nearest import nearest
from vlm_vision.checkpoints.timm import layout as timm_layout
from vlm_vision.checkpoints.timm import reader as timm
from vlm_vision.checkpoints.timm import writer as timm_write
from vlm_vision.checkpoints.timm.preprocess import from_timm, to_timm
from vlm_vision.checkpoints.towers import Hints
from vlm_vision.files import whole, write_json
from vlm_vision.nn.config import ViTConfig
from vlm_vision.nn.vit import VisionTransformer
from vlm_vision.preprocess.spec import Preprocess

SIDECAR = "vlm_vision.json"
"""File for what a public layout cannot hold: tap, reference, fingerprint, exact preprocessing; for fused towers their order."""

FORMATS = ("hf", "timm")

_TRAINING_ONLY_FIELDS = {"position_resize", "drop_path", "drop_path_ramp", "patch_drop", "remainder", "layer_scale"}
"""Fields that a public layout may state differently for the same output: layer_scale is an initial value."""

Json = dict[str, Any]


def save_tower(
    folder: Path,
    format: str,
    *,
    model: VisionTransformer,
    family: str,
    preprocess: Preprocess,
    sidecar: Json,
    card: Card,
) -> None:
    """See `Encoder.save_pretrained`."""
    if format not in FORMATS:
        raise ValueError(f"cannot save as {format!r}: expected {' or '.join(map(repr, FORMATS))}")
    state = stored_state(model)
    write = hf_files if format == "hf" else _timm
    tensors, files, written = write(model, state, family, preprocess)
    if written != preprocess:
        sidecar = sidecar | {"preprocess": preprocess.to_dict()}
    with whole(folder) as staging:
        save_file(tensors, staging / "model.safetensors", metadata={"format": "pt"})
        for name, content in files.items():
            write_json(staging / name, content)
        write_json(staging / SIDECAR, sidecar)
        write_card(staging, card)
        write_manifest(staging)


def stored_state(model: VisionTransformer) -> Json:
    """The weights that checkpoints have."""
    state = model.state_dict()
    if model.config.position == "sincos2d" and model.config.position_resize == "recompute":
        del state["position.table"]  # computed, never stored
    return state


def hf_files(model: VisionTransformer, state: Json, family: str, spec: Preprocess) -> tuple[Json, Json, Preprocess]:
    """(weights, JSON files, preprocessing that the files describe) for transformers."""
    name = FAMILIES[family].written_as or family
    layout, config = FAMILIES[name], model.config
    if config.class_token and config.position_prefix == 0 and config.position == "learned" and layout.class_row:
        state, config = _with_class_row(state, config)
    described = layout.write_config(config)
    if config.num_classes:
        described["id2label"] = {str(i): f"LABEL_{i}" for i in range(config.num_classes)}
    tensors = keys.write(layout.keys(config), state)
    _check("transformers", config, layout.read_config(layout.defaults | described, frozenset(tensors)))
    prefix, architecture = hf.public_layout(name, config)
    tensors = {stored if stored in layout.beside else prefix + stored: value for stored, value in tensors.items()}
    dtype = str(model.patch_embed.weight.dtype).removeprefix("torch.")
    described |= {"model_type": name}
    if config.num_classes and layout.classifier:  # the class with the head reads the whole model's config
        labels = described.pop("id2label")
        described = {"model_type": layout.classifier, "vision_config": described, "id2label": labels}
    described |= {"architectures": [architecture], "dtype": dtype}
    mean, std = spec.mean, spec.std
    if layout.pixel_statistics:  # what the tower holds as weights is left out of the file
        for stored, values in zip(layout.pixel_statistics, (mean, std), strict=True):
            described[stored.rpartition(".")[2]] = list(values)
            tensors[prefix + stored] = torch.tensor(values)[:, None, None]
        spec = replace(spec, mean=(0.0,) * 3, std=(1.0,) * 3)
    side = config.patch_size if spec.patch_size % config.patch_size == 0 else 0
    express = partial(to_hf, patch_size=side, temporal_patch=config.temporal_patch)
    written = nearest(spec, "transformers", express)
    images = express(written)
    read = from_hf(images)
    if layout.pixel_statistics:
        read = replace(read, mean=mean, std=std)
    return tensors, {"config.json": described, "preprocessor_config.json": images}, read


def _timm(model: VisionTransformer, state: Json, family: str, spec: Preprocess) -> tuple[Json, Json, Preprocess]:
    """(weights, JSON files, preprocessing that the files describe) for timm."""
    config, state = timm_write.to_timm_state(family, model.config, dict(state))
    described = timm_write.describe(family, config)
    tensors = timm_write.tensors(family, config, state)
    shapes = {name: tuple(value.shape) for name, value in tensors.items()}
    found = timm_layout.fields(shapes, image_size=config.image_size)
    heads = Hints(num_heads=config.num_heads)
    again = timm.config_of(described["architecture"], found, described["model_args"], heads)
    _check("timm", config, again)
    written = nearest(spec, "timm", to_timm)
    described["pretrained_cfg"] = timm_write.preprocess_config(written, config)
    naflex = config.patch_size if family == "siglip2_vision_model" else None
    return tensors, {"config.json": described}, from_timm(described["pretrained_cfg"], patch_size=naflex)


def _with_class_row(state: Json, config: ViTConfig) -> tuple[Json, ViTConfig]:
    """A table whose first row, for CLS, adds nothing: timm's towers with registers have none."""
    table = state["position.table"]
    owned = 2 if config.pool == "cls_dist" else 1
    rows = table.new_zeros(1, owned, table.shape[-1])
    return dict(state) | {"position.table": torch.cat([rows, table], dim=1)}, replace(config, position_prefix=owned)


def _check(library: str, ours: ViTConfig, theirs: ViTConfig) -> None:
    """Raise ValueError if the written configuration would be read as another architecture."""
    differ = [f"{name} {mine!r} would become {other!r}" for name, mine, other in differences(ours, theirs)]
    if (ours.layer_scale is None) != (theirs.layer_scale is None):
        differ.append("layer_scale (fold_layer_scale() takes it into the weights)")
    if differ:
        raise ValueError(f"{library} cannot express this architecture: {', '.join(differ)}")


def differences(ours: ViTConfig, theirs: ViTConfig) -> list[tuple[str, object, object]]:
    """(field, value in `ours`, value in `theirs`) where the two are different architectures, apart from layer_scale."""
    unread = set() if ours.num_classes or theirs.num_classes else {"class_input"}
    return [
        (field.name, getattr(ours, field.name), getattr(theirs, field.name))
        for field in fields(ViTConfig)
        if field.name not in _TRAINING_ONLY_FIELDS | unread and getattr(ours, field.name) != getattr(theirs, field.name)
    ]
