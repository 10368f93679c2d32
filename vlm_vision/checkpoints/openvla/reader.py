"""Prismatic and OpenVLA (and OFT) checkpoints: one or two timm towers, read by prefix; the language model is not touched.

HuggingFace folders name the towers `vision_backbone.featurizer` and `.fused_featurizer`; Prismatic's own files
`vision_backbone.dino_featurizer` and `.siglip_featurizer` (or `.featurizer` for one tower). OpenVLA-OFT's runs:
`vlm_vision.checkpoints.openvla.oft`.
"""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from vlm_vision.checkpoints.openvla.preprocess import from_openvla
from vlm_vision.checkpoints.timm import layout as timm_layout
from vlm_vision.checkpoints.timm import reader as timm
from vlm_vision.checkpoints.towers import MALFORMED_ERRORS, Hints, Tower, TowerWeights, WeightSource
from vlm_vision.nn.config import Tap

Json = dict[str, Any]

BACKBONES: dict[str, list[tuple[str, str, int]]] = {
    "clip-vit-l": [("featurizer", "vit_large_patch14_clip_quickgelu_224", 224)],
    "clip-vit-l-336px": [("featurizer", "vit_large_patch14_clip_quickgelu_336", 336)],
    "siglip-vit-b16-224px": [("featurizer", "vit_base_patch16_siglip_224", 224)],
    "siglip-vit-b16-256px": [("featurizer", "vit_base_patch16_siglip_256", 256)],
    "siglip-vit-b16-384px": [("featurizer", "vit_base_patch16_siglip_384", 384)],
    "siglip-vit-so400m": [("featurizer", "vit_so400m_patch14_siglip_224", 224)],
    "siglip-vit-so400m-384px": [("featurizer", "vit_so400m_patch14_siglip_384", 384)],
    "dinov2-vit-l": [("featurizer", "vit_large_patch14_reg4_dinov2", 224)],
    "in1k-vit-l": [("featurizer", "vit_large_patch16_224.augreg_in21k_ft_in1k", 224)],
    "dinoclip-vit-l-336px": [
        ("dino_featurizer", "vit_large_patch14_reg4_dinov2", 336),
        ("clip_featurizer", "vit_large_patch14_clip_quickgelu_336", 336),
    ],
    "dinosiglip-vit-so-224px": [
        ("dino_featurizer", "vit_large_patch14_reg4_dinov2", 224),
        ("siglip_featurizer", "vit_so400m_patch14_siglip_224", 224),
    ],
    "dinosiglip-vit-so-384px": [
        ("dino_featurizer", "vit_large_patch14_reg4_dinov2", 384),
        ("siglip_featurizer", "vit_so400m_patch14_siglip_384", 384),
    ],
}
"""vision_backbone_id -> (attribute in Prismatic's own code, timm architecture, image side in pixels), in channel order."""

BASE_MODELS = {
    "siglip-224px+7b": ("siglip-vit-so400m", "letterbox"),
    "prism-dinosiglip-224px+7b": ("dinosiglip-vit-so-224px", "resize-naive"),
}
"""base_vlm of OpenVLA's own runs -> (vision_backbone_id, image_resize_strategy)."""

FAMILIES = ("vit", "dinov2_with_registers", "clip_vision_model", "siglip_vision_model")
HF_NAMES = ("featurizer", "fused_featurizer")
MODEL_TYPES = ("openvla", "prismatic")


def recognises(config: Json) -> bool:
    """Whether a config.json is OpenVLA's or Prismatic's, in HuggingFace's form or its own."""
    own, policy = config.get("model"), config.get("vla")
    named = isinstance(own, dict) and "vision_backbone_id" in own
    return config.get("model_type") in MODEL_TYPES or named or (isinstance(policy, dict) and "base_vlm" in policy)


def run_weights(folder: Path) -> Path | None:
    """The file of weights in a run folder of Prismatic's or OpenVLA's own code: the latest; None in any other folder."""
    latest = folder / "checkpoints" / "latest-checkpoint.pt"
    steps = sorted((folder / "checkpoints").glob("step-*.pt"))
    return latest if latest.is_file() else steps[-1] if steps else None


def read(source: Path, config: Json, preprocessor: Json | None, weights: WeightSource, hints: Hints) -> list[Tower]:
    """The towers in channel order, each tapped where the model taps it: before the last block's output, without norm.

    Args:
        source: folder or file, for errors.
        config: content of config.json.
        preprocessor: content of preprocessor_config.json, if there is one.
        weights: all of the checkpoint.
        hints: unused but for the head count.

    Raises:
        ValueError: a backbone that is not known, weights that are not there.
    """
    inner = config.get("model")
    described = config | inner if isinstance(inner, dict) else config
    if isinstance(policy := config.get("vla"), dict):
        described = described | _of_base(source, policy.get("base_vlm"))
    name = described.get("vision_backbone_id")
    if not isinstance(name, str) or name not in BACKBONES:
        raise ValueError(f"{source} has the vision_backbone_id {name!r}: expected one of {', '.join(BACKBONES)}")
    backbone = BACKBONES[str(name)]
    known: Json = {"timm_model_ids": [one[1] for one in backbone], "image_sizes": [one[2] for one in backbone]}
    known["use_fused_vision_backbone"] = len(backbone) > 1
    described = known | {field: value for field, value in described.items() if value is not None}
    overrides = described.get("timm_override_act_layers") or [None] * len(backbone)
    arguments = described.get("timm_model_args") or [{}] * len(backbone)
    try:
        specs = from_openvla(described, preprocessor)
        towers = []
        for i, (own_name, _, _) in enumerate(backbone):
            extra: Json = {"img_size": described["image_sizes"][i]} | dict(arguments[i])
            if overrides[i] is not None:
                extra["act_layer"] = overrides[i]
            part = _part(source, weights, (HF_NAMES[i], own_name))
            found = timm.tower(str(source), part, str(described["timm_model_ids"][i]), extra, {}, hints)
            towers.append(replace(found, format="openvla", preprocess=specs[i], tap=Tap(layer=-2, norm=False)))
    except MALFORMED_ERRORS as error:
        raise ValueError(f"{source}: its configuration has a value of the wrong kind ({error!r})") from None
    return towers


def _of_base(source: Path, name: Any) -> Json:
    if name not in BASE_MODELS:
        raise ValueError(f"{source} has the base_vlm {name!r}: expected one of {', '.join(BASE_MODELS)}")
    return dict(zip(("vision_backbone_id", "image_resize_strategy"), BASE_MODELS[name], strict=True))


def _plain_name(name: str) -> str:
    """The block that OpenVLA-OFT's FiLM wraps, `blocks.0.block.norm1`, as if it did not."""
    return re.sub(r"^(blocks\.\d+\.)block\.", r"\1", name)


def _part(source: Path, weights: WeightSource, names: tuple[str, ...]) -> TowerWeights:
    """The tower whose weights are under one of `names`."""
    mark = timm_layout.LANDMARKS[0]
    stems = {f"vision_backbone.{name}." for name in names}
    for stored in weights.shapes:
        prefix = stored.removesuffix(mark)
        if stored.endswith(mark) and any(prefix.endswith(stem) for stem in stems):
            return TowerWeights(weights, prefix, ignored=timm_layout.carries_nothing, rename=_plain_name)
    raise ValueError(
        f"{source} holds no tower vision_backbone.{' or '.join(names)}: a checkpoint whose towers were frozen may have left "
        "them out; load them from their own checkpoints"
    )
