"""`vlm_vision.load` and `load_projector`: from a name to an encoder, or to the projector of a published model."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

import projectors
from projectors import Projector
from vlm_vision.checkpoints import sniff
from vlm_vision.checkpoints.checkpoint import Checkpoint
from vlm_vision.checkpoints.connectors.find import find
from vlm_vision.checkpoints.families.all import RESIZE_BY_FAMILY, resize_rule
from vlm_vision.checkpoints.hf.backends import check_backend
from vlm_vision.checkpoints.hub import hub_id, resolve
from vlm_vision.checkpoints.lerobot.vla import described
from vlm_vision.checkpoints.manifest import check, names_in
from vlm_vision.checkpoints.save import SIDECAR
from vlm_vision.checkpoints.sniff import weights_of
from vlm_vision.checkpoints.towers import MALFORMED_ERRORS, Hints, Tower, build, build_shape, read_state_dict
from vlm_vision.encoder import Encoder, Origin, check_fingerprint
from vlm_vision.fused import FusedEncoder
from vlm_vision.nn.config import Remainder, ViTConfig
from vlm_vision.nn.output import Tap
from vlm_vision.preprocess.spec import Preprocess

Size = int | tuple[int, int]


def load(
    source: str | Path | Checkpoint,
    *,
    tap: Tap | Sequence[Tap] | None = None,
    reference: str | None = None,
    image_size: Size | list[Size] | None = None,
    remainder: Remainder | None = None,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    revision: str | None = None,
    format: str | None = None,
    part: str | None = None,
    architecture: str | None = None,
    num_heads: int | None = None,
    verify: bool = False,
    pixels: str = "pil",
) -> Encoder | FusedEncoder:
    """Load a vision encoder; it computes exactly what its reference computes.

    Args:
        source: "mini", the small SigLIP that the package contains; or hub id, local folder (transformers, timm,
            open_clip, OpenVLA, OpenVLA-OFT and Prismatic, LeRobot, openpi) or file (`.pth` and `.pt` of the original code,
            big_vision's `.npz`). "a + b" loads several and fuses them, channels in the order written. Of a whole model
            (CLIP, SigLIP, LLaVA, PaliGemma, SmolVLM, OpenVLA, pi0, SmolVLA, GR00T) only the vision part is read, with the
            preprocessing of that model's code; `with_evaluation` adds that of an evaluation script. Or a
            `vlm_vision.checkpoints.checkpoint.Checkpoint`, whose files are opened once for all that is loaded from it.
        tap: the tokens that calls return: default the last block with the family's final norm, or where the model around
            the tower taps it (OpenVLA). For a fused encoder one for all towers or one each.
        reference: library whose resize of the position table is reproduced off the native grid: "transformers", "timm",
            "original", "big_vision" or "open_clip", those that the family has. Default: the one of the format.
        image_size: side, or (height, width), in pixels that `preprocess` should make instead of its own; for several
            towers also a list with one for each. A tower of images of any shape takes as many patches as fit that size. It is
            also the native size of a `.pth` file whose position table is not square.
        remainder: treatment of pixels past the last whole patch: "floor" (left out; the default, as in every reference),
            "error", or "pad" (with zeros to whole patches).
        dtype: of weights and computation. Half precision files are widened to it.
        device: where the weights go.
        revision: branch, tag or commit of a hub id.
        format: "hf" or "open_clip", for a folder that holds both.
        part: prefix of the weights to take from a file with several towers, such as "teacher.backbone".
        architecture: timm's or open_clip's name, for a bare state dict that does not state it.
        num_heads: attention heads, for a file that does not state them.
        verify: compare every file of the folder with the manifest that `save_pretrained` wrote there, before anything is
            loaded. It shows damage and accidents; it is no signature.
        pixels: image backend of transformers whose pixels `preprocess` makes, of a folder of transformers: "pil", or
            "torchvision", which transformers takes where torchvision is installed; they differ by up to 1/255, more on
            extreme shapes. A class that transformers has in one of them alone makes the same pixels either way.

    Returns:
        An `Encoder` in evaluation mode, or a `FusedEncoder`.

    Raises:
        ValueError: nothing at `source`, a format that is unknown or not stated, configuration and weights that disagree,
            a weight that is missing or unused, preprocessing that was changed since the encoder was saved; pixels of
            torchvision for another format, or for an encoder that was saved with others; with verify, a folder without a
            manifest, or with files that are changed, missing or extra.
    """
    if not isinstance(source, str | Path | Checkpoint) or not str(source).strip():
        raise ValueError(f"source is {source!r}, expected a local folder or file, or a hub id")
    if format not in (None, "hf", "open_clip"):
        raise ValueError(f'format is {format!r}, expected "hf" or "open_clip", for a folder that holds both')
    for name, text in (("part", part), ("architecture", architecture), ("reference", reference)):
        if text is not None and not isinstance(text, str):
            raise ValueError(f"{name} is {text!r}, expected a name")
    if num_heads is not None and (not isinstance(num_heads, int) or num_heads < 1):
        raise ValueError(f"num_heads is {num_heads!r}, expected a whole number of at least 1")
    check_backend(pixels)
    one = (image_size, image_size) if isinstance(image_size, int) else image_size
    asked = one if isinstance(one, tuple) and len(one) == 2 and all(isinstance(side, int) for side in one) else None
    hints = Hints(
        format=format, part=part, architecture=architecture, num_heads=num_heads, image_size=asked, pixels=pixels
    )
    options = _Options(reference, remainder, known_dtype(dtype), known_device(device), revision, hints)
    for one in (source.split(" + ") if isinstance(source, str) else [source]) if verify else ():
        _verify(one.strip() if isinstance(one, str) else one, revision)
    return _load(source, tap, image_size, options)


def load_shape(
    source: str | Path, *, tap: Tap | Sequence[Tap] | None = None, image_size: Size | list[Size] | None = None
) -> Encoder | FusedEncoder:
    """The encoder of `load` without its weights, on the meta device: architecture, preprocessing and tap.

    Arguments and errors as `load`; weights that do not fit the configuration are not noticed.
    """
    options = _Options(None, None, torch.float32, torch.device("meta"), None, Hints(), has_weights=False)
    return _load(source, tap, image_size, options)


def _load(
    source: str | Path | Checkpoint,
    tap: Tap | Sequence[Tap] | None,
    image_size: Size | list[Size] | None,
    options: "_Options",
) -> Encoder | FusedEncoder:
    if isinstance(source, str) and " + " in source:
        names = [name.strip() for name in source.split(" + ")]
        return _fuse(names, [_find_towers(name, options) for name in names], tap, image_size, options)
    found = _find_towers(source, options)
    if len(found) > 1:
        return _fuse([str(source)] * len(found), [[one] for one in found], tap, image_size, options)
    if tap is not None and not isinstance(tap, Tap):
        raise ValueError(f"{source} is one tower and tap is {tap!r}: pass one Tap, such as Tap(layer=-2, norm=False)")
    if isinstance(image_size, list):
        raise ValueError(f"{source} is one tower and image_size is {image_size!r}: pass one side, or (height, width)")
    return _encoder(found[0], tap, image_size, options)


def _verify(source: str | Path | Checkpoint, revision: str | None) -> None:
    """Raise ValueError unless the folder is as it was saved."""
    folder = source.path if isinstance(source, Checkpoint) else resolve(source, revision)
    if hub_id(source):  # of which only configurations and weights were fetched
        resolve(str(source), revision, also=names_in(folder))
    check(folder)


@dataclass(frozen=True)
class _Options:
    reference: str | None
    remainder: Remainder | None
    dtype: torch.dtype
    device: torch.device
    revision: str | None
    hints: Hints
    has_weights: bool = True
    """False for a model on the meta device, whose weights are not read."""


@dataclass(frozen=True)
class _LoadedTower:
    tower: Tower
    sidecar: dict[str, Any]
    """Content of vlm_vision.json, which `Encoder.save_pretrained` writes."""
    hub_id: str = ""
    """Hub id that the tower came from; "" for a local file."""


def _find_towers(source: str | Path | Checkpoint, options: _Options) -> list[_LoadedTower]:
    checkpoint = Checkpoint.at(source, options.revision)
    sidecar = _sidecar(checkpoint) if checkpoint.has(SIDECAR) else {}
    if "towers" in sidecar:
        towers = [checkpoint.other(resolve(checkpoint.path / name, None)) for name in sidecar["towers"]]
        return [found for tower in towers for found in _find_towers(tower, options)]
    return [_LoadedTower(tower, sidecar, checkpoint.hub_id) for tower in sniff.towers(checkpoint, options.hints)]


_KINDS: dict[str, type] = {
    "towers": list, "tap": dict, "family": str, "reference": str, "remainder": str, "preprocess": dict, "preprocess_fingerprint": str
}  # fmt: skip


def _sidecar(checkpoint: Checkpoint) -> dict[str, Any]:
    """Content of vlm_vision.json. Raises ValueError if `save_pretrained` cannot have written it."""
    sidecar = checkpoint.json(SIDECAR)
    wrong = [name for name, kind in _KINDS.items() if not isinstance(sidecar.get(name, kind()), kind)]
    names = sidecar.get("towers", ["a"])
    if not wrong and not (names and all(isinstance(name, str) and Path(name).name == name for name in names)):
        wrong = ["towers"]
    if not wrong and sidecar.get("tap", {"layer": 0, "norm": 0}).keys() - {"more"} != {"layer", "norm"}:
        wrong = ["tap"]
    if not wrong and sidecar.get("family", "vit") not in RESIZE_BY_FAMILY:
        wrong = ["family"]
    if wrong:
        raise ValueError(
            f"{checkpoint.path / SIDECAR} has no usable {', '.join(wrong)}: the file was edited; save the encoder again"
        )
    return sidecar


def _encoder(found: _LoadedTower, tap: Tap | None, image_size: Size | None, options: _Options) -> Encoder:
    tower, sidecar = found.tower, found.sidecar
    family = sidecar.get("family", tower.family)  # a public layout may hold a family under another's name: DINO as ViT
    reference = str(options.reference or sidecar.get("reference", tower.reference))
    config = tower.config
    if config.position == "learned" and (family, reference) != (tower.family, tower.reference):
        config = replace(config, position_resize=resize_rule(family, reference))
    elif reference != tower.reference:
        resize_rule(family, reference)  # says if there is no such reference
    config = replace(config, remainder=options.remainder or sidecar.get("remainder", config.remainder))
    preprocess = Preprocess.from_dict(sidecar["preprocess"]) if "preprocess" in sidecar else tower.preprocess
    if "preprocess_fingerprint" in sidecar:
        _check_saved_pixels(tower, options.hints.pixels, sidecar["preprocess_fingerprint"])
        check_fingerprint(preprocess, sidecar["preprocess_fingerprint"], tower.source)
    if tap is None:
        tap = Tap(**sidecar["tap"]) if "tap" in sidecar else tower.tap
    if image_size is not None:
        height, width = _height_width(image_size, config, tap)
        if preprocess.resize == "max_patches":
            preprocess = preprocess.with_budget(math.prod(config.grid_of(height, width)), config.patch_size)
        else:
            preprocess = preprocess.at(height, width)
    tower = replace(tower, config=config)
    model = build(tower, dtype=options.dtype, device=options.device) if options.has_weights else build_shape(tower)
    encoder = Encoder(model, preprocess=preprocess, tap=tap, origin=Origin(family, reference))
    encoder.hub_id = found.hub_id
    return encoder.eval()


def _check_saved_pixels(tower: Tower, pixels: str, saved: str) -> None:
    """Raise ValueError if pixels are asked for that are not those of the saved fingerprint."""
    if pixels != "pil" and tower.preprocess.fingerprint != saved:
        raise ValueError(
            f"{tower.source} was saved with another preprocessing, fingerprint {saved}, than pixels={pixels!r} makes: "
            "leave pixels out"
        )


def _fuse(
    sources: Sequence[str],
    towers: Sequence[list[_LoadedTower]],
    tap: Tap | Sequence[Tap] | None,
    image_size: Size | list[Size] | None,
    options: _Options,
) -> FusedEncoder:
    taps = [tap] * len(sources) if tap is None or isinstance(tap, Tap) else list(tap)
    if len(taps) != len(sources):
        raise ValueError(f"{len(sources)} towers and {len(taps)} taps: pass one tap, or one for each tower")
    sizes = image_size if isinstance(image_size, list) else [image_size] * len(sources)
    if len(sizes) != len(sources):
        raise ValueError(
            f"{len(sources)} towers and {len(sizes)} image sizes: pass one, or a list with one for each tower"
        )
    for source, found in zip(sources, towers, strict=True):
        if len(found) > 1:
            raise ValueError(f"{source} is itself a fused encoder: name its towers in one 'a + b + c'")
    return FusedEncoder(
        [_encoder(found[0], t, size, options) for found, t, size in zip(towers, taps, sizes, strict=True)]
    ).eval()


def known_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype, if an encoder computes in it. Raises ValueError if not."""
    if dtype not in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        raise ValueError(f"dtype is {dtype!r}, expected torch.float32, bfloat16, float16 or float64")
    return dtype


def known_device(device: str | torch.device) -> torch.device:
    """The device, if this machine has it. Raises ValueError if not."""
    try:
        known = torch.device(device)
        torch.empty(0, device=known)
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(
            f"device {device!r} is not available on this machine ({reason}): use 'cpu', or one that is"
        ) from None
    return known


def _height_width(image_size: Any, vit: ViTConfig, tap: Tap) -> tuple[int, int]:
    sides = (image_size, image_size) if isinstance(image_size, int) else image_size
    if not isinstance(sides, tuple) or len(sides) != 2 or not all(isinstance(side, int) for side in sides):
        raise ValueError(f"image_size is {image_size!r}, expected a side or (height, width) in whole pixels")
    vit.token_grid(*sides, tap)
    return sides


def load_projector(
    source: str | Path | Checkpoint,
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    revision: str | None = None,
) -> Projector:
    """The projector of a published model.

    LLaVA (in transformers, and its own linear and mlpNx_gelu), Prismatic, OpenVLA (and OpenVLA-OFT, with its adapter where it
    is not merged), PaliGemma, pi0 (LeRobot's, openpi's, transformers'), Idefics, SmolVLM, SmolVLA, BLIP-2, LeRobot's policies
    around a vision-language model, and the mergers of the towers that docs/census.md lists. It takes the tokens of their
    tower: after the final norm for BLIP-2, whose class token is left out here; before any norm for Qwen2-VL and Qwen2.5-VL; of
    several blocks in the channels for Molmo2 and ViP-LLaVA.

    What follows the projector is part of the model: PaliGemma and pi0 divide its output by the square root of the
    language model's width.

    Args:
        source: hub id, folder or file. A file alone does not state its activation: the usual one is assumed.
        dtype, device: of the weights.
        revision: branch, tag or commit of a hub id.

    Raises:
        ValueError: no projector of a known form in it, or a weight that is missing or unused.
    """
    checkpoint = described(Checkpoint.at(source, revision))
    try:
        found = find(checkpoint, weights_of(checkpoint))
    except MALFORMED_ERRORS as error:
        raise ValueError(f"{checkpoint} describes its projector in an unknown way ({error!r})") from None
    with torch.device("meta"):
        projector = projectors.build(found.name, **found.options)
    shapes = {name: value.shape for name, value in projector.state_dict().items()}
    state = read_state_dict(
        found.keys, shapes, found.weights, source=str(checkpoint), dtype=known_dtype(dtype), device=known_device(device)
    )
    projector.load_state_dict(state, strict=True, assign=True)
    return projector.eval()
