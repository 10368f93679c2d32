"""The masked autoencoder: an encoder of the visible patches of an image, and a decoder that predicts all patches.

    pixels -> patches kept -> encoder -> [CLS | tokens in their places, mask tokens elsewhere] -> decoder -> pixels

He et al. 2022, "Masked autoencoders are scalable vision learners" (arXiv:2111.06377). The loss is
`vlm_vision.objectives.mae`. Shapes: B batch, N patches, K patches kept, D width of the encoder, E of the decoder, p patch
size, C channels.
"""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vlm_vision.checkpoints import keys
from vlm_vision.checkpoints.checkpoint import Checkpoint
from vlm_vision.checkpoints.families.vit import MAE
from vlm_vision.checkpoints.hf.card import IMAGE, Card, about_encoder, about_preprocess, count, write_card
from vlm_vision.checkpoints.mae import (
    FIELDS,
    SPELLINGS,
    DecoderConfig,
    config_from_json,
    config_from_shapes,
    decoder_keys,
    public_name,
)
from vlm_vision.checkpoints.manifest import write_manifest
from vlm_vision.checkpoints.timm import layout as timm_layout
from vlm_vision.checkpoints.towers import MALFORMED_ERRORS, TowerWeights, read_state_dict
from vlm_vision.encoder import Encoder, Origin
from vlm_vision.files import read_json, whole, write_json
from vlm_vision.load_encoder import load
from vlm_vision.new_models import new_encoder
from vlm_vision.nn.attention import Context
from vlm_vision.nn.blocks import Block, norm
from vlm_vision.nn.config import ViTConfig
from vlm_vision.nn.output import Tap
from vlm_vision.nn.position import RESIZE, Grid, PositionTable
from vlm_vision.objectives.masks import random_masking


class MaeOutput(NamedTuple):
    """Output of a masked autoencoder."""

    predicted: Tensor
    """(B, N, p * p * C), in the order of `vlm_vision.objectives.mae.patches`."""
    mask: Tensor
    """(B, N) bool, True where the encoder did not see the patch."""


class RowTable(PositionTable):
    """Positions resized as one row of N patches, whatever the grids: the decoder of transformers' ViTMAE."""

    def _resized(self, native: Tensor, grid: Grid) -> Tensor:
        row = native.float().transpose(1, 2)[:, :, None]  # (1, E, 1, N)
        return RESIZE["bicubic"](row, (1, grid[0] * grid[1]))[:, :, 0].transpose(1, 2).to(native.dtype).contiguous()


class Decoder(nn.Module):
    """From tokens of the visible patches to pixels of all patches; positions are fixed."""

    def __init__(self, encoder: ViTConfig, config: DecoderConfig):
        super().__init__()
        self.config = replace(
            encoder,
            embed_dim=config.embed_dim,
            depth=config.depth,
            num_heads=config.num_heads,
            mlp_dim=config.mlp_dim,
            drop_path=0.0,
            layer_scale=None,
            head_width=0,
            num_kv_heads=0,
        )
        table, resize = (
            (RowTable, "bicubic") if config.position_resize == "row" else (PositionTable, config.position_resize)
        )
        self.embed = nn.Linear(encoder.embed_dim, config.embed_dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, config.embed_dim))
        self.position = table(prefix=1, grid=encoder.grid, dim=config.embed_dim, resize=resize, learned=False)
        self.blocks = nn.ModuleList(Block(self.config, 0.0) for _ in range(config.depth))
        self.norm = norm(self.config)
        self.pixels = nn.Linear(config.embed_dim, encoder.patch_size**2 * encoder.channels)

    def forward(self, tokens: Tensor, keep: Tensor, grid: Grid) -> Tensor:
        """(B, 1 + K, D), CLS first, and the places (B, K) of the others -> (B, N, p * p * C)"""
        seen = self.embed(tokens)
        places = F.pad(keep + 1, (1, 0))[..., None].expand_as(seen)  # CLS has place 0
        x = self.mask_token.to(seen.dtype).expand(len(seen), 1 + grid[0] * grid[1], -1).scatter(1, places, seen)
        x = x + torch.cat(self.position(grid), dim=1)
        for block in self.blocks:
            x = block(x, Context())
        return self.pixels(self.norm(x))[:, 1:]


class MaskedAutoencoder(nn.Module):
    """Encoder and decoder. `load_mae` and `new_mae` make one; `encoder.save_pretrained` saves the part used after training.

    Args:
        encoder: with a class token and no registers. Its weights stay; its table of positions is frozen as it is.
        config: of the decoder, whose weights are new.

    Raises:
        ValueError: an encoder without class token or with registers.
    """

    def __init__(self, encoder: Encoder, config: DecoderConfig):
        super().__init__()
        if encoder.config.num_registers or not encoder.config.class_token:
            raise ValueError(
                "a masked autoencoder's encoder has a class token and no registers: choose such a ViTConfig"
            )
        self.config, self.encoder, self.decoder = config, encoder, Decoder(encoder.config, config)
        if encoder.model.position is not None:
            encoder.model.position.requires_grad_(False)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """The initialization of facebookresearch/mae: Xavier for all matrices, normal(0, 0.02) tokens, sin-cos positions."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.LayerNorm | nn.RMSNorm | PositionTable):
                module.reset_parameters()
        nn.init.xavier_uniform_(self.encoder.model.patch_embed.weight.flatten(1))
        for token in (self.encoder.model.cls_token, self.decoder.mask_token):
            assert token is not None
            nn.init.normal_(token, std=0.02)

    def forward(self, pixels: Tensor, noise: Tensor | None = None, *, keep: Tensor | None = None) -> MaeOutput:
        """Predict images of which the encoder sees the patches of least noise, or those of `keep`.

        Args:
            pixels: (B, C, H, W), any height and width; pixels past the last whole patch are not predicted.
            noise: (B, N), of `vlm_vision.objectives.masks.patch_noise`: int(N * (1 - mask_ratio)) patches are kept.
            keep: (B, K) int64, different patches of each image; instead of noise.

        Raises:
            ValueError: neither noise nor keep or both, noise for another number of patches; as `VisionTransformer.forward`.
        """
        if (noise is None) == (keep is None):
            raise ValueError("pass either noise, of vlm_vision.objectives.masks.patch_noise, or the patches to keep")
        shape = (len(pixels), self.encoder.num_patch_tokens(pixels.shape[-2], pixels.shape[-1]))
        if noise is not None:
            if noise.shape != shape:
                raise ValueError(f"noise has shape {tuple(noise.shape)}, expected (batch, patches) = {shape}")
            keep = random_masking(noise, self.config.mask_ratio).keep
        assert keep is not None
        seen = self.encoder(pixels, tap=Tap(), keep=keep, pool=False)
        tokens = torch.cat([seen.cls_token[:, None], seen.patch_tokens], dim=1)
        mask = torch.ones(shape, dtype=torch.bool, device=keep.device).scatter_(1, keep, False)
        return MaeOutput(self.decoder(tokens, keep, seen.grid), mask)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a folder that transformers' ViTMAEForPreTraining reads, and `load` and `load_mae`.

        Off the native grid it is read with transformers' resize of the tables, whatever resize is in force here.

        Raises:
            ValueError: an architecture that ViTMAE cannot express.
        """
        rows, columns = self.encoder.config.grid
        if rows != columns:
            raise ValueError(
                f"transformers cannot express a native grid of {rows}x{columns}: choose a square image_size"
            )
        encoder = self.encoder
        described: dict[str, Any] = {name: getattr(self.config, ours) for ours, name in FIELDS.items()}
        described["architectures"] = ["ViTMAEForPreTraining"]
        table = decoder_keys(MAE.keys(self.decoder.config), "mask_token")
        decoder = {public_name(name): value for name, value in keys.write(table, self.decoder.state_dict()).items()}
        alone = Encoder(
            encoder.model, preprocess=encoder.preprocess, tap=encoder.tap, origin=Origin("vit_mae", "transformers")
        )
        with whole(Path(folder)) as staging:
            alone.save_pretrained(staging)
            file, both = staging / "model.safetensors", staging / "both.safetensors"
            tower = {f"vit.{name}": value for name, value in load_file(file).items()}
            save_file(tower | decoder, both, metadata={"format": "pt"})
            os.replace(both, file)
            write_json(staging / "config.json", read_json(staging / "config.json") | described)
            write_card(staging, self._card())
            write_manifest(staging)

    def _card(self) -> Card:
        state, load = (
            self.encoder.to_dict(),
            f"""
import torch
import vlm_vision as vv
from PIL import Image

mae = vv.load_mae(".")
{IMAGE}
pixels = mae.encoder.preprocess(image)
noise = torch.rand(1, mae.encoder.num_patch_tokens(*pixels.shape[-2:]))  # the patches of most noise are masked
out = mae(pixels, noise)
print(out.predicted.shape)  # (1, patches, values of a patch)
""",
        )
        return Card(
            title="Masked autoencoder: vit_mae",
            about=f"{about_encoder(state)}; decoder of depth {self.config.depth} and width {self.config.embed_dim}; "
            f"{count(self)} parameters",
            load=load,
            notes=(
                '`vv.load(".")` reads the encoder alone, and transformers the folder too (`ViTMAEForPreTraining`).',
            ),
            preprocess=about_preprocess(state),
            pipeline_tag="image-feature-extraction",
            tags=("transformers", "vit_mae"),
            base_models=(self.encoder.hub_id,),
        )


def new_mae(fields: dict[str, Any], config: DecoderConfig = DecoderConfig()) -> MaskedAutoencoder:
    """A new masked autoencoder with random weights, initialized as in the paper.

    Args:
        fields: of the encoder, as `new_encoder` takes them.

    Raises:
        ValueError: as `new_encoder` and `MaskedAutoencoder`.
    """
    encoder = new_encoder({"position_prefix": 1, "position_resize": "recompute"} | fields)
    encoder.origin = Origin("vit_mae", "transformers")
    model = MaskedAutoencoder(encoder, config)
    model.reset_parameters()
    return model


def load_mae(
    source: str | Path | Checkpoint,
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    revision: str | None = None,
    num_heads: int | None = None,
    decoder_num_heads: int | None = None,
) -> MaskedAutoencoder:
    """Load a masked autoencoder with its decoder, in evaluation mode.

    Args:
        source: hub id or folder of transformers' ViTMAEForPreTraining, or a `.pth` of facebookresearch/mae. Off the native
            grid a folder's tables are resized as transformers does; a file's bicubically on the grid.
        dtype, device, revision: as in `load`.
        num_heads, decoder_num_heads: of a file that has others than the paper's (the decoder's 16).

    Raises:
        ValueError: no decoder at `source`, heads for a folder, which states them; as `load`.
    """
    checkpoint = Checkpoint.at(source, revision)
    weights, is_folder = checkpoint.weights, checkpoint.is_folder
    marks = [name for name in weights.shapes if name.endswith("decoder_embed.weight")]
    if len(marks) != 1:
        raise ValueError(
            f"{source} holds {len(marks)} decoders of a masked autoencoder, expected one: load() reads an encoder alone"
        )
    if is_folder and decoder_num_heads is not None:
        raise ValueError(f"{source} states its decoder_num_heads itself: leave it out")
    encoder = load(checkpoint, dtype=dtype, device=device, num_heads=num_heads)
    assert isinstance(encoder, Encoder)
    prefix = marks[0].removesuffix("decoder_embed.weight")
    others = "decoder." if is_folder else f"{prefix}mask_token"  # what else the encoder's reader leaves to us
    extra = [name for name in weights.shapes if name.startswith(others) and not name.startswith(f"{prefix}decoder_")]
    part = TowerWeights(weights, f"{prefix}decoder_", extra=extra, spellings=SPELLINGS)
    try:
        if is_folder:
            config = config_from_json(checkpoint.config)
        else:
            config = config_from_shapes(part, decoder_num_heads or 16)
        with torch.device("meta"):
            model = MaskedAutoencoder(encoder, config)
        ours = model.decoder.config
        rows = MAE.keys(ours, MAE.style_of(part.shapes)) if is_folder else timm_layout.key_table(ours, part.shapes)
    except MALFORMED_ERRORS as error:
        raise ValueError(f"{source} has no decoder of a masked autoencoder ({error!r}): download it again") from None
    shapes = {name: value.shape for name, value in model.decoder.state_dict().items()}
    table = decoder_keys(rows, f"{prefix}mask_token")
    state = read_state_dict(table, shapes, part, source=str(source), dtype=dtype, device=torch.device(device))
    model.decoder.load_state_dict(state, strict=True, assign=True)
    return model.eval()
