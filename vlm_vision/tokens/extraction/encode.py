"""From opened images to what a store holds of them, by an encoder."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from projectors import Projector, describe
from vlm_vision.data.stored_image import StoredImage, open_pixels
from vlm_vision.encoder import Encoder
from vlm_vision.fused import FusedEncoder
from vlm_vision.nn.output import VisionOutput
from vlm_vision.preprocess.images import ImageInput
from vlm_vision.tokens.about import FORMAT, weights_fingerprint, without_tap
from vlm_vision.tokens.wanted import Part, Wanted


@dataclass
class ImageTokens:
    """What is stored of one image, in float32 on the CPU."""

    grid: tuple[int, int]
    """(h, w) of the patch tokens as stored."""
    frames: int
    tensors: dict[str, Tensor]
    """`patch_tokens.-1` (N, D), `cls_token.-1` (D,), `register_tokens.-1` (R, D), `pooled` (E,): the part, a point, the layer."""


class TokenEncoder:
    """An encoder with what is wanted of it.

    Args:
        encoder: in evaluation mode, on the device and in the dtype that computes.
        wanted: settings of the store.
        projector: maps the patch tokens before they are stored; None for none.

    Raises:
        ValueError: a layer or part that the encoder does not have, or a projector of another width.
    """

    def __init__(self, encoder: Encoder | FusedEncoder, wanted: Wanted, projector: Projector | None = None):
        self.encoder, self.wanted, self.projector = encoder, wanted, projector
        self.towers = [tower for tower in encoder.modules() if isinstance(tower, Encoder)]
        for tower in self.towers:
            taken = wanted.tap.blocks(tower.config.depth)
            if len(set(taken)) < len(taken):
                raise ValueError(
                    f"layers {list(wanted.layers)} name one block twice: the encoder has {tower.config.depth}"
                )
        self.parts = self._parts()
        if projector is not None:
            self._check_projector(projector)

    def describe(self, source: str) -> dict[str, Any]:
        """The fields of store.json that are known before the first image.

        Args:
            source: name of the encoder, as the user wrote it.
        """
        encoder, settings = self.encoder, self.wanted.to_dict() | {"parts": list(self.parts)}
        about: dict[str, Any] = {
            "format": FORMAT,
            "source": source,
            "weights": weights_fingerprint(encoder),
            "preprocess_fingerprint": encoder.preprocess.fingerprint,
            "encoder": without_tap(encoder.to_dict()),
            "projector": None,
            "settings": settings,
        }
        if self.projector is not None:
            about["projector"] = describe(self.projector) | {"weights": weights_fingerprint(self.projector)}
        return json.loads(json.dumps(about))

    def pixels(self, image: ImageInput | StoredImage) -> Tensor:
        """(C, H, W) of one image. Raises ValueError if it cannot be read."""
        opened = open_pixels(image) if isinstance(image, StoredImage) else image
        if isinstance(self.encoder, FusedEncoder):
            return self.encoder.preprocess(opened)[0]
        return self.encoder.preprocess.each(opened)[0]

    def outputs(self, pixels: Sequence[Tensor]) -> list[VisionOutput]:
        """Of each image, on the encoder's device; computed there by the time that they are copied."""
        device, tap = self.encoder.device, self.wanted.tap
        pool = "pooled" in self.parts
        moved = [one.to(device, non_blocking=True) for one in pixels]
        if len({one.shape for one in moved}) == 1 and self.encoder.preprocess.output_size is not None:
            out = self.encoder(torch.stack(moved), tap=tap, pool=pool)
            return [out.map(lambda value, i=i: value[i : i + 1]) for i in range(len(moved))]
        if isinstance(self.encoder, FusedEncoder):
            return [self.encoder(one[None], tap=tap, pool=pool) for one in moved]
        return self.encoder.packed(moved, tap=tap, pool=pool)

    def stored(self, out: VisionOutput) -> ImageTokens:
        """What is stored of one image's output.

        Raises:
            ValueError: a grid that cannot be pooled or projected.
        """
        tensors: dict[str, Tensor] = {}
        grid = self._grid(out.grid)
        for part in self.parts:
            value = getattr(out, part)
            if part == "pooled":
                tensors[part] = value[0].float().cpu()
                continue
            for layer, tokens in zip(self.wanted.layers, self._by_layer(value), strict=True):
                if part == "patch_tokens":
                    tokens = self._reduced(tokens, out.grid, out.frames)
                tensors[f"{part}.{layer}"] = tokens[0].float().cpu()
        return ImageTokens(grid, out.frames, tensors)

    def _grid(self, grid: tuple[int, int]) -> tuple[int, int]:
        if self.projector is not None:
            return self.projector.out_grid(grid) or grid
        side = self.wanted.pool
        if grid[0] % side or grid[1] % side:
            raise ValueError(
                f"a grid of {grid[0]}x{grid[1]} patches cannot be pooled by {side}x{side}: choose a divisor of both sides"
            )
        return grid[0] // side, grid[1] // side

    def _reduced(self, tokens: Tensor, grid: tuple[int, int], frames: int) -> Tensor:
        """Patch tokens (1, F N, D), projected or pooled."""
        side = self.wanted.pool
        if self.projector is not None:
            return torch.cat([self.projector(one, grid) for one in tokens.chunk(frames, dim=1)], dim=1)
        if side == 1:
            return tokens
        rows, columns = grid[0] // side, grid[1] // side
        squares = tokens.float().unflatten(1, (frames, rows, side, columns, side))
        return squares.mean(dim=(3, 5)).flatten(1, 3)

    def _by_layer(self, value: Tensor) -> list[Tensor]:
        """(1, ..., D) of each layer. Each tower's channels hold its layers side by side."""
        count = len(self.wanted.layers)
        if count == 1:
            return [value]
        widths = [value.shape[-1]]
        if len(self.towers) > 1:
            widths = [count * tower.embed_dim // (1 + len(tower.tap.more)) for tower in self.towers]
        each = [channels.chunk(count, dim=-1) for channels in value.split(widths, dim=-1)]
        return [torch.cat([layers[i] for layers in each], dim=-1) for i in range(count)]

    def _parts(self) -> tuple[Part, ...]:
        """What is stored: the parts asked for, or all that there are."""
        configs, wanted = [tower.config for tower in self.towers], self.wanted
        has: dict[Part, bool] = {
            "patch_tokens": True,
            "cls_token": all(config.class_token for config in configs),
            "register_tokens": len(configs) == 1 and configs[0].num_registers > 0,
            "pooled": all(config.pool != "none" for config in configs)
            and all(config.depth - 1 in wanted.tap.blocks(config.depth) for config in configs),
        }
        if missing := [part for part in wanted.parts if not has[part]]:
            because = (
                " at these layers: add layer -1"
                if missing[0] == "pooled" and any(c.pool != "none" for c in configs)
                else ""
            )
            there = ", ".join(part for part, there in has.items() if there)
            raise ValueError(f"this encoder has no {missing[0]}{because}; it has {there}")
        return wanted.parts or tuple(part for part, there in has.items() if there)

    def _check_projector(self, projector: Projector) -> None:
        width = self.encoder.embed_dim
        if len(self.wanted.layers) > 1 or self.wanted.pool > 1:
            raise ValueError("a projector takes the tokens of one layer: leave out the other layers, and pool")
        if projector.in_dim != width:
            raise ValueError(
                f"the projector takes {projector.in_dim} channels, the encoder gives {width}: choose its own"
            )
