"""Policies of LeRobot: those around a vision-language model of transformers (`vla`); and of `"type": "pi0"`, `"pi05"`, `"smolvla"`, and pi0 of openpi's PyTorch code: the SigLIP tower
inside, read by prefix, with the preprocessing of that code.

The config.json of these does not describe the tower; its shapes do, except for the heads, which follow from SigLIP's public sizes. openpi's
training writes no config.json: the weights' names identify it.
"""

import math
from pathlib import Path
from typing import Any

from vlm_vision.checkpoints.checkpoint import Checkpoint
from vlm_vision.checkpoints.families.all import FAMILIES as RECORDS
from vlm_vision.checkpoints.families.all import resize_rule
from vlm_vision.checkpoints.lerobot import vla
from vlm_vision.checkpoints.lerobot.images import two_numbers
from vlm_vision.checkpoints.towers import Format, Hints, Tower, TowerWeights, only
from vlm_vision.nn.config import ViTConfig
from vlm_vision.preprocess.spec import HALF, Preprocess

Json = dict[str, Any]

POLICIES = {
    "pi0": "siglip_vision_model",
    "pi05": "siglip_vision_model",
    "pi0_fast": "siglip_vision_model",
    "pi0fast": "siglip_vision_model",
    "smolvla": "smolvlm_vision",
}
"""LeRobot's policy type -> family of its tower."""

FAMILIES = ("siglip_vision_model", "smolvlm_vision", *vla.FAMILIES)

_HEADS = {768: 12, 1024: 16, 1152: 16, 1536: 16}
"""Width -> heads of SigLIP."""

_PI0 = (224, 224)

_LANDMARK = "embeddings.patch_embedding.weight"


_OPENPI = "paligemma_with_expert.paligemma."
"""Prefix of the names of openpi's own PyTorch weights; LeRobot's have "model." before it."""


def recognises(checkpoint: Checkpoint) -> bool:
    """Whether config.json is one of LeRobot's policies with a tower inside, or of openpi's conversion; or absent,
    and the weights have the names of openpi's PyTorch training."""
    if not checkpoint.has("config.json"):
        return checkpoint.has("model.safetensors") and any(
            name.startswith(_OPENPI) for name in checkpoint.weights.shapes
        )
    config = checkpoint.config
    if vla.policy_of(checkpoint) is not None:
        return True
    lerobot = config.get("type") in POLICIES and "model_type" not in config
    return lerobot or "paligemma_variant" in config


def read(checkpoint: Checkpoint, hints: Hints) -> list[Tower]:
    """The tower of a policy folder.

    Raises:
        ValueError: no tower, or an unknown head count.
    """
    if vla.policy_of(checkpoint) is not None:
        return vla.read(checkpoint, hints)
    folder, config, weights = checkpoint.path, checkpoint.config, checkpoint.weights
    if config:
        only(checkpoint, hints, "num_heads")
    prefixes = [name.removesuffix(_LANDMARK) for name in weights.shapes if name.endswith(_LANDMARK)]
    if len(prefixes) != 1:
        raise ValueError(f"{folder} holds {len(prefixes)} weights called {_LANDMARK}, expected one tower")
    part = TowerWeights(weights, prefixes[0], ignored=lambda name: name.endswith("position_ids"))
    family = POLICIES[str(config.get("type", "pi0"))]
    try:
        vit = _config(part.shapes, family, hints)
    except (KeyError, IndexError, ValueError) as error:
        raise ValueError(f"{folder} holds no SigLIP tower of LeRobot or openpi: {error}") from None
    tower = Tower(
        source=str(folder),
        format="lerobot",
        family=family,
        reference="transformers",
        config=vit,
        keys=RECORDS[family].keys(vit),
        weights=part,
        preprocess=_preprocess(folder, config),
    )
    return [tower]


def _preprocess(folder: Path, config: Json) -> Preprocess:
    """Preprocessing that keeps the aspect ratio, with black bars and values in -1..1.

    openpi (`resize_with_pad` of its client): Pillow's bilinear filter, the image in the middle. LeRobot: two by two
    pixels without antialiasing; pi0, pi0.5 and pi0-FAST in the middle (`image_resolution`), SmolVLA and the first pi0 at the
    bottom right (`resize_imgs_with_padding`, width before height; null: as it comes).
    """
    black: Json = dict(rescale=1 / 255, mean=HALF[0], std=HALF[1], resample="bilinear")
    if "type" not in config:
        return Preprocess(resize="within", resize_to=_PI0, crop=_PI0, crop_rounding="half_even", **black)
    smolvla = config["type"] == "smolvla"
    if not smolvla and "resize_imgs_with_padding" not in config:
        size = two_numbers(folder / "config.json", "image_resolution", config.get("image_resolution", _PI0))
        return Preprocess(
            resize="within", resize_to=size, crop=size, crop_rounding="half_even", kernel="point_float", **black
        )
    given = config.get("resize_imgs_with_padding", (512, 512))
    if given is None:
        return Preprocess(resize="none", resize_to=(0, 0), crop=None, **black)
    width, height = two_numbers(folder / "config.json", "resize_imgs_with_padding", given)
    return Preprocess(
        resize="within",
        resize_to=(height, width),
        crop=(height, width),
        crop_place="bottom_right",
        kernel="pillow" if config.get("interpolate_like_pi") else "point_float",
        **black,
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
        position_resize=resize_rule(family, "transformers"),
        pool="map" if "head.probe" in shapes else "none",
    )


FORMAT = Format("lerobot", FAMILIES, recognises, read)
