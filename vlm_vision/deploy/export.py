"""An encoder frozen to one image size, for deployment: `freeze`, `export_program`, `export_onnx`.

The position table is resized to that size; LayerScale is folded; blocks and mergers after the tap are removed.
"""

import copy
import importlib.util
import os
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from vlm_vision.encoder import Encoder
from vlm_vision.fused import FusedEncoder
from vlm_vision.nn.output import Tap
from vlm_vision.nn.position import PositionTable, once
from vlm_vision.nn.rope import Grid

OUTPUTS = ("patch_tokens", "cls_token", "register_tokens", "pooled", "logits")
"""Tensors of a `VisionOutput`, in the order in which a frozen encoder returns them; deep features come last."""

_LARGEST_FILE = 2**31 - 2**20
"""Most bytes of weights in one ONNX file, a protocol buffer of at most 2 GiB; more go to a second file."""


class FrozenEncoder(nn.Module):
    """An encoder for images of one size; `freeze` makes it. Inference only: it stays in evaluation mode.

    `frozen(pixels)` takes (B, C, height, width) of any batch size and returns a plain tuple of tensors, named by `outputs`:
    patch_tokens (B, N, D) first, then those of cls_token (B, D), register_tokens (B, R, D), pooled (B, E), logits
    (B, classes) and deepstack_0, ... (B, M, E) that the encoder has at its tap. `dict(zip(frozen.outputs, frozen(pixels)))` names them.

    Attributes:
        height, width, channels: of the pixels.
        grid: (rows, columns) of the patches, N == rows * columns.
        outputs: names of the tensors that a call returns, in order.
    """

    def __init__(self, encoder: Encoder | FusedEncoder, *, height: int, width: int, pool: bool):
        super().__init__()
        self.height, self.width, self.channels = height, width, encoder.config.channels
        self.grid: Grid = encoder.grid(height, width)
        self.encoder, self._pool = encoder, pool
        self.train(False)
        out = encoder(self.example(1), pool=pool)
        self._named = tuple(name for name in OUTPUTS if getattr(out, name) is not None)
        self.outputs = self._named + tuple(f"deepstack_{i}" for i in range(len(out.deepstack)))

    def example(self, batch: int) -> Tensor:
        """Zeros of the shape that a call takes, (batch, C, height, width)."""
        dtype, device = self.encoder.dtype, self.encoder.device
        return torch.zeros((batch, self.channels, self.height, self.width), dtype=dtype, device=device)

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Pixels (B, C, height, width) -> the tensors named by `outputs`.

        Raises:
            ValueError: pixels of another shape.
        """
        wanted = (self.channels, self.height, self.width)
        if pixels.ndim != 4 or pixels.shape[1:] != wanted:
            raise ValueError(
                f"this encoder is frozen to pixels of shape (batch, {', '.join(map(str, wanted))}), got "
                f"{tuple(pixels.shape)}: resize the images, or freeze the encoder at their size"
            )
        out = self.encoder(pixels, pool=self._pool)
        return tuple(getattr(out, name) for name in self._named) + out.deepstack

    def train(self, mode: bool = True) -> "FrozenEncoder":
        """Does nothing: a frozen encoder stays in evaluation mode."""
        return super().train(False)


@torch.inference_mode(False)
@torch.no_grad()
def freeze(encoder: Encoder | FusedEncoder, *, height: int, width: int, pool: bool = True) -> FrozenEncoder:
    """A copy of the encoder for pixels of height x width alone, with the same outputs at its tap up to rounding.

    Args:
        encoder: copied, not changed; the copy has its dtype and device.
        height, width: of the pixels (of a fused encoder's canvas).
        pool: False leaves out `pooled` and `logits`, and their weights.

    Raises:
        ValueError: a size that the encoder cannot take; several towers whose grids differ at it; adapters that are not
            merged on a layer that LayerScale folds into; weights packed by `vlm_vision.deploy.cpu_layout`.
    """
    encoder.grid(height, width)  # says what is wrong with the size
    try:
        frozen = copy.deepcopy(encoder).requires_grad_(False)
    except NotImplementedError:  # PyTorch's, of tensors in a kernel's own layout
        raise ValueError("weights packed for the CPU cannot be copied: freeze the encoder before you pack it") from None
    sizes = frozen.windows(height, width) if isinstance(frozen, FusedEncoder) else [(height, width)]
    towers = [module for module in frozen.modules() if isinstance(module, Encoder)]
    for tower, size in zip(towers, sizes, strict=True):
        _freeze_tower(tower, size, pool)
    return FrozenEncoder(frozen, height=height, width=width, pool=pool)


def _freeze_tower(encoder: Encoder, size: tuple[int, int], pool: bool) -> None:
    """Make `size` the native size, and remove parts that the outputs do not need."""
    model, tap = encoder.model, encoder.tap
    encoder.fold_layer_scale()
    rows, columns = model.config.grid_of(*size)
    if isinstance(table := model.position, PositionTable):
        table.table = nn.Parameter(torch.cat(table((rows, columns), size), dim=1), requires_grad=False)
        table.grid, table.resize = (rows, columns), once(table.resize)
        table._cache.clear()
    side = model.config.patch_size
    rule = once(model.config.position_resize)
    model.config = replace(model.config, image_size=(rows * side, columns * side), position_resize=rule)
    model.mask_token = None
    first, *others = tap.blocks(model.config.depth)
    last = max(first, *others) if others else first
    model.blocks = model.blocks[: last + 1]
    used = model.config.mergers(last)
    model.deepstack = nn.ModuleList(model.deepstack[place] for place in used)
    model.config = replace(model.config, deepstack=tuple(model.config.deepstack[place] for place in used))
    if not model.config.is_merged(tap):
        model.merge = None
    if not pool or last < model.config.depth - 1:
        model.pool = model.pool_head = model.head = model.head_dist = None
        model.pool_norm = nn.Identity()
        if not tap.norm:
            model.norm = nn.Identity()
    encoder.tap = Tap(first, tap.norm, tuple(others))


def export_program(
    encoder: Encoder | FusedEncoder, *, height: int, width: int, dynamic_batch: bool = True, pool: bool = True
) -> torch.export.ExportedProgram:
    """The frozen encoder as a `torch.export` program: `program.module()(pixels)` returns the tuple of `FrozenEncoder`.

    Args:
        encoder, height, width, pool: as in `freeze`.
        dynamic_batch: True for batches of any size, False for one image at a time.

    Raises:
        ValueError: as `freeze`.
    """
    return _export(freeze(encoder, height=height, width=width, pool=pool), dynamic_batch)


def _export(frozen: FrozenEncoder, dynamic_batch: bool) -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch", min=1)
    example = frozen.example(2 if dynamic_batch else 1)
    with torch.no_grad():
        return torch.export.export(frozen, (example,), dynamic_shapes=({0: batch},) if dynamic_batch else None)


def export_onnx(
    encoder: Encoder | FusedEncoder,
    file: str | Path,
    *,
    height: int,
    width: int,
    dynamic_batch: bool = True,
    pool: bool = True,
) -> None:
    """Write the frozen encoder to an ONNX file, whole or not at all.

    Its input is `pixels`, its outputs are named as in `FrozenEncoder.outputs`. Weights of 2 GiB and more go to a second
    file in the same folder, with the name of the first and ".data".

    Args:
        encoder, height, width, pool: as in `freeze`.
        file: path to write, or to overwrite; its folder is made if absent.
        dynamic_batch: True for batches of any size, False for one image at a time.

    Raises:
        ValueError: as `freeze`; onnx or onnxscript is not installed; `file` is a folder.
    """
    for package in ("onnx", "onnxscript"):
        if importlib.util.find_spec(package) is None:
            raise ValueError(f"{package} is not installed: pip install 'vlm-vision[onnx]'")
    file = Path(file)
    if file.is_dir():
        raise ValueError(f"{file} is a folder: pass a file to write, such as {file / 'encoder.onnx'}")
    frozen = freeze(encoder, height=height, width=width, pool=pool)
    size = sum(weight.nbytes for weight in frozen.state_dict().values())
    program = torch.onnx.export(
        _export(frozen, dynamic_batch),
        input_names=["pixels"],
        output_names=list(frozen.outputs),
        dynamic_shapes=({0: "batch"},) if dynamic_batch else None,  # the name in the file; the program has the shapes
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    file.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{file.name}.", dir=file.parent))
    try:
        program.save(staging / file.name, external_data=size > _LARGEST_FILE)
        if beside := [item for item in staging.iterdir() if item.name != file.name]:
            file.unlink(missing_ok=True)  # a file is never there with the weights of another
        for item in [*beside, staging / file.name]:
            os.replace(item, file.parent / item.name)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
