"""Prismatic and OpenVLA (and OFT) checkpoints: one or two timm towers, read by prefix; the language model is not read.

HuggingFace folders name the towers `vision_backbone.featurizer` and `.fused_featurizer`; Prismatic's own files
`vision_backbone.dino_featurizer` and `.siglip_featurizer` (or `.featurizer` for one tower). OpenVLA-OFT's runs:
`vlm_vision.checkpoints.openvla.oft`.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from vlm_vision.checkpoints.checkpoint import Checkpoint
from vlm_vision.checkpoints.openvla import oft
from vlm_vision.checkpoints.openvla.preprocess import from_openvla
from vlm_vision.checkpoints.timm import layout as timm_layout
from vlm_vision.checkpoints.timm import reader as timm
from vlm_vision.checkpoints.towers import MALFORMED_ERRORS, Format, Hints, Tower, TowerWeights, WeightSource, only
from vlm_vision.nn.output import Tap

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


def recognises(checkpoint: Checkpoint) -> bool:
    """Whether config.json is OpenVLA's or Prismatic's, in HuggingFace's form or its own."""
    config = _described(checkpoint)
    own, policy = config.get("model"), config.get("vla")
    named = isinstance(own, dict) and "vision_backbone_id" in own
    return config.get("model_type") in MODEL_TYPES or named or (isinstance(policy, dict) and "base_vlm" in policy)


def _described(checkpoint: Checkpoint) -> Json:
    """config.json of a folder, of the base of an adapter, or of the run that a file belongs to; empty for none."""
    if checkpoint.is_folder:
        return oft.base(checkpoint).config
    path = checkpoint.path
    if path.suffix == ".pt" and path.parent.name == "checkpoints":
        return checkpoint.other(path.parent.parent).config
    return {}


def all_weights(checkpoint: Checkpoint) -> WeightSource:
    """Weights of a file; of a run folder of Prismatic's or OpenVLA's own code the latest; of any other folder all."""
    if not checkpoint.is_folder:
        return checkpoint.weights
    steps = sorted(f"checkpoints/{step.name}" for step in (checkpoint.path / "checkpoints").glob("step-*.pt"))
    latest = "checkpoints/latest-checkpoint.pt"
    if checkpoint.has(latest) or steps:
        return checkpoint.weights_in(latest if checkpoint.has(latest) else steps[-1])
    return oft.weights(checkpoint)


def read(checkpoint: Checkpoint, hints: Hints) -> list[Tower]:
    """The towers in channel order, each tapped where the model taps it: before the last block's output, without norm.

    Raises:
        ValueError: an unknown backbone, missing weights.
    """
    only(checkpoint, hints, "num_heads")
    source, config, preprocessor, film = checkpoint.path, _described(checkpoint), None, None
    if checkpoint.is_folder:
        places = [place for place in (checkpoint, oft.base(checkpoint)) if place.has("preprocessor_config.json")]
        preprocessor = places[0].json("preprocessor_config.json") if places else None
        film = oft.tower_weights(checkpoint)
    weights = all_weights(checkpoint) if film is None else film
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


_WITH_FILM = ((r"^(blocks\.\d+\.)block\.", r"\1"),)
"""Names in the wrapper of OpenVLA-OFT's FiLM: `blocks.0.block.norm1` is `blocks.0.norm1`."""


def _part(source: Path, weights: WeightSource, names: tuple[str, ...]) -> TowerWeights:
    """The tower whose weights are under one of `names`."""
    mark = timm_layout.LANDMARKS[0]
    stems = {f"vision_backbone.{name}." for name in names}
    for stored in weights.shapes:
        prefix = stored.removesuffix(mark)
        if stored.endswith(mark) and any(prefix.endswith(stem) for stem in stems):
            return TowerWeights(weights, prefix, ignored=timm_layout.is_ignored_weight, spellings=_WITH_FILM)
    raise ValueError(
        f"{source} holds no tower vision_backbone.{' or '.join(names)}: a checkpoint with frozen towers may leave "
        "them out; load them from their own checkpoints"
    )


FORMAT = Format("openvla", FAMILIES, recognises, read)
