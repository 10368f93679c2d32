"""Bounds of the numbers of `ViTConfig`, by field."""

from collections.abc import Callable

NUMBERS: dict[str, tuple[Callable[[float], bool], str]] = {
    "norm_eps": (lambda x: 0 < x < 1, "a small positive number"),
    "outer_eps": (lambda x: 0 <= x < 1, "a small number, or 0.0"),
    "qk_eps": (lambda x: 0 <= x < 1, "a small number, or 0.0"),
    "rope_base": (lambda x: 1 < x < 1e9, "a number above 1"),
    "mlp_limit": (lambda x: 0 < x < 1e9, "a positive number such as 10.0, or None"),
    "attention_scale": (lambda x: 0 < x < 1e9, "a positive number such as 0.125, or None"),
    "layer_scale": (lambda x: abs(x) < 1e9, "a number such as 1e-5, or None"),
    "patch_drop": (lambda x: 0 <= x < 1, "a share of at least 0 and below 1"),
    "drop_path": (lambda x: 0 <= x < 1, "a share of at least 0 and below 1"),
}
AT_LEAST_ONE = (
    "patch_size", "embed_dim", "depth", "num_heads", "mlp_dim", "channels", "temporal_patch", "deepstack_merge",
)  # fmt: skip
AT_LEAST_ZERO = (
    "num_registers", "position_prefix", "film_dim", "pool_dim", "pool_heads", "pool_mlp_dim", "num_classes", "axis_length", "axis_first", "head_width",
    "num_kv_heads", "window", "merge_dim", "deepstack_dim", "time_position",
)  # fmt: skip
