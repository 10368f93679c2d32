"""The decoder of a masked autoencoder on disk: its configuration and its key table, for transformers and the original code."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

from vlm_vision.checkpoints.keys import Key, key, layer
from vlm_vision.checkpoints.towers import TowerWeights
from vlm_vision.nn.checks import check_choices, check_whole


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """The decoder of a masked autoencoder; its activation, norm and biases are the encoder's."""

    embed_dim: int = 512
    depth: int = 8
    num_heads: int = 16
    mlp_dim: int = 2048
    position_resize: Literal["recompute", "bicubic", "row"] = "recompute"
    """Positions off the native grid: sin-cos computed for the grid; the table resized; or resized as if all patches were in one row,
    as transformers does."""
    mask_ratio: float = 0.75
    """Share of the patches that are hidden from the encoder."""
    normalize: bool = False
    """Targets are pixels of normalized patches (norm_pix_loss)."""

    def __post_init__(self):
        for name in ("embed_dim", "depth", "num_heads", "mlp_dim"):
            check_whole(f"DecoderConfig.{name}", getattr(self, name), 1)
        check_choices(self)
        if not isinstance(self.mask_ratio, int | float) or not 0 <= self.mask_ratio <= 1:
            raise ValueError(f"DecoderConfig.mask_ratio is {self.mask_ratio!r}, expected a share from 0 to 1")


def decoder_keys(rows: Iterable[Key], mask_token: str) -> list[Key]:
    """The decoder's key table, with rows of an encoder's blocks; names of theirs without `decoder_`."""
    blocks = [
        replace(row, theirs=tuple(name.replace("encoder.layer.", "layers.") for name in row.theirs))
        for row in rows
        if row.ours[0].startswith("blocks.")
    ]
    return [
        *layer("embed", "embed"),
        key("mask_token", mask_token),
        key("position.table", "pos_embed"),
        *blocks,
        *layer("norm", "norm"),
        *layer("pixels", "pred"),
    ]


SPELLINGS = ((r"^encoder\.layer\.", "layers."),)
"""The public hub has `decoder_layers.0`; transformers 5 writes `decoder_encoder.layer.0`."""


def public_name(name: str) -> str:
    return f"decoder.{name}" if name == "mask_token" else f"decoder.decoder_{name}"


FIELDS = dict(
    embed_dim="decoder_hidden_size",
    depth="decoder_num_hidden_layers",
    num_heads="decoder_num_attention_heads",
    mlp_dim="decoder_intermediate_size",
    mask_ratio="mask_ratio",
    normalize="norm_pix_loss",
)
"""Field of `DecoderConfig` -> of config.json; for absent ones transformers assumes our defaults, those of the paper."""


def config_from_json(config: dict[str, Any]) -> DecoderConfig:
    """Configuration from config.json."""
    fields: dict[str, Any] = {ours: config[name] for ours, name in FIELDS.items() if config.get(name) is not None}
    return DecoderConfig(**fields, position_resize="row")


def config_from_shapes(part: TowerWeights, num_heads: int) -> DecoderConfig:
    """Configuration from the shapes of a state dict."""
    return DecoderConfig(
        embed_dim=part.shapes["embed.weight"][0],
        mlp_dim=part.shapes["blocks.0.mlp.fc1.weight"][0],
        depth=1 + max(int(name.split(".")[1]) for name in part.shapes if name.startswith("blocks.")),
        num_heads=num_heads,
        position_resize="bicubic",
    )
