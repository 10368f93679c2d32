"""Attention of some tokens to others, for projectors with learned queries."""

import torch.nn.functional as F
from torch import Tensor, nn

from projectors.projector import weight_flops


class CrossAttention(nn.Module):
    """Scaled dot-product attention with several heads.

    Args:
        width: channels of the queries, and of the output unless output_width says otherwise.
        context_width: channels of the tokens that are attended to.
        num_heads, num_kv_heads: heads of the queries; heads of keys and values, each shared by as many of the queries.
        head_dim: channels of a head.
        bias: whether the four linear maps have one.
        output_width: channels of the output; None for width.
    """

    def __init__(
        self,
        width: int,
        context_width: int,
        *,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        bias: bool,
        output_width: int | None = None,
    ):
        super().__init__()
        self.num_heads, self.head_dim = num_heads, head_dim
        self.grouped = num_kv_heads != num_heads
        self.q_proj = nn.Linear(width, num_heads * head_dim, bias=bias)
        self.k_proj = nn.Linear(context_width, num_kv_heads * head_dim, bias=bias)
        self.v_proj = nn.Linear(context_width, num_kv_heads * head_dim, bias=bias)
        self.o_proj = nn.Linear(num_heads * head_dim, output_width or width, bias=bias)

    def flops(self, queries: int, context: int) -> int:
        """`Projector.flops` for these numbers of queries and of context tokens."""
        projections = sum(weight_flops(layer, queries) for layer in (self.q_proj, self.o_proj))
        projections += sum(weight_flops(layer, context) for layer in (self.k_proj, self.v_proj))
        return projections + 4 * queries * context * self.num_heads * self.head_dim

    def forward(
        self, x: Tensor, context: Tensor, values: Tensor | None = None, *, seen: Tensor | None = None
    ) -> Tensor:
        """(B, Q, width), (B, K, context_width) -> (B, Q, output_width).

        Args:
            values: read in place of those in the context.
            seen: (B, K), the context tokens that are attended to; None for all.
        """
        q, k, v = (
            projected.unflatten(2, (-1, self.head_dim)).transpose(1, 2)
            for projected in (self.q_proj(x), self.k_proj(context), self.v_proj(context if values is None else values))
        )
        mask = None if seen is None else seen[:, None, None]
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=self.grouped)
        return self.o_proj(mixed.transpose(1, 2).flatten(2))
