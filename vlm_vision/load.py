"""`vlm_vision.load`: from a name to an encoder."""

import difflib
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from vlm_vision.checkpoints import hf, keys
from vlm_vision.checkpoints.files import WeightFiles, read_json
from vlm_vision.checkpoints.hf_preprocess import from_hf
from vlm_vision.checkpoints.save import SIDECAR
from vlm_vision.config import Tap, ViTConfig
from vlm_vision.encoder import Encoder, Origin, check_fingerprint
from vlm_vision.fused import FusedEncoder
from vlm_vision.preprocess import Preprocess
from vlm_vision.vit import VisionTransformer

_HUB_FILES = ["*.json", "*.safetensors", "pytorch_model*.bin"]


def load(
    source: str | Path,
    *,
    tap: Tap | Sequence[Tap] | None = None,
    reference: str | None = None,
    image_size: int | tuple[int, int] | list[int | tuple[int, int]] | None = None,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    revision: str | None = None,
) -> Encoder | FusedEncoder:
    """Load a vision encoder, exactly as its reference computes it.

    Args:
        source: local folder or hub id. "a + b" loads several and fuses them, channels in the order written. Of a whole
            model (CLIP, SigLIP, LLaVA) only the vision part is read.
        tap: the tokens that calls return: default the last block with the family's final norm. For a fused encoder one
            for all towers or one each.
        reference: whose resize of the position table to reproduce off the native grid: "transformers", "timm",
            "original", "big_vision" or "open_clip", those that the family has. Default: the one of the format.
        image_size: side, or (height, width), in pixels that `preprocess` should make instead of its own; for several
            towers also a list with one for each.
        dtype: of weights and computation. Half precision files are widened to it.
        device: where the weights go.
        revision: branch, tag or commit of a hub id.

    Returns:
        An `Encoder` in evaluation mode, or a `FusedEncoder`.

    Raises:
        ValueError: nothing at `source`, a format that is not known, configuration and weights that disagree, a weight
            that is missing or unused, preprocessing that was changed since the encoder was saved.
    """
    if not isinstance(source, str | Path) or not str(source).strip():
        raise ValueError(f"source is {source!r}, expected a local folder or a hub id")
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ValueError(f"dtype is {dtype!r}, expected a floating point type such as torch.float32")
    device = known_device(device)
    options: dict[str, Any] = dict(
        reference=reference, image_size=image_size, dtype=dtype, device=device, revision=revision
    )
    if isinstance(source, str) and " + " in source:
        return _fuse([part.strip() for part in source.split(" + ")], tap, options)
    folder = _resolve(source, revision)
    sidecar = read_json(folder / SIDECAR) if (folder / SIDECAR).is_file() else {}
    if "towers" in sidecar:
        return _fuse([folder / name for name in sidecar["towers"]], tap, options)
    if tap is not None and not isinstance(tap, Tap):
        raise ValueError(f"{source} is one tower and tap is {tap!r}: pass one Tap, such as Tap(layer=-2, norm=False)")

    config, family_name, weights, prefix = _sniff(folder)
    family = hf.FAMILIES[family_name]
    names = frozenset(name.removeprefix(prefix) for name in weights.shapes if name.startswith(prefix))
    names |= frozenset(name for name in weights.shapes if name in family.beside)
    try:
        vit = family.read_config(config, names)
    except (TypeError, KeyError, AttributeError, IndexError) as error:
        raise ValueError(
            f"{folder / 'config.json'} has a value of the wrong kind ({error!r}): download it again"
        ) from None
    except ValueError as error:
        raise ValueError(f"{folder / 'config.json'}: {error}") from None
    reference = str(reference or sidecar.get("reference", "transformers"))
    vit = replace(vit, position_resize=_resize_rule(family_name, reference, vit))
    with torch.device("meta"):
        model = VisionTransformer(vit)

    preprocess = _preprocess(folder, family_name, vit)
    if "preprocess_fingerprint" in sidecar:
        check_fingerprint(preprocess, sidecar["preprocess_fingerprint"], str(folder))
    if image_size is not None:
        preprocess = preprocess.at(*_height_width(image_size, vit))
    if tap is None:
        tap = Tap(**sidecar["tap"]) if "tap" in sidecar else Tap()
    _fill(model, family, weights, prefix, source=str(folder), dtype=dtype, device=device)
    return Encoder(model, preprocess=preprocess, tap=tap, origin=Origin(family_name, reference)).eval()


def _fuse(sources: Sequence[str | Path], tap: Tap | Sequence[Tap] | None, options: dict[str, Any]) -> FusedEncoder:
    taps = [tap] * len(sources) if tap is None or isinstance(tap, Tap) else list(tap)
    if len(taps) != len(sources):
        raise ValueError(f"{len(sources)} towers and {len(taps)} taps: give one tap, or one for each tower")
    sizes = options.pop("image_size")
    sizes = sizes if isinstance(sizes, list) else [sizes] * len(sources)
    if len(sizes) != len(sources):
        raise ValueError(
            f"{len(sources)} towers and {len(sizes)} image sizes: give one, or a list with one for each tower"
        )
    towers = [
        load(source, tap=t, image_size=size, **options) for source, t, size in zip(sources, taps, sizes, strict=True)
    ]
    for source, tower in zip(sources, towers, strict=True):
        if not isinstance(tower, Encoder):
            raise ValueError(f"{source} is itself a fused encoder: write its towers out in one 'a + b + c'")
    return FusedEncoder(towers).eval()  # type: ignore[arg-type]


def _resolve(source: str | Path, revision: str | None) -> Path:
    path = Path(source).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise ValueError(
            f"{path} is a file of a format that is not known: expected a checkpoint folder with config.json and weights"
        )
    if isinstance(source, Path) or not re.fullmatch(r"[\w.-]+/[\w.-]+", source) or source.startswith((".", "/")):
        near = (
            difflib.get_close_matches(path.name, [p.name for p in path.parent.iterdir()])
            if path.parent.is_dir()
            else []
        )
        hint = f"; did you mean {path.parent / near[0]}?" if near else ""
        raise ValueError(f"there is no folder {source}, and it is no hub id of the form owner/name{hint}")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(source, revision=revision, allow_patterns=_HUB_FILES))
    except Exception as error:  # the hub client raises many kinds: offline, unknown, gated
        reason = str(error).strip().split("\n")[0]
        raise ValueError(
            f"there is no folder {source}, and the hub did not give it ({type(error).__name__}: {reason})"
        ) from error


def _sniff(folder: Path) -> tuple[dict[str, Any], str, WeightFiles, str]:
    """(vision config with defaults, family, weights, prefix of the vision part)"""
    config = read_json(folder / "config.json")
    model_type = config.get("model_type")
    name: Any = hf.WHOLE_MODELS.get(str(model_type), model_type)
    whole = str(model_type) in hf.WHOLE_MODELS
    if whole:
        part = config.get("vision_config") or {}
        if not isinstance(part, dict):
            raise ValueError(f"{folder / 'config.json'} has a vision_config that is no object: download it again")
        name = part.get("model_type", name)
        part = {label: config[label] for label in ("id2label", "num_labels") if label in config} | part
        if model_type == "clip":
            part = part | {"projection_dim": config.get("projection_dim", 512)}
        config = part
    if not isinstance(name, str) or name not in hf.FAMILIES:
        known = ", ".join([*hf.FAMILIES, *hf.WHOLE_MODELS])
        near = difflib.get_close_matches(str(name), [*hf.FAMILIES, *hf.WHOLE_MODELS])
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{folder / 'config.json'} has model_type {name!r}, expected one of {known}{hint}")
    family = hf.FAMILIES[str(name)]
    weights = WeightFiles(folder)
    prefixes = [stored.removesuffix(family.landmark) for stored in weights.shapes if stored.endswith(family.landmark)]
    if len(prefixes) != 1:
        found = (
            f"{len(prefixes)} towers ({', '.join(prefixes)})" if prefixes else f"no weight ending in {family.landmark}"
        )
        raise ValueError(
            f"{folder} should hold one {name} tower, found {found}: configuration and weights are not of one model"
        )
    config = family.defaults | {field: value for field, value in config.items() if value is not None}
    if model_type == "llava" and "vision_use_head" in config:  # LLaVA drops the pooling head whatever its config says
        config["vision_use_head"] = f"{prefixes[0]}head.probe" in weights.shapes
    return config, str(name), weights, prefixes[0]


def _fill(
    model: VisionTransformer,
    family: hf.Family,
    weights: WeightFiles,
    prefix: str,
    *,
    source: str,
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    stored = {
        name if name in family.beside else name.removeprefix(prefix): name
        for name in weights.shapes
        if not name.endswith("position_ids") and not (prefix and name.startswith(hf.SIBLINGS))
    }
    state = keys.read(
        family.keys(model.config),
        {name: value.shape for name, value in model.state_dict().items()},
        {ours: weights.shapes[theirs] for ours, theirs in stored.items()},
        lambda name: weights.get(stored[name]).to(device=device, dtype=dtype),
        source=source,
    )
    model.load_state_dict(state, strict=True, assign=True)


def known_device(device: str | torch.device) -> torch.device:
    """The device, if this machine has it. Raises ValueError if not."""
    try:
        known = torch.device(device)
        torch.empty(0, device=known)
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"device {device!r} is not to be had here ({reason}): use 'cpu', or one that is") from None
    return known


def _height_width(image_size: Any, vit: ViTConfig) -> tuple[int, int]:
    sides = (image_size, image_size) if isinstance(image_size, int) else image_size
    if not isinstance(sides, tuple) or len(sides) != 2 or not all(isinstance(side, int) for side in sides):
        raise ValueError(f"image_size is {image_size!r}, expected a side or (height, width) in whole pixels")
    vit.num_patch_tokens(*sides)
    return sides


def _resize_rule(family: str, reference: str, config: ViTConfig) -> str:
    rules = {"transformers": config.position_resize, "timm": "bicubic_antialias"} | hf.FAMILIES[family].original_resize
    if reference not in rules:
        raise ValueError(
            f"reference {reference!r} has no position resize for {family}: expected one of {', '.join(rules)}"
        )
    return rules[reference]


def _preprocess(folder: Path, family: str, vit: ViTConfig) -> Preprocess:
    """From preprocessor_config.json, or processor_config.json of transformers 5, or the family's public default."""
    file = folder / "preprocessor_config.json"
    if file.is_file():
        described = read_json(file)
    else:
        file = folder / "processor_config.json"
        described = read_json(file).get("image_processor") if file.is_file() else None
    if described is None:
        return from_hf(hf.FAMILIES[family].preprocessor(vit))
    try:
        return from_hf(described)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    except (TypeError, KeyError, AttributeError, IndexError) as error:
        raise ValueError(f"{file} has a value of the wrong kind ({error!r}): download it again") from None
