"""Layers whose attention a page holds, and their size."""

from collections.abc import Sequence

from vlm_vision.encoder import Encoder
from vlm_vision.nn.rope import Grid

IMAGE_LIMIT = 25e6
"""Most bytes of queries and keys that the page holds for an image."""
_PAGE_LIMIT = 40e6
"""Bytes of queries and keys of all images, to which the layers that nobody chose are cut."""
_DEFAULT = 4
"""Layers of a page unless others are asked for."""


def layer_size(encoder: Encoder, grid: Grid) -> int:
    """Bytes of a layer's queries and keys, in float32, for an image of this grid of patches."""
    config = encoder.config
    width = config.head_dim + (sum(grid) if config.relative_position else 0)
    return 2 * 4 * config.num_heads * width * (config.num_prefix_tokens + grid[0] * grid[1])


def choose_layers(
    towers: Sequence[Encoder], grids: Sequence[Grid], layers: Sequence[int] | None, *, images: int
) -> list[list[int]]:
    """Numbers of the layers, from 0, whose attention a page of `images` images holds, for each tower.

    Args:
        grids: the largest grid of each tower.
        layers: those asked for, negative ones from the end; None for up to four of each tower, spread over its depth.

    Raises:
        ValueError: a layer that a tower does not have, or more than fit into the page: it states how many do.
    """
    sizes = [layer_size(tower, grid) for tower, grid in zip(towers, grids, strict=True)]
    depths = [tower.config.depth for tower in towers]
    largest = sizes.index(max(sizes))
    rows, columns = grids[largest]
    about = (
        f"{towers[largest].origin.family} has a grid of {rows}x{columns} patches here, and a layer's queries and keys take "
        f"{sizes[largest] / 1e6:.0f} MB an image"
    )
    if layers is not None:
        for depth, tower in zip(depths, towers, strict=True):
            if bad := [layer for layer in layers if not -depth <= layer < depth]:
                raise ValueError(
                    f"layers {bad} are outside {tower.origin.family}, which has {depth} blocks: choose from 0 to {depth - 1}"
                )
        chosen = [sorted({layer % depth for layer in layers}) for depth in depths]
        needed = sum(size * len(one) for size, one in zip(sizes, chosen, strict=True))
        if needed > IMAGE_LIMIT:
            raise ValueError(
                f"{about}: {len(layers)} layers of all encoders take {needed / 1e6:.0f} MB, and a page holds "
                f"{IMAGE_LIMIT / 1e6:.0f} MB; {_remedy(int(IMAGE_LIMIT // sum(sizes)))}"
            )
        return chosen
    if sum(sizes) > IMAGE_LIMIT:
        raise ValueError(f"{about}, one layer of all encoders {sum(sizes) / 1e6:.0f} MB; a page holds "
                         f"{IMAGE_LIMIT / 1e6:.0f} MB: {_remedy(0)}")  # fmt: skip
    fit = max(1, int(min(IMAGE_LIMIT, _PAGE_LIMIT / images) // sum(sizes)))
    return [spread(depth, min(_DEFAULT, fit)) for depth in depths]


def _remedy(fit: int) -> str:
    if fit:
        return f"choose {fit} with --layers, or --serve, which computes each layer when it is shown"
    return "use --serve, which computes each layer when it is shown, or a smaller --image-size"


def spread(depth: int, count: int) -> list[int]:
    """`count` layers spread over a tower, the last one among them."""
    return sorted({depth * (i + 1) // min(count, depth) - 1 for i in range(min(count, depth))})
