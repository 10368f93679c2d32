"""One image through one tower, with what each stage computes on the way."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vlm_vision.encoder import Encoder, eval_mode
from vlm_vision.nn.attention import Attention, Context
from vlm_vision.nn.blocks import Block
from vlm_vision.nn.output import Tap, VisionOutput
from vlm_vision.nn.rope import Grid
from vlm_vision.nn.sequence import Part, plan
from vlm_vision.page.compute.attention import LayerAttention, layer_attention


@dataclass(frozen=True)
class Stage:
    """One step of the data flow."""

    name: str
    block: int
    """Number of the block, from 0; -1 before the blocks, the depth after them."""
    shape: tuple[int, ...]
    mean: float
    std: float
    least: float
    most: float
    length: float
    """Mean length of the vectors along the last axis."""


@dataclass
class Trace:
    """What one image became in one tower."""

    grid: Grid
    prefix: int
    stages: list[Stage] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)
    """Output of each block, (T, D) float32: prefix tokens, then patches row by row."""
    grids: list[Grid] = field(default_factory=list)
    """Grid of each of `outputs`."""
    patch_embedding: Tensor = field(default_factory=lambda: torch.empty(0))
    """(N, D): patches before positions are added."""
    attention: dict[int, LayerAttention] = field(default_factory=dict)
    """Layers asked for."""


def check_tower(encoder: Encoder) -> None:
    """Raise ValueError for a tower that the page cannot show: one whose blocks read an instruction, or one of no image."""
    config = encoder.config
    if config.film_dim:
        raise ValueError(
            f"this tower ({encoder.origin.family}) reads an instruction in every block (FiLM): the page shows towers that read "
            "an image alone; look at the tower that it was made from"
        )


def trace(encoder: Encoder, pixels: Tensor, layers: Sequence[int]) -> tuple[Trace, VisionOutput]:
    """Run all blocks once and keep what the stages compute.

    Args:
        pixels: (1, C, H, W) of `preprocess`.
        layers: blocks, from 0, whose queries and keys are kept.

    Returns:
        The trace, and the encoder's own output at its own tap.
    """
    check_tower(encoder)
    model = encoder.model
    pixels = pixels.to(encoder.device, encoder.dtype)
    config = encoder.config
    grid = config.grid_of(*pixels.shape[-2:])
    made = Trace(grid, config.num_prefix_tokens)
    made.stages.append(_stage("pixels", -1, pixels))
    with torch.no_grad(), eval_mode(encoder), _hooks() as hooked:
        how = plan(config, [Part(1, 1, grid)], packed=False, device=encoder.device)

        def note(name: str, block: int, value: Tensor) -> None:
            made.stages.append(_stage(name, block, value))

        def patches(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            note("patch embedding", -1, args[0])
            made.patch_embedding = args[0][0].float().cpu()

        def embedded(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            note("positions and prefix tokens", -1, args[0])

        def block_output(index: int, _: nn.Module, args: tuple[Any, ...], out: Tensor) -> None:
            note("output", index, out)
            context: Context = args[1]
            assert context.grid is not None
            ordered = how.outward(out) if out.shape[1] == made.prefix + grid[0] * grid[1] else out
            made.outputs.append(ordered[0].float().cpu())
            made.grids.append(context.grid)

        hooked(model.patch_norm.register_forward_pre_hook(patches))
        hooked(model.pre_norm.register_forward_pre_hook(embedded))
        if not isinstance(model.pre_norm, nn.Identity):
            hooked(model.pre_norm.register_forward_hook(_noting(note, "norm before the blocks", -1)))
        for index, block in enumerate(model.blocks):
            assert isinstance(block, Block)
            parts = [("norm", block.norm1), ("attention", block.attn), ("sum", block.residual1), ("norm", block.norm2)]
            for name, part in [*parts, ("MLP", block.mlp)]:
                hooked(part.register_forward_hook(_noting(note, name, index)))
            hooked(block.register_forward_hook(partial(block_output, index)))
            if index in layers:
                hooked(block.attn.register_forward_pre_hook(partial(_keep_attention, made, how, index)))
        if not isinstance(model.norm, nn.Identity):

            def final(_: nn.Module, args: Any, out: Tensor) -> None:
                note("final norm", config.depth, out.flatten(2))

            hooked(model.norm.register_forward_hook(final))
        out = encoder(pixels, tap=Tap(), pool=True)
        if out.pooled is not None:
            note("pooled", config.depth, out.pooled)
    if encoder.tap == Tap():
        return made, out
    with torch.no_grad(), eval_mode(encoder):
        return made, encoder(pixels, pool=False)


def attention_layers(encoder: Encoder, pixels: Tensor, layers: Sequence[int]) -> dict[int, LayerAttention]:
    """Queries and keys of the layers asked for, and of no other; blocks past the last of them do not run."""
    check_tower(encoder)
    pixels, config = pixels.to(encoder.device, encoder.dtype), encoder.config
    grid = config.grid_of(*pixels.shape[-2:])
    made = Trace(grid, config.num_prefix_tokens)
    with torch.no_grad(), eval_mode(encoder), _hooks() as hooked:
        how = plan(config, [Part(1, 1, grid)], packed=False, device=encoder.device)
        for index in layers:
            attention = encoder.model.blocks[index].attn
            assert isinstance(attention, Attention)
            hooked(attention.register_forward_pre_hook(partial(_keep_attention, made, how, index)))
        encoder(pixels, tap=Tap(max(layers), norm=False), pool=False)
    return made.attention


def _keep_attention(made: Trace, how: Any, index: int, module: nn.Module, args: tuple[Any, ...]) -> None:
    x, context = args
    assert isinstance(module, Attention)
    if x.shape[1] != made.prefix + made.grid[0] * made.grid[1]:  # after a merger, which goes without windows
        how = how._replace(back=None)
    made.attention[index] = layer_attention(module, x, context, how, made.prefix)


def _noting(note: Callable[[str, int, Tensor], None], name: str, block: int) -> Callable[..., None]:
    def hook(_: nn.Module, args: Any, out: Tensor) -> None:
        note(name, block, out)

    return hook


@contextmanager
def _hooks() -> Iterator[Callable[[Any], None]]:
    """A function that takes handles of hooks, all of which are removed at the end."""
    handles: list[Any] = []
    try:
        yield handles.append
    finally:
        for handle in handles:
            handle.remove()


def _stage(name: str, block: int, value: Tensor) -> Stage:
    value = value.detach().float()
    length = value.norm(dim=1 if value.ndim == 4 else -1).mean()
    numbers = [value.mean(), value.std(correction=0), value.min(), value.max(), length]
    return Stage(name, block, tuple(value.shape), *(float(number) for number in numbers))
