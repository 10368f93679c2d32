"""Several towers side by side on one grid: their patch tokens concatenated along the channels.

DINOv2 sees where things are, SigLIP what they are; Prismatic (Karamcheti et al. 2024, arXiv:2402.07865) and OpenVLA
feed both to the language model this way.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from projectors import Projector
from vlm_vision.checkpoints.hf.card import encoder_card, write_card
from vlm_vision.checkpoints.hf.into import check_alone, check_format, save_into
from vlm_vision.checkpoints.manifest import write_manifest
from vlm_vision.checkpoints.save import SIDECAR
from vlm_vision.encoder import Encoder
from vlm_vision.files import whole, write_json
from vlm_vision.nn.blocks import Block, FilmBlock
from vlm_vision.nn.config import ViTConfig
from vlm_vision.nn.output import Tap, VisionOutput
from vlm_vision.preprocess.images import ImageInput, load_images
from vlm_vision.preprocess.spec import Preprocess


@dataclass(frozen=True)
class FusedConfig:
    """The architectures of the towers, in channel order."""

    towers: tuple[ViTConfig, ...]

    @property
    def channels(self) -> int:
        """Channels of the canvas that all towers share."""
        return sum(tower.channels for tower in self.towers)


@dataclass(frozen=True)
class FusedPreprocess:
    """Each tower's own preprocessing, stacked along the channels.

    Towers whose images differ in size share the larger canvas: each image fills the top left corner of its three
    channels, the rest is zero and never read.
    """

    towers: tuple[Preprocess, ...]

    def __call__(self, images: ImageInput | Sequence[ImageInput]) -> Tensor:
        """Images -> float32 (B, 3 * towers, H, W)."""
        cameras, towers = {preprocess.camera for preprocess in self.towers}, self.towers
        if len(cameras) == 1 and (camera := cameras.pop()) is not None:  # once for all towers
            images = [camera(image) for image in load_images(images)]
            towers = [replace(preprocess, camera=None) for preprocess in towers]
        each = [preprocess(images) for preprocess in towers]
        height, width = (max(pixels.shape[axis] for pixels in each) for axis in (-2, -1))
        return torch.cat([nn.functional.pad(p, (0, width - p.shape[-1], 0, height - p.shape[-2])) for p in each], dim=1)

    def with_evaluation(self, name: str, *, crop: bool) -> "FusedPreprocess":
        """As `Preprocess.with_evaluation`, for every tower."""
        return FusedPreprocess(tuple(preprocess.with_evaluation(name, crop=crop) for preprocess in self.towers))

    @property
    def output_size(self) -> tuple[int, int] | None:
        """(height, width) of the canvas in pixels; None if it depends on the image."""
        sizes = [preprocess.output_size for preprocess in self.towers]
        return None if None in sizes else (max(h for h, _ in sizes), max(w for _, w in sizes))  # type: ignore[misc]

    @property
    def fingerprint(self) -> str:
        return "+".join(preprocess.fingerprint for preprocess in self.towers)

    def to_dict(self) -> dict[str, Any]:
        return {"towers": [preprocess.to_dict() for preprocess in self.towers]}

    @classmethod
    def from_dict(cls, state: dict[str, Any]) -> "FusedPreprocess":
        return cls(tuple(Preprocess.from_dict(tower) for tower in state["towers"]))


class FusedEncoder(nn.Module):
    """Towers that encode the same image. Called and saved like an `Encoder`.

    patch_tokens: (B, N, D1 + D2 + ...), in the order given, N == frames * h * w. cls_token and pooled are concatenated where
    every tower has one, else None; register_tokens is None, and deepstack empty: deep features are read from one tower alone.

    Raises:
        ValueError: the towers' grids differ at the image size of their preprocessing.
    """

    def __init__(self, towers: Sequence[Encoder]):
        super().__init__()
        if len(towers) < 2:
            raise ValueError(f"a fused encoder needs at least two towers, got {len(towers)}")
        self.towers = nn.ModuleList(towers)
        sizes = [tower.preprocess.output_size for tower in towers]
        for tower, size in zip(towers, sizes, strict=True):
            if size is None:
                raise ValueError(
                    f"the preprocessing of {tower.origin.family} gives images of any size, so that grids of towers "
                    "could differ: load it with image_size=..."
                )
        _one_grid(list(towers), [size for size in sizes if size is not None])

    @property
    def preprocess(self) -> FusedPreprocess:
        """The towers' own preprocessing, side by side."""
        return FusedPreprocess(tuple(tower.preprocess for tower in self._towers))

    @preprocess.setter
    def preprocess(self, preprocess: FusedPreprocess) -> None:
        given = preprocess.towers if isinstance(preprocess, FusedPreprocess) else ()
        if len(given) != len(self.towers) or None in (sizes := [one.output_size for one in given]):
            raise ValueError(
                f"this encoder has {len(self.towers)} towers: expected a FusedPreprocess with one for each, of fixed size"
            )
        _one_grid(self._towers, sizes)  # type: ignore[arg-type]
        for tower, one in zip(self._towers, given, strict=True):
            tower.preprocess = one

    @property
    def config(self) -> FusedConfig:
        return FusedConfig(tuple(tower.config for tower in self._towers))

    @property
    def _towers(self) -> list[Encoder]:
        return list(self.towers)  # type: ignore[arg-type]

    @property
    def embed_dim(self) -> int:
        """Channels of patch_tokens: the sum over the towers."""
        return sum(tower.embed_dim for tower in self._towers)

    @property
    def tap(self) -> tuple[Tap, ...]:
        return tuple(tower.tap for tower in self._towers)

    @property
    def dtype(self) -> torch.dtype:
        return self._towers[0].dtype

    @property
    def device(self) -> torch.device:
        return self._towers[0].device

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """(rows, columns) that every tower makes of a canvas of height x width."""
        return _one_grid(self._towers, self.windows(height, width))

    def num_patch_tokens(self, height: int, width: int) -> int:
        """Patch tokens of a canvas of height x width."""
        rows, columns = self.grid(height, width)
        return rows * columns

    def forward(
        self,
        pixels: Tensor | Sequence[Tensor],
        *,
        tap: Tap | Sequence[Tap] | None = None,
        pool: bool = True,
        condition: Tensor | None = None,
    ) -> VisionOutput:
        """Encode with every tower; on CUDA without gradients side by side, each on its own stream.

        Args:
            pixels: the canvas of `preprocess`, (B, 3 * towers, H, W); or one (B, 3, H, W), or video (B, T, 3, H, W), for
                each tower.
            tap: one for all towers, or one each; default their own.
            condition: (B, film_dim), for towers with FiLM, the same for all.

        Raises:
            ValueError: wrong number of channels, tensors or taps; grids, or frames of tokens, that differ.
        """
        towers = self._towers
        each = self._split(pixels) if isinstance(pixels, Tensor) else list(pixels)
        taps = [tap] * len(towers) if tap is None or isinstance(tap, Tap) else list(tap)
        if len(each) != len(towers) or len(taps) != len(towers):
            raise ValueError(
                f"this encoder has {len(towers)} towers, got {len(each)} pixel tensors and {len(taps)} taps: pass one for each"
            )
        taps = [own or tower.tap for own, tower in zip(taps, towers, strict=True)]
        _one_grid(towers, [(p.shape[-2], p.shape[-1]) for p in each], taps)
        frames = [
            tower.config.num_frames(p.shape[1]) if p.ndim == 5 else 1 for tower, p in zip(towers, each, strict=True)
        ]
        if len(set(frames)) > 1:
            raise ValueError(
                f"fused towers must have one number of frames of tokens, got {frames}: pass videos of as many temporal patches"
            )
        steer = {} if condition is None else {"condition": condition}
        calls = [partial(tower, p, tap=t, pool=pool, **steer) for tower, p, t in zip(towers, each, taps, strict=True)]
        outs = _on_streams(calls, each) if _can_overlap(each) else [call() for call in calls]
        return VisionOutput(
            patch_tokens=torch.cat([out.patch_tokens for out in outs], dim=-1),
            grid=outs[0].grid,
            frames=outs[0].frames,
            cls_token=_cat([out.cls_token for out in outs]),
            pooled=_cat([out.pooled for out in outs]),
        )

    def _split(self, pixels: Tensor) -> list[Tensor]:
        if pixels.ndim != 4 or pixels.shape[1] != 3 * len(self.towers):
            raise ValueError(
                f"expected pixels of shape (batch, {3 * len(self.towers)}, height, width), got {tuple(pixels.shape)}: "
                "pass the result of preprocess"
            )
        windows = self.windows(pixels.shape[-2], pixels.shape[-1])
        return [pixels[:, 3 * i : 3 * i + 3, :h, :w] for i, (h, w) in enumerate(windows)]

    def windows(self, height: int, width: int) -> list[tuple[int, int]]:
        """(height, width) of the part of a canvas, from its top left, that holds each tower's image.

        Raises:
            ValueError: different patch sizes and another canvas than that of `preprocess`.
        """
        if (height, width) == self.preprocess.output_size:
            return [preprocess.output_size for preprocess in self.preprocess.towers]  # type: ignore[misc]
        if len({tower.config.patch_size for tower in self._towers}) > 1:
            raise ValueError(
                f"towers of different patch sizes share one canvas only at {self.preprocess.output_size}, got {(height, width)}: "
                "pass a list with one tensor for each tower"
            )
        return [(height, width)] * len(self.towers)

    def fold_layer_scale(self) -> None:
        """Fold every LayerScale into the layer before it, for inference: same outputs."""
        for tower in self._towers:
            tower.fold_layer_scale()

    def to_dict(self) -> dict[str, Any]:
        """Everything but the weights, as JSON; `from_dict` builds it again."""
        return {"towers": [tower.to_dict() for tower in self._towers]}

    @classmethod
    def from_dict(cls, state: dict[str, Any]) -> "FusedEncoder":
        """A fused encoder with random weights from `to_dict`."""
        return cls([Encoder.from_dict(tower) for tower in state["towers"]])

    def save_pretrained(
        self,
        folder: str | Path,
        format: str = "hf",
        *,
        into: str | Path | None = None,
        projector: Projector | None = None,
    ) -> None:
        """Write each tower to a subfolder of `folder`, as `Encoder.save_pretrained`; `vlm_vision.load(folder)` fuses them again.

        With `into`, a folder of OpenVLA or Prismatic for transformers, `folder` becomes its copy with these towers, and with
        the projector if it is passed.
        """
        if into is not None:
            check_format(format)
            save_into(Path(into), Path(folder), [tower.tuned() for tower in self._towers], projector=projector)
            return
        check_alone(projector, None)
        names = [f"tower_{i}" for i in range(len(self.towers))]
        with whole(Path(folder)) as staging:
            for name, tower in zip(names, self._towers, strict=True):
                tower.save_pretrained(staging / name, format)
            write_json(staging / SIDECAR, {"towers": names})
            bases = [tower.hub_id for tower in self._towers]
            write_card(staging, encoder_card(self.to_dict(), self, bases, format=format))
            write_manifest(staging)


def _can_overlap(pixels: list[Tensor]) -> bool:
    """Whether towers may run on several streams: one CUDA device, no gradients, no compilation, no capture."""
    if torch.compiler.is_compiling() or torch.is_grad_enabled() or not all(p.is_cuda for p in pixels):
        return False
    return len({p.device for p in pixels}) == 1 and not torch.cuda.is_current_stream_capturing()


@cache
def _side_stream(device: torch.device, index: int) -> torch.cuda.Stream:
    """The same stream in every call, so that the allocator's blocks, which belong to a stream, are used again."""
    return torch.cuda.Stream(device)


def _on_streams(calls: list[Callable[[], VisionOutput]], pixels: list[Tensor]) -> list[VisionOutput]:
    """Run the first call on the current stream, each other one on a side stream; the current stream then waits for them."""
    device = pixels[0].device
    current = torch.cuda.current_stream(device)
    streams = [current, *(_side_stream(device, i) for i in range(1, len(calls)))]
    for side in streams[1:]:
        side.wait_stream(current)  # before the first tower's work is queued, which they need not wait for
    outs = []
    for call, stream, seen in zip(calls, streams, pixels, strict=True):
        with torch.cuda.stream(stream):
            outs.append(call())
        seen.record_stream(stream)
    for side, out in zip(streams[1:], outs[1:], strict=True):
        current.wait_stream(side)
        out.map(partial(_read_on, current))
    return outs


def _read_on(stream: torch.cuda.Stream, tensor: Tensor) -> Tensor:
    """The tensor, whose memory does not return to the stream that made it before `stream` has read it."""
    tensor.record_stream(stream)
    return tensor


def _one_grid(towers: list[Encoder], sizes: list[tuple[int, int]], taps: list[Tap] | None = None) -> tuple[int, int]:
    """The grid of every tower's patch tokens, at its own tap or at that in `taps`."""
    taps = taps or [tower.tap for tower in towers]
    grids = [tower.config.token_grid(*size, tap) for tower, size, tap in zip(towers, sizes, taps, strict=True)]
    if len(set(grids)) > 1:
        grid_list = "; ".join(
            f"{t.origin.family} at {h}x{w} px, patch {t.config.patch_size}: grid {g[0]}x{g[1]}"
            for t, (h, w), g in zip(towers, sizes, grids, strict=True)
        )
        raise ValueError(
            f"fused towers must have one grid, got {grid_list}; pass a list of image sizes "
            "with which the grids agree, such as load('a + b', image_size=[224, 256]) or --image-size 224 256"
        )
    return grids[0]


def _cat(parts: list[Tensor | None]) -> Tensor | None:
    given = [part for part in parts if part is not None]
    return torch.cat(given, dim=-1) if len(given) == len(parts) else None


def film_dim(encoder: Encoder | FusedEncoder) -> int:
    """Width of the vector that conditions the blocks of a tower (FiLM); 0 for none."""
    return max(tower.config.film_dim for tower in encoder.modules() if isinstance(tower, Encoder))


def add_film(encoder: Encoder | FusedEncoder, condition_dim: int) -> None:
    """Put FiLM into every block of every tower, in place; it changes nothing before training.

    Args:
        condition_dim: width of the vector that conditions them, for OpenVLA-OFT that of the language model.

    Raises:
        ValueError: an encoder that has FiLM already.
    """
    if film_dim(encoder):
        raise ValueError(f"this encoder has FiLM of width {film_dim(encoder)} already")
    for model in [tower.model for tower in encoder.modules() if isinstance(tower, Encoder)]:
        model.config = replace(model.config, film_dim=condition_dim)
        blocks = [block for block in model.blocks if isinstance(block, Block)]
        model.blocks = nn.ModuleList(FilmBlock.wrap(block, model.config, condition_dim) for block in blocks)
