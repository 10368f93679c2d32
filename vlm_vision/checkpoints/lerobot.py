"""Policies that LeRobot saves (`"type": "pi0"`, `"pi05"`, `"smolvla"`): the SigLIP tower inside, read by prefix.

Their config.json does not describe the tower; its shapes do, but for the heads, which SigLIP's public sizes tell.
"""

import math
from pathlib import Path
from typing import Any

from vlm_vision.checkpoints import hf
from vlm_vision.checkpoints.files import WeightFiles
from vlm_vision.checkpoints.hf_preprocess import from_hf
from vlm_vision.checkpoints.towers import Hints, Part, Tower
from vlm_vision.config import ViTConfig

Json = dict[str, Any]

POLICIES = {
    "pi0": "siglip_vision_model",
    "pi05": "siglip_vision_model",
    "pi0_fast": "siglip_vision_model",
    "smolvla": "smolvlm_vision",
}
"""LeRobot's policy type -> family of its tower."""

FAMILIES = ("siglip_vision_model", "smolvlm_vision")

_HEADS = {768: 12, 1024: 16, 1152: 16, 1536: 16}
"""Width -> heads of SigLIP."""

_LANDMARK = "embeddings.patch_embedding.weight"


def recognises(config: Json) -> bool:
    """Whether a config.json is one of LeRobot's policies with a tower inside."""
    return config.get("type") in POLICIES and "model_type" not in config


def read(folder: Path, config: Json, hints: Hints) -> Tower:
    """The tower of a policy folder.

    Raises:
        ValueError: no tower in it, or a head count that is not known.
    """
    weights = WeightFiles(folder)
    prefixes = [name.removesuffix(_LANDMARK) for name in weights.shapes if name.endswith(_LANDMARK)]
    if len(prefixes) != 1:
        raise ValueError(f"{folder} should hold one tower with {_LANDMARK}, found {len(prefixes)}")
    part = Part(weights, prefixes[0], ignored=lambda name: name.endswith("position_ids"))
    family = POLICIES[str(config["type"])]
    try:
        vit = _config(part.shapes, family, hints)
    except (KeyError, IndexError, ValueError) as error:
        raise ValueError(f"{folder} holds no SigLIP tower as LeRobot saves it: {error}") from None
    return Tower(
        source=str(folder),
        format="lerobot",
        family=family,
        reference="transformers",
        config=vit,
        keys=hf.FAMILIES[family].keys(vit),
        weights=part,
        preprocess=from_hf(hf.FAMILIES[family].preprocessor(vit)),
    )


def _config(shapes: dict[str, tuple[int, ...]], family: str, hints: Hints) -> ViTConfig:
    dim, channels, patch, _ = shapes[_LANDMARK]
    count = shapes["embeddings.position_embedding.weight"][0]
    side = math.isqrt(count)
    if side * side != count:
        raise ValueError(f"its position table has {count} rows, expected the square of a whole number")
    if hints.num_heads is None and dim not in _HEADS:
        raise ValueError(f"the number of heads of a SigLIP of width {dim} is not known: pass num_heads=...")
    return ViTConfig(
        image_size=(side * patch, side * patch),
        patch_size=patch,
        channels=channels,
        embed_dim=dim,
        depth=1 + max(int(name.split(".")[2]) for name in shapes if name.startswith("encoder.layers.")),
        num_heads=hints.num_heads or _HEADS[dim],
        mlp_dim=shapes["encoder.layers.0.mlp.fc1.weight"][0],
        mlp="gelu_tanh",
        class_token=False,
        position_resize="bucket" if family == "smolvlm_vision" else "bicubic",
        pool="map" if "head.probe" in shapes else "none",
    )
