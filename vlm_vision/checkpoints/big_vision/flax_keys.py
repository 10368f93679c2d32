"""Rows of big_vision's key tables that its image and text towers share: norms, dense layers, blocks."""

from vlm_vision.checkpoints.keys import Key, key


def norm(ours: str, theirs: str) -> list[Key]:
    """Scale and bias."""
    return [key(f"{ours}.weight", f"{theirs}/scale"), key(f"{ours}.bias", f"{theirs}/bias")]


def dense(ours: str, *theirs: str) -> list[Key]:
    """Kernel and bias, of several of their layers one after the other."""
    parts = (("weight", "kernel"), ("bias", "bias"))
    return [key(f"{ours}.{mine}", tuple(f"{name}/{their}" for name in theirs)) for mine, their in parts]


def blocks(
    depth: int,
    stem: str,
    attention: str = "MultiHeadDotProductAttention_0",
    norm2: str = "LayerNorm_1",
    mlp: str = "MlpBlock_0",
) -> list[Key]:
    """`depth` blocks called stem_0, stem_1, ... ; releases before big_vision number the parts differently."""
    keys = []
    for i in range(depth):
        ours, theirs = f"blocks.{i}", f"{stem}_{i}"
        keys += [
            *norm(f"{ours}.norm1", f"{theirs}/LayerNorm_0"),
            *dense(f"{ours}.attn.qkv", *(f"{theirs}/{attention}/{name}" for name in ("query", "key", "value"))),
            *dense(f"{ours}.attn.proj", f"{theirs}/{attention}/out"),
            *norm(f"{ours}.norm2", f"{theirs}/{norm2}"),
            *dense(f"{ours}.mlp.fc1", f"{theirs}/{mlp}/Dense_0"),
            *dense(f"{ours}.mlp.fc2", f"{theirs}/{mlp}/Dense_1"),
        ]
    return keys
