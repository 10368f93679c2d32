"""Rows of a block's key table from the names of its layers."""

from dataclasses import dataclass, replace

from vlm_vision.checkpoints.families.rotary import reordered
from vlm_vision.checkpoints.keys import ZEROS, Key, TensorLayout, key
from vlm_vision.nn.config import ViTConfig


@dataclass(frozen=True, kw_only=True)
class BlockNames:
    """Names of the layers of a block, without ".weight" and ".bias"; "" for a layer that the architecture lacks.

    `stem` holds "{}" for the number of the block. Queries, keys and values, or a gate and its product, are one name where
    they are stored as one matrix, else one name each. Scales and q_norm, k_norm are named whole.
    """

    stem: str
    norm1: str
    qkv: str | tuple[str, str, str]
    proj: str
    norm2: str
    fc1: str | tuple[str, ...]
    fc2: str
    scale1: str = ""
    scale2: str = ""
    q_norm: str = ""
    k_norm: str = ""
    post1: str = ""
    post2: str = ""

    def rows(self, config: ViTConfig, *, order: list[int] | None = None) -> list[Key]:
        """The rows of every block; `order` is that of `vlm_vision.checkpoints.families.rotary`, None for ours."""
        return [
            row for i in range(config.depth) for row in self.block(config, f"blocks.{i}", self.stem.format(i), order)
        ]

    def block(self, config: ViTConfig, ours: str, stem: str, order: list[int] | None = None) -> list[Key]:
        """The rows of one block, called `ours` here and `stem` there."""

        def theirs(name: str | tuple[str, ...], part: str) -> tuple[str, ...]:
            return tuple(f"{stem}.{each}.{part}" for each in ((name,) if isinstance(name, str) else name))

        def layer(name: str, layer: str | tuple[str, ...], bias: bool) -> list[Key]:
            return [key(f"{ours}.{name}.{part}", theirs(layer, part)) for part in ("weight", "bias")[: 1 + bias]]

        queries, keys = config.num_heads * config.head_dim, config.kv_heads * config.head_dim
        layout: TensorLayout | None = None
        if order is not None:
            layout = reordered(order, config.num_heads + config.kv_heads, keys)
        sizes = (queries, keys, keys) if isinstance(self.qkv, tuple) else ()
        rows = [key(f"{ours}.attn.qkv.weight", theirs(self.qkv, "weight"), layout=layout, sizes=sizes)]
        if config.qkv_bias:
            names = theirs(self.qkv, "bias")
            if not config.key_bias and len(names) == 3:
                names = (names[0], ZEROS, names[2])
            rows.append(key(f"{ours}.attn.qkv.bias", names, layout=layout, sizes=sizes))
        normed = config.norm == "layer"
        rows += layer("norm1", self.norm1, normed) + layer("attn.proj", self.proj, config.proj_bias)
        rows += layer("norm2", self.norm2, normed)
        rows += layer("mlp.fc1", self.fc1, config.mlp_bias) + layer("mlp.fc2", self.fc2, config.mlp_bias)
        for name, layer_name in (("post1", self.post1), ("post2", self.post2)):
            rows += layer(name, layer_name, normed) if layer_name else []
        for name, scale in (("residual1", self.scale1), ("residual2", self.scale2)):
            rows += [key(f"{ours}.{name}.scale", f"{stem}.{scale}")] if scale and config.layer_scale is not None else []
        if config.qk_norm != "none":
            heads = 1 if config.qk_norm == "head" else config.num_heads
            for i, (name, count) in enumerate(((self.q_norm, heads), (self.k_norm, min(heads, config.kv_heads)))):
                turned = None if order is None else reordered(order, count)
                kind = config.norm if config.qk_kind == "same" else config.qk_kind
                for part in ("weight", "bias")[: 1 + (kind == "layer")]:
                    rows.append(key(f"{ours}.attn.norms.{i}.{part}", f"{stem}.{name}.{part}", layout=turned))
        return rows


SIGLIP_BLOCKS = BlockNames(
    stem="encoder.layers.{}",
    norm1="layer_norm1",
    qkv=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    proj="self_attn.out_proj",
    norm2="layer_norm2",
    fc1="mlp.fc1",
    fc2="mlp.fc2",
)
"""Names of SigLIP's blocks."""

QWEN_BLOCKS = BlockNames(
    stem="blocks.{}", norm1="norm1", qkv="attn.qkv", proj="attn.proj", norm2="norm2", fc1="mlp.fc1", fc2="mlp.fc2"
)
"""Names of Qwen2-VL's blocks."""

GLM_BLOCKS = replace(
    QWEN_BLOCKS,
    fc1=("mlp.gate_proj", "mlp.up_proj"),
    fc2="mlp.down_proj",
    q_norm="attn.q_norm",
    k_norm="attn.k_norm",
)
"""Names of a gated block with norms of queries and keys."""
