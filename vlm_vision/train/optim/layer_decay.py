"""Parameter groups of a vision transformer whose lower layers learn more slowly."""

from torch import nn

from vlm_vision.encoder import Encoder
from vlm_vision.nn.vit import VisionTransformer
from vlm_vision.train.optim.groups import parameter_groups


def layer_groups(
    model: VisionTransformer | Encoder, *, lr: float, weight_decay: float, decay: float, patch_embed: float = 1.0
) -> list[dict]:
    """AdamW groups with the rate lr * decay ** (depth + 1 - layer).

    Layer 0 is what comes before the blocks (patch embedding, tokens, positions), block i is layer i + 1, what comes after
    them (norm, pooling, heads) is layer depth + 1. Bao et al. 2022, BEiT (arXiv:2106.08254), as MAE and DINOv2 do it.
    Biases, norms, LayerScale, tokens and positions get no weight decay: `parameter_groups`.

    Args:
        model: what is frozen in it is left out.
        lr: of the last layer.
        weight_decay: of matrices.
        decay: 1 for one rate; 0.9 for DINOv2, 0.75 to fine-tune MAE's ViT-L.
        patch_embed: a further factor on the rate of the patch embedding; DINOv2 has 0.2.

    Raises:
        ValueError: a decay that is not above 0 and at most 1; nothing trains.
    """
    if not 0 < decay <= 1:
        raise ValueError(f"decay is {decay}, expected a factor for each layer above 0 and at most 1")
    vit = model.model if isinstance(model, Encoder) else model
    rates = [lr * decay ** (vit.config.depth + 1 - layer) for layer in range(vit.config.depth + 2)]
    named = {name: getattr(vit, name) for name in ("cls_token", "registers", "mask_token")}
    tokens = nn.ParameterDict({name: token for name, token in named.items() if token is not None})
    before = [part for part in (vit.patch_norm, vit.position, vit.pre_norm) if part is not None]
    parts: list[tuple[nn.Module, float]] = [
        (vit.patch_embed, patch_embed * rates[0]),
        (nn.ModuleList([tokens, *before]), rates[0]),
        *zip(vit.blocks, rates[1:-1], strict=True),
        (vit, rates[-1]),  # what no part above holds
    ]
    return parameter_groups(parts, weight_decay=weight_decay)
