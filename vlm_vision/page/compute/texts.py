"""Similarity of a text to patches, for CLIP and SigLIP pairs: each patch token goes alone through the tower's own pooling."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from vlm_vision.encoder import eval_mode
from vlm_vision.nn.output import Tap
from vlm_vision.pair import Pair


def patch_features(pair: Pair, pixels: Tensor) -> Tensor:
    """(N, E) of length one: the features that the tower would pool if an image had this patch alone.

    For CLIP the patch token takes the place of CLS before the final norm's projection (Zhou et al. 2021, MaskCLIP,
    arXiv:2112.01071, keeps values too); for SigLIP the pooling attends to it alone.
    """
    model, config = pair.image.model, pair.image.config
    with torch.no_grad(), eval_mode(pair):
        if config.pool in ("prefix", "none"):
            raise ValueError(
                f"the image tower of this pair pools by {config.pool!r}, in whose place a patch cannot stand: leave the texts out"
            )
        tokens = pair.image(pixels.to(pair.image.device), tap=Tap(), pool=False).patch_tokens[0]
        pooled = tokens if model.pool is None else model.pool(tokens[:, None])
        pooled = model.pool_norm(pooled)
        if model.pool_head is not None:
            pooled = model.pool_head(pooled)
            pooled = torch.tanh(pooled) if config.pool_head == "tanh" else pooled
        pooled = pooled if model.head is None else model.head(pooled)
    return F.normalize(pooled.float().cpu(), dim=-1)


def text_features(pair: Pair, texts: Sequence[str]) -> Tensor:
    """(T, E) of length one."""
    with torch.no_grad(), eval_mode(pair):
        return pair.embed_texts(pair.text.tokenizer(list(texts)).to(pair.text.device)).float().cpu()
