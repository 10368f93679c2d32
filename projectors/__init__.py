"""Projectors: from an encoder's patch tokens to the width of a language model.

`build("mlp", in_dim=1024, out_dim=4096)` makes one; `projector(tokens, grid)` maps (B, N, in_dim) to (B, M, out_dim),
and `projector.num_tokens(grid)` is M, on `projector.out_grid(grid)` where they lie on a grid. Tensors and a grid in, tensors
out: this package knows no encoder and no language model.
"""

import inspect
from collections.abc import Iterable

from projectors.attention_pool import AttentionPool2d
from projectors.avg_pool import AvgPool
from projectors.c_abstractor import CAbstractor
from projectors.conv_neck import ConvNeck
from projectors.frame_merger import FrameMerger
from projectors.fused_mlp import FusedMLP
from projectors.gated_merger import GatedMerger
from projectors.latent_attention import LatentAttention
from projectors.linear import LinearProjector
from projectors.mergers.conv_downsample import ConvDownsample
from projectors.mergers.merge_mlp import MergeMLP
from projectors.mergers.visual_vocabulary import VisualVocabulary
from projectors.mlp import MlpProjector
from projectors.names import did_you_mean
from projectors.patch_merger import PatchMerger
from projectors.perceiver import Perceiver
from projectors.pixel_shuffle import PixelShuffle
from projectors.pooled_linear import PooledLinear
from projectors.projector import Grid, Projector
from projectors.qformer import QFormer
from projectors.query_attention import QueryAttention

__all__ = [
    "PROJECTORS",
    "AttentionPool2d",
    "AvgPool",
    "CAbstractor",
    "ConvDownsample",
    "ConvNeck",
    "FrameMerger",
    "FusedMLP",
    "GatedMerger",
    "Grid",
    "LatentAttention",
    "LinearProjector",
    "MergeMLP",
    "MlpProjector",
    "PatchMerger",
    "Perceiver",
    "PixelShuffle",
    "PooledLinear",
    "Projector",
    "QFormer",
    "QueryAttention",
    "VisualVocabulary",
    "build",
    "check_options",
    "describe",
]

PROJECTORS: dict[str, type[Projector]] = {
    "linear": LinearProjector,
    "mlp": MlpProjector,
    "fused_mlp": FusedMLP,
    "pixel_shuffle": PixelShuffle,
    "patch_merger": PatchMerger,
    "gated_merger": GatedMerger,
    "frame_merger": FrameMerger,
    "merge_mlp": MergeMLP,
    "conv_downsample": ConvDownsample,
    "visual_vocabulary": VisualVocabulary,
    "avg_pool": AvgPool,
    "pooled_linear": PooledLinear,
    "attention_pool": AttentionPool2d,
    "query_attention": QueryAttention,
    "perceiver": Perceiver,
    "qformer": QFormer,
    "c_abstractor": CAbstractor,
    "conv_neck": ConvNeck,
    "latent_attention": LatentAttention,
}
"""Name -> class."""


def build(name: str, *, in_dim: int, out_dim: int, **options) -> Projector:
    """The projector called `name`.

    Args:
        name: a key of `PROJECTORS`.
        in_dim: channels of the patch tokens.
        out_dim: width of the language model.
        options: options of that projector; see its class.

    Raises:
        ValueError: no projector has that name, or it does not take one of the options.
    """
    check_options(name, options)
    return PROJECTORS[name](in_dim, out_dim, **options)


def check_options(name: str, options: Iterable[str]) -> None:
    """Raise ValueError unless a projector is called `name` and takes these options."""
    if name not in PROJECTORS:
        hint = did_you_mean(name, PROJECTORS)
        raise ValueError(f"no projector is called {name!r}, expected one of {', '.join(PROJECTORS)}{hint}")
    taken = [option for option in inspect.signature(PROJECTORS[name]).parameters if option not in ("in_dim", "out_dim")]
    if unknown := [option for option in options if option not in taken]:
        hint = did_you_mean(unknown[0], taken)
        raise ValueError(
            f"projector {name!r} does not take these options: {', '.join(unknown)}; it takes {', '.join(taken) or 'none'}{hint}"
        )


def describe(projector: Projector) -> dict:
    """The arguments that make `build` build such a projector again."""
    for name, kind in PROJECTORS.items():
        if type(projector) is kind:
            return {"name": name, "in_dim": projector.in_dim, "out_dim": projector.out_dim} | projector.options
    raise ValueError(
        f"{type(projector).__name__} is not a projector of this package, expected one of {', '.join(PROJECTORS)}"
    )
