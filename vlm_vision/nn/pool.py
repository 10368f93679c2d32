"""Pooling heads: one vector from the patch tokens of an image.

Shapes: B batch, N patches, D width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlm_vision.nn.blocks import Mlp, norm
from vlm_vision.nn.config import ViTConfig
from vlm_vision.nn.linear import Linear


class AttentionPool(nn.Module):
    """Multi-head attention pooling: one learned probe reads all tokens. Zhai et al. 2022 (arXiv:2106.04560).

    x = attn(probe, tokens); x = x + mlp(norm(x)). Plain linear layers, so that adapters reach each of them.
    """

    def __init__(self, config: ViTConfig):
        super().__init__()
        dim = config.embed_dim
        self.num_heads = config.num_heads
        self.probe = nn.Parameter(torch.empty(1, 1, dim))
        self.q = nn.Linear(dim, dim)
        self.kv = Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)
        self.norm = norm(config)
        self.mlp = Mlp(config)
        nn.init.xavier_uniform_(self.probe)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, D) -> (B, D)"""
        x = self.proj(_read(self.q(self.probe), self.kv(tokens), self.num_heads))
        return (x + self.mlp(self.norm(x)))[:, 0]


class QueryPool(nn.Module):
    """One learned query reads all tokens, then a linear map: the head of AIMv2 (Fini et al. 2024, arXiv:2411.14402)."""

    def __init__(self, config: ViTConfig):
        super().__init__()
        dim = config.embed_dim
        self.num_heads = config.num_heads
        self.probe = nn.Parameter(torch.empty(1, 1, dim))
        self.kv = Linear(dim, 2 * dim, bias=config.qkv_bias)
        self.proj = nn.Linear(dim, dim)
        nn.init.xavier_uniform_(self.probe)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, D) -> (B, D)"""
        return self.proj(_read(self.probe, self.kv(tokens), self.num_heads))[:, 0]


def _read(query: Tensor, kv: Tensor, num_heads: int) -> Tensor:
    """Attention of one query (1, 1, D) over keys and values (B, N, 2 D) -> (B, 1, D)"""
    q = query.unflatten(-1, (num_heads, -1)).transpose(1, 2)  # (1, H, 1, K)
    k, v = kv.unflatten(-1, (2, num_heads, -1)).permute(2, 0, 3, 1, 4)
    return F.scaled_dot_product_attention(q.expand(kv.shape[0], -1, -1, -1), k, v).transpose(1, 2).flatten(2)
