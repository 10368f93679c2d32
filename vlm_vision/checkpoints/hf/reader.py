"""HuggingFace folders: `config.json` and weights of transformers.

Weights of a whole model (CLIP, SigLIP, LLaVA, PaliGemma, SmolVLM) are read by prefix; only the vision part is touched.

Documented exceptions to "every stored weight is used": `position_ids` (an index buffer of old CLIP and SigLIP files)
and the `SIBLINGS` of the vision part in a whole model.
"""

import difflib
from pathlib import Path
from typing import Any

from vlm_vision.checkpoints.hf.aimv2 import AIMV2
from vlm_vision.checkpoints.hf.clip import CLIP, IDEFICS3, SIGLIP, SIGLIP2, SMOLVLM
from vlm_vision.checkpoints.hf.dino import DINOV2, DINOV2_WITH_REGISTERS, DINOV3
from vlm_vision.checkpoints.hf.family import Family, Json, style_of
from vlm_vision.checkpoints.hf.preprocess import from_hf
from vlm_vision.checkpoints.hf.vit import DEIT, IJEPA, MAE, VIT
from vlm_vision.checkpoints.towers import MALFORMED_ERRORS, Hints, Tower, TowerWeights
from vlm_vision.checkpoints.weights import WeightFiles
from vlm_vision.files import read_json
from vlm_vision.nn.config import ViTConfig
from vlm_vision.preprocess.spec import Preprocess

FAMILIES: dict[str, Family] = {
    "vit": VIT,
    "deit": DEIT,
    "vit_mae": MAE,
    "ijepa": IJEPA,
    "dinov2": DINOV2,
    "dinov2_with_registers": DINOV2_WITH_REGISTERS,
    "dinov3_vit": DINOV3,
    "clip_vision_model": CLIP,
    "siglip_vision_model": SIGLIP,
    "siglip2_vision_model": SIGLIP2,
    "idefics3_vision": IDEFICS3,
    "smolvlm_vision": SMOLVLM,
    "aimv2_vision_model": AIMV2,
}
"""model_type of a vision tower -> how to read it."""

WHOLE_MODELS = {
    "clip": "clip_vision_model",
    "siglip": "siglip_vision_model",
    "siglip2": "siglip2_vision_model",
    "aimv2": "aimv2_vision_model",
    "llava": "clip_vision_model",
    "llava_next": "clip_vision_model",
    "llava_onevision": "siglip_vision_model",
    "paligemma": "siglip_vision_model",
    "idefics3": "idefics3_vision",
    "smolvlm": "smolvlm_vision",
    "pi0": "siglip_vision_model",
}
"""model_type of a whole model -> the family of its vision part, unless its vision_config says another."""

_HEADLESS = {"llava", "llava_next", "llava_onevision", "paligemma", "pi0"}
"""Whole models that drop SigLIP's pooling head whatever their config says."""

SIBLINGS = (
    "text_model.", "text_projection.", "visual_projection.", "logit_scale", "logit_bias",  # CLIP, SigLIP, AIMv2
    "language_model.", "model.language_model.", "multi_modal_projector.", "model.multi_modal_projector.",
    "lm_head.", "image_newline", "model.image_newline",  # LLaVA, PaliGemma
    "model.text_model.", "model.connector.",  # Idefics3, SmolVLM
    "decoder.",  # MAE
    "paligemma_with_expert.", "state_proj.", "action_", "model.vlm.", "model.dit.", "model.embed_action_time.",  # pi0
)  # fmt: skip
"""Names, by prefix, of the other parts of a whole model."""


_PI0: Json = {"image_processor_type": "PI0ImageProcessor"}


def recognises(config: Json) -> bool:
    """Whether a config.json is one of transformers."""
    return "model_type" in config


def read(folder: Path, config: Json, hints: Hints) -> Tower:
    """The vision tower of a folder.

    Raises:
        ValueError: a model_type that is not known, several towers or none, a config.json that makes no sense.
    """
    name, fields = _vision_config(folder, config)
    family = FAMILIES[name]
    weights = WeightFiles(folder)
    prefix = _prefix(folder, name, family, weights, hints)
    fields = family.defaults | {field: value for field, value in fields.items() if value is not None}
    if config.get("model_type") in _HEADLESS and "vision_use_head" in fields:
        fields["vision_use_head"] = f"{prefix}head.probe" in weights.shapes
    outside = [stored for stored in weights.shapes if not stored.startswith(prefix)]
    beside = [stored for stored in outside if stored in family.beside or not stored.startswith(SIBLINGS)]
    part = TowerWeights(weights, prefix, beside=beside, ignored=lambda stored: stored.endswith("position_ids"))
    try:
        vit = family.read_config(fields, frozenset(part.shapes))
        table = family.keys(vit, style_of(family, part.shapes))
    except MALFORMED_ERRORS as error:
        raise ValueError(
            f"{folder / 'config.json'} has a value of the wrong kind ({error!r}): download it again"
        ) from None
    except ValueError as error:
        raise ValueError(f"{folder / 'config.json'}: {error}") from None
    return Tower(
        source=str(folder),
        format="hf",
        family=name,
        reference="transformers",
        config=vit,
        keys=table,
        weights=part,
        preprocess=_preprocess(folder, _PI0 if config.get("model_type") == "pi0" else family.preprocessor(vit)),
    )


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


def _vision_config(folder: Path, config: Json) -> tuple[str, Json]:
    """(family, config of the vision part)"""
    model_type = str(config.get("model_type"))
    if model_type not in WHOLE_MODELS:
        return _known(folder, model_type), config
    around: Any = config.get("vlm_config") or {} if model_type == "pi0" else config
    part: Any = around.get("vision_config") or {} if isinstance(around, dict) else None
    if not isinstance(part, dict):
        raise ValueError(f"{folder / 'config.json'} has a vision_config that is no object: download it again")
    name: Any = part.get("model_type") or WHOLE_MODELS[model_type]
    name = {"idefics3": "idefics3_vision", "smolvlm": "smolvlm_vision"}.get(str(name), name)  # older files
    part = {label: config[label] for label in ("id2label", "num_labels") if label in config} | part
    if model_type == "clip":
        part = part | {"projection_dim": config.get("projection_dim", 512)}
    return _known(folder, name), part


def _known(folder: Path, name: Any) -> str:
    known = [*FAMILIES, *WHOLE_MODELS]
    if not isinstance(name, str) or name not in FAMILIES:
        near = difflib.get_close_matches(str(name), known)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{folder / 'config.json'} has model_type {name!r}, expected one of {', '.join(known)}{hint}")
    return str(name)


def _prefix(folder: Path, name: str, family: Family, weights: WeightFiles, hints: Hints) -> str:
    """What precedes the vision part's names. `hints.part` chooses among several."""
    prefixes = [stored.removesuffix(family.landmark) for stored in weights.shapes if stored.endswith(family.landmark)]
    if hints.part is not None:
        prefixes = [prefix for prefix in prefixes if prefix.rstrip(".") == hints.part.rstrip(".")]
    if len(prefixes) == 1:
        return prefixes[0]
    if prefixes:
        parts = ", ".join(prefix.rstrip(".") for prefix in prefixes)
        raise ValueError(f'{folder} holds {len(prefixes)} {name} towers ({parts}): say which one by part="..."')
    wanted = family.landmark if hints.part is None else f"{hints.part}.{family.landmark}"
    raise ValueError(
        f"{folder} should hold one {name} tower, found no weight {wanted}: configuration and weights are not of one model"
    )


def _preprocess(folder: Path, default: Json) -> Preprocess:
    """From preprocessor_config.json, or processor_config.json of transformers 5, or the family's public default."""
    file = folder / "preprocessor_config.json"
    if file.is_file():
        described = read_json(file)
    else:
        file = folder / "processor_config.json"
        described = read_json(file).get("image_processor") if file.is_file() else None
    if described is None:
        return from_hf(default)
    try:
        return from_hf(described)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    except MALFORMED_ERRORS as error:
        raise ValueError(f"{file} has a value of the wrong kind ({error!r}): download it again") from None
