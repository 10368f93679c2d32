"""HuggingFace folders: `config.json` and weights of transformers.

Of a whole model (CLIP, LLaVA, Qwen-VL, ...) only the vision part is read, by the prefix of its names; a whole model that
is not known by name is read too, if its vision_config names a tower that is.

Documented exceptions to "every stored weight is used": `position_ids` (an index buffer of old CLIP and SigLIP files), the
other parts of a whole model, and a connector to the language model that lies inside the vision part.
"""

import difflib
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from vlm_vision.checkpoints.checkpoint import OWN_MODEL, Checkpoint
from vlm_vision.checkpoints.families import all as families
from vlm_vision.checkpoints.families.family import Family, Json, WholeModel
from vlm_vision.checkpoints.hf.preprocess import from_hf
from vlm_vision.checkpoints.towers import MALFORMED_ERRORS, Format, Hints, Tower, TowerWeights, WeightSource, only
from vlm_vision.nn.config import ViTConfig
from vlm_vision.preprocess.spec import Preprocess

FAMILIES: dict[str, Family] = {family.name: family for family in families.ALL if not family.written_as}
"""Families with their own model_type in transformers."""

CONTAINER = WholeModel(model_type="")
"""A whole model that is not known by name, around a tower that is."""


def recognises(checkpoint: Checkpoint) -> bool:
    """Whether config.json is of transformers."""
    return "model_type" in checkpoint.config


def read(checkpoint: Checkpoint, hints: Hints) -> list[Tower]:
    """The vision tower of a folder.

    Raises:
        ValueError: an unknown model_type, several towers or none, a config.json with wrong values.
    """
    only(checkpoint, hints, "part")
    checkpoint.check_no_adapter()
    family, fields, whole = _vision_config(checkpoint)
    weights = checkpoint.weights
    prefix = _prefix(checkpoint, family, hints)
    if whole is not None and "vision_use_head" in fields:
        fields["vision_use_head"] = f"{prefix}head.probe" in weights.shapes
    outside = [stored for stored in weights.shapes if not stored.startswith(prefix)]
    known = families.SIBLINGS if whole is None or whole.checked else ("",)
    extra = [stored for stored in outside if stored in family.beside or not stored.startswith(known)]

    def part(used: frozenset[str] | None = None) -> TowerWeights:
        at_root = (
            whole is not None and not prefix and used is not None
        )  # Cosmos 3: other parts stand beside the tower's

        def ignored(name: str) -> bool:
            if at_root or name.startswith(family.connector):
                return used is None or name not in used
            return name.endswith("position_ids")

        return TowerWeights(weights, prefix, extra=extra, ignored=ignored, spellings=family.spellings)

    names = part().shapes
    where = checkpoint.path / "config.json"
    bare = TowerWeights(weights, prefix, spellings=family.spellings)
    fields |= _with_buffers(family.buffers, fields, bare, where)
    try:
        vit = family.read_config(fields, frozenset(names))
        table = family.keys(vit, family.style_of(names))
    except MALFORMED_ERRORS as error:
        raise ValueError(f"{where} has a value of the wrong kind ({error!r}): download it again") from None
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    default = whole.preprocessor if whole is not None else None
    preprocess = preprocess_of(checkpoint, default or family.preprocessor(vit), hints.pixels)
    if family.pixel_statistics:
        preprocess = _with_statistics(preprocess, family.pixel_statistics, fields, bare)
    return [
        Tower(
            source=str(checkpoint),
            format="hf",
            family=family.name,
            reference="transformers",
            config=vit,
            keys=table,
            weights=part(frozenset(name for row in table for name in row.theirs)),
            preprocess=preprocess,
        )
    ]


def _with_buffers(names: tuple[str, ...], fields: Json, weights: WeightSource, where: Path) -> Json:
    """Fields of config.json that the tower holds as buffers too.

    Raises:
        ValueError: the two differ.
    """
    stored = {name: weights.get(name).tolist() for name in names if name in weights.shapes}
    for name, values in stored.items():
        if fields.get(name) is not None and list(fields[name]) != values:
            raise ValueError(f"{where} has {name} {fields[name]}, but its weights hold {values}: remove the wrong one")
    return stored


def public_layout(family: str, config: ViTConfig) -> tuple[str, str]:
    """(prefix of the tower's weights on disk, class that reads them) in the layout of the public hub."""
    prefix, architecture = FAMILIES[family].prefix, FAMILIES[family].architecture
    if config.pool_head == "linear":
        architecture += "WithProjection"
    if config.num_classes:
        architecture = architecture.replace("VisionModel", "Model").replace("Model", "ForImageClassification")
        prefix = prefix or f"{family}."
    if config.class_input == "distilled":
        architecture += "WithTeacher"
    return prefix, architecture


def _vision_config(checkpoint: Checkpoint) -> tuple[Family, Json, WholeModel | None]:
    """(family, fields of the vision part with transformers' defaults, whole model around it)"""
    config = checkpoint.config
    model_type = str(config.get("model_type"))
    if model_type in families.REFUSED:
        return *_known(checkpoint, model_type, config), None
    if model_type in families.WHOLE_MODELS:
        _, whole = families.WHOLE_MODELS[model_type]
    elif model_type in families.MODEL_TYPES or not _names_tower(config):
        return *_known(checkpoint, model_type, config), None
    else:
        whole = CONTAINER
    around: Any = config
    for name in whole.around.split(".") if whole.around else ():
        around = around.get(name) or {} if isinstance(around, dict) else None
    part: Any = around.get(whole.part) or around.get(whole.older_part) or {} if isinstance(around, dict) else None
    if not isinstance(part, dict):
        raise ValueError(
            f"{checkpoint.path / 'config.json'} has a {whole.part} that is not an object: download it again"
        )
    name: Any = whole.tower if whole.always else part.get("model_type") or whole.tower or model_type
    if isinstance(name, str) and name in families.WHOLE_MODELS:  # older files name the whole model there
        usual, inner = families.WHOLE_MODELS[name]
        name = inner.tower or usual.name
        if inner.part in part and inner.part != whole.part:
            part = part[inner.part]
    part = {label: config[label] for label in ("id2label", "num_labels") if label in config} | part
    part = part | {field: config.get(field, default) for field, default in whole.outer_fields.items()}
    return *_known(checkpoint, name, part), whole


def _names_tower(config: Json) -> bool:
    """Whether config.json is a whole model's whose vision_config names its tower."""
    part = config.get("vision_config")
    return isinstance(part, dict) and isinstance(part.get("model_type"), str)


def _known(checkpoint: Checkpoint, name: Any, given: Json) -> tuple[Family, Json]:
    """(family of a tower's model_type, its fields with transformers' defaults for those that are absent)"""
    if not isinstance(name, str) or name not in families.MODEL_TYPES or name in families.REFUSED:
        whole = checkpoint.config.get("model_type")
        where = f"{checkpoint.path / 'config.json'} has model_type {whole!r}"
        if name != whole:
            where += f", whose vision part is {name!r}"
        if reason := families.REFUSED.get(str(name)) or families.REFUSED.get(str(whole)):
            raise ValueError(f"{where}: {reason}")
        if whole == OWN_MODEL:
            raise ValueError(f"{where}, a whole model: pass the .encoder of VisionLanguageModel.from_pretrained")
        near = difflib.get_close_matches(str(name), [*families.MODEL_TYPES, *families.WHOLE_MODELS], cutoff=0.8)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{where}, which is not known: `vlm-vision formats` lists the towers that are{hint}")
    family, changed = families.MODEL_TYPES[name]
    return family, family.defaults | changed | {field: value for field, value in given.items() if value is not None}


def _prefix(checkpoint: Checkpoint, family: Family, hints: Hints) -> str:
    """What precedes the vision part's names. `hints.part`, the whole of it or a part between dots, chooses among several."""
    prefixes = [
        stored.removesuffix(mark)
        for stored in checkpoint.weights.shapes
        for mark in family.landmarks
        if stored.endswith(mark)
    ]
    if hints.part is not None:
        part = hints.part.strip(".")
        exact = [prefix for prefix in prefixes if prefix.rstrip(".") == part]
        prefixes = exact or [prefix for prefix in prefixes if f".{part}." in f".{prefix}"]
    if len(prefixes) == 1:
        return prefixes[0]
    if prefixes:
        parts = ", ".join(prefix.rstrip(".") for prefix in prefixes)
        raise ValueError(f'{checkpoint} holds {len(prefixes)} {family.name} towers ({parts}): choose one by part="..."')
    marks = " or ".join(mark if hints.part is None else f"{hints.part}.{mark}" for mark in family.landmarks)
    raise ValueError(
        f"{checkpoint} holds no weight {marks}, expected one {family.name} tower: configuration and weights are of "
        "different models"
    )


def preprocess_of(checkpoint: Checkpoint, default: Json, pixels: str = "pil") -> Preprocess:
    """With that backend, from preprocessor_config.json, or processor_config.json of transformers 5, or the family's public default."""
    name, described = "preprocessor_config.json", None
    if checkpoint.has(name):
        described = checkpoint.json(name)
    elif checkpoint.has("processor_config.json"):
        name = "processor_config.json"
        described = checkpoint.json(name).get("image_processor")
    if described is None:
        return from_hf(default, pixels)
    try:
        spec = from_hf(described, pixels)
        if spec.resize == "within_patches" and checkpoint.has("processor_config.json"):
            around = checkpoint.json("processor_config.json")
            if around.get("processor_class") == "PixtralProcessor":  # it has images of whole squares of merged patches
                square = around.get("patch_size", 16) * around.get("spatial_merge_size", 1)
                spec = replace(spec, patch_size=square)
        return spec
    except ValueError as error:
        raise ValueError(f"{checkpoint.path / name}: {error}") from None
    except MALFORMED_ERRORS as error:
        raise ValueError(
            f"{checkpoint.path / name} has a value of the wrong kind ({error!r}): download it again"
        ) from None


def _with_statistics(spec: Preprocess, names: tuple[str, str], fields: Json, weights: WeightSource) -> Preprocess:
    """The preprocessing, followed by the normalization that the tower holds as weights, if it does."""
    if not set(names) <= set(weights.shapes):
        return spec
    values = []
    for name in names:
        stored = weights.get(name).flatten().float()
        stated = fields.get(name.rpartition(".")[2])  # the same numbers, in double precision
        values.append(stated if stated and torch.equal(torch.tensor(stated), stored) else stored.tolist())
    mean = tuple(before + std * m for before, std, m in zip(spec.mean, spec.std, values[0], strict=True))
    std = tuple(before * s for before, s in zip(spec.std, values[1], strict=True))
    return replace(spec, mean=mean, std=std)


FORMAT = Format("hf", tuple(FAMILIES), recognises, read)
