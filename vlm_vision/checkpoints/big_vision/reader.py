"""big_vision `.npz` files: SigLIP and SigLIP2 (two towers), NaFlex, and the ViT releases before it (augreg).

This code runs tanh GELU in all of them, augreg's included, where timm and transformers run the exact one.
"""

import math
from typing import Any

from vlm_vision.checkpoints.big_vision import flax_keys
from vlm_vision.checkpoints.checkpoint import Checkpoint
from vlm_vision.checkpoints.keys import PATCH_VECTOR, Key, key, table_to_grid
from vlm_vision.checkpoints.towers import Format, Hints, Tower, TowerWeights, only
from vlm_vision.nn.config import ViTConfig
from vlm_vision.preprocess.spec import HALF, Preprocess

FAMILIES = ("vit", "siglip_vision_model", "siglip2_vision_model")

_ATTENTION = ("MultiHeadDotProductAttention_0", "MultiHeadDotProductAttention_1")
_MLP = ("MlpBlock_0", "MlpBlock_3")
_NORM2 = ("LayerNorm_1", "LayerNorm_2")
_POSITION = ("pos_embedding", "Transformer/posembed_input/pos_embedding")


def recognises(checkpoint: Checkpoint) -> bool:
    """Whether this is an `.npz` file."""
    return not checkpoint.is_folder and checkpoint.path.suffix == ".npz"


def read(checkpoint: Checkpoint, hints: Hints) -> list[Tower]:
    """The image tower of a file.

    Raises:
        ValueError: no vision transformer in it.
    """
    only(checkpoint, hints, "num_heads")
    path, file = checkpoint.path, checkpoint.arrays
    prefix = "img/" if "img/embedding/kernel" in file.shapes else ""
    part = TowerWeights(file, prefix, ignored=lambda name: not prefix and name in ("t", "b"))
    if "embedding/kernel" not in part.shapes:
        raise ValueError(f"{path} holds no array embedding/kernel: expected a vision transformer of big_vision")
    names = part.shapes
    naflex = len(names["embedding/kernel"]) == 2
    try:
        config = _config(part, hints.num_heads or file.num_heads(f"{prefix}Transformer/"), naflex)
    except (KeyError, IndexError, StopIteration) as error:
        raise ValueError(f"{path} is not a vision transformer of big_vision: it lacks {error}") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    family = "siglip2_vision_model" if naflex else "siglip_vision_model" if config.pool == "map" else "vit"
    mean, std = HALF
    kind: dict[str, Any] = dict(resize="squash", resize_to=config.image_size, kernel="point")
    if naflex:
        budget = dict(patch_size=config.patch_size, max_patches=256)
        kind = dict(resize="max_patches", resize_to=(0, 0), kernel="float") | budget
    spec = Preprocess(**kind, resample="bilinear", crop=None, rescale=1 / 255, mean=mean, std=std)
    tower = Tower(
        source=str(path),
        format="big_vision",
        family=family,
        reference="big_vision",
        config=config,
        keys=_keys(config, part),
        weights=part,
        preprocess=spec,
    )
    return [tower]


def _spelling(part: TowerWeights, choices: tuple[str, ...], stem: str) -> str:
    return next(name for name in choices if any(stored.startswith(f"{stem}{name}") for stored in part.shapes))


def _config(part: TowerWeights, num_heads: int, naflex: bool) -> ViTConfig:
    shapes = part.shapes
    dim = shapes["embedding/kernel"][0]
    table = shapes[_spelling(part, _POSITION, "")]
    tokens = int("cls" in shapes)
    if naflex:
        patch = math.isqrt(shapes["embedding/kernel"][1] // 3)
        grid = table[1:3]
        own = 0
    else:
        patch = shapes["embedding/kernel"][2]
        own = next(n for n in range(tokens + 1) if math.isqrt(table[1] - n) ** 2 == table[1] - n)
        grid = (math.isqrt(table[1] - own),) * 2
    mlp = _spelling(part, _MLP, "Transformer/encoderblock_0/")
    depth = sum(name.endswith("LayerNorm_0/scale") and name.startswith("Transformer/encoderblock_") for name in shapes)
    pooled = "MAPHead_0/probe" in shapes
    representation = "pre_logits/kernel" in shapes
    return ViTConfig(
        image_size=(grid[0] * patch, grid[1] * patch),
        patch_size=patch,
        channels=3 if naflex else shapes["embedding/kernel"][1],
        embed_dim=dim,
        depth=depth,
        num_heads=num_heads,
        mlp_dim=shapes[f"Transformer/encoderblock_0/{mlp}/Dense_0/kernel"][0],
        mlp="gelu_tanh",
        norm_eps=1e-6,
        class_token=bool(tokens),
        position_prefix=own,
        position_resize="bilinear_antialias" if naflex else "zoom",
        pool="map" if pooled else "cls" if tokens else "mean",
        pool_head="tanh" if representation else "none",
        pool_dim=shapes["pre_logits/kernel"][0] if representation else 0,
        num_classes=shapes["head/kernel"][0] if "head/kernel" in shapes else 0,
    )


def _keys(config: ViTConfig, part: TowerWeights) -> list[Key]:
    naflex = len(part.shapes["embedding/kernel"]) == 2
    position = _spelling(part, _POSITION, "")
    keys = [
        key("patch_embed.weight", "embedding/kernel", layout=PATCH_VECTOR if naflex else None),
        key("patch_embed.bias", "embedding/bias"),
        *flax_keys.norm("norm", "Transformer/encoder_norm"),
    ]
    if naflex:
        keys.append(key("position.table", position, layout=table_to_grid(1, *config.grid)))
    else:
        keys.append(key("position.table", position))
    if config.class_token:
        keys.append(key("cls_token", "cls"))
    if config.pool == "map":
        attention = "MAPHead_0/MultiHeadDotProductAttention_0"
        keys += [
            key("pool.probe", "MAPHead_0/probe"),
            *flax_keys.dense("pool.q", f"{attention}/query"),
            *flax_keys.dense("pool.kv", f"{attention}/key", f"{attention}/value"),
            *flax_keys.dense("pool.proj", f"{attention}/out"),
            *flax_keys.norm("pool.norm", "MAPHead_0/LayerNorm_0"),
            *flax_keys.dense("pool.mlp.fc1", "MAPHead_0/MlpBlock_0/Dense_0"),
            *flax_keys.dense("pool.mlp.fc2", "MAPHead_0/MlpBlock_0/Dense_1"),
        ]
    if config.pool_head == "tanh":
        keys += flax_keys.dense("pool_head", "pre_logits")
    if config.num_classes:
        keys += flax_keys.dense("head", "head")
    first = "Transformer/encoderblock_0/"
    spellings = (_spelling(part, names, first) for names in (_ATTENTION, _NORM2, _MLP))
    return keys + flax_keys.blocks(config.depth, "Transformer/encoderblock", *spellings)


FORMAT = Format("big_vision", FAMILIES, recognises, read)
