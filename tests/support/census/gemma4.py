"""Gemma 4, and the models around its tower."""

import torch
from einops import rearrange
from torch import Tensor, nn

from support.census.case import Case, Json, Reference

PATCH = 8


def patches_and_places(x: Tensor) -> tuple[Tensor, Tensor]:
    """(B, N, p * p * C) patches and (B, N, 2) columns and rows, as Gemma4ImageProcessor makes them."""
    patches = rearrange(x, "b c (h p) (w q) -> b (h w) (p q c)", p=PATCH, q=PATCH)
    rows, columns = torch.meshgrid(*(torch.arange(n // PATCH) for n in x.shape[-2:]), indexing="ij")
    places = torch.stack([columns.flatten(), rows.flatten()], dim=-1)
    return patches, places.expand(len(x), -1, -1)


def reference(tower: nn.Module, x: Tensor) -> Reference:
    """The tokens before the pooling."""
    patches, places = patches_and_places(x)
    padding = torch.zeros(patches.shape[:2], dtype=torch.bool)
    embedded = tower.patch_embedder(patches, places, padding)
    out = tower.encoder(inputs_embeds=embedded, attention_mask=~padding, pixel_position_ids=places)
    return Reference(out.last_hidden_state)


def connector(whole: nn.Module, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """The pooling, the scale and shift of some towers, and the linear map after a norm."""
    whole = getattr(whole, "encoder", whole)
    tower, side = whole.vision_tower, whole.config.vision_config.pooling_kernel_size
    rows, columns = torch.meshgrid(*(torch.arange(n) for n in grid), indexing="ij")
    places = torch.stack([columns.flatten(), rows.flatten()], dim=-1).expand(len(tokens), -1, -1)
    padding = torch.zeros(tokens.shape[:2], dtype=torch.bool)
    pooled, _ = tower.pooler(tokens, places, padding, tokens.shape[1] // side**2)
    if tower.config.standardize:
        pooled = (pooled - tower.std_bias) * tower.std_scale
    return whole.embed_vision(pooled)


VISION: Json = dict(model_type="gemma4_vision", hidden_size=64, intermediate_size=96, num_hidden_layers=3,
                    num_attention_heads=4, num_key_value_heads=4, head_dim=16, patch_size=PATCH,
                    position_embedding_size=40)  # fmt: skip
TEXT: Json = dict(per_layer_config={}, vocab_size_per_layer_input=128, hidden_size_per_layer_input=8, num_experts=4,
                  top_k_experts=2, moe_intermediate_size=32)  # fmt: skip


def _case(model_type: str, label: str = "", **vision) -> Case:
    return Case(
        model_type=model_type,
        label=label,
        changes={"vision_config": VISION | vision, "text_config": TEXT},
        reference=reference,
        tower="encoder.vision_tower" if model_type == "diffusion_gemma" else "vision_tower",
        sizes=((96, 96), (48, 144)),
        connector=connector,
        wide_connector=True,
    )


CASES = (
    _case("gemma4"),
    _case(
        "gemma4",
        "gemma4: grouped heads",
        num_key_value_heads=2,
        head_dim=24,
        standardize=True,
        hidden_activation="silu",
    ),
    _case("gemma4", "gemma4: clipped", use_clipped_linears=True, num_key_value_heads=1),
    _case("diffusion_gemma", standardize=True),
    _case("embedding_gemma2", pooling_kernel_size=2),
)
