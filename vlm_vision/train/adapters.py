"""LoRA adapters: saved, loaded, and merged into the weights, each with checks against silent errors.

A saved adapter records the weights and the preprocessing that it was trained on. `load_adapter` refuses another base model,
and one that the adapter is merged into already. A merge runs in float32, and its logits are compared with those of the
adapters before anything is returned.
"""

import copy
import hashlib
import json
import logging
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from peft.utils import ModulesToSaveWrapper
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from vlm_vision.checkpoints.hf.card import IMAGE, Card, write_card
from vlm_vision.checkpoints.manifest import write_manifest
from vlm_vision.files import read_json, whole, write_json
from vlm_vision.train.trainable import quiet_peft, unwrapped
from vlm_vision.vlm.model import VisionLanguageModel

log = logging.getLogger(__name__)

SIDECAR, WEIGHTS = "vlm_vision_adapter.json", "adapter_model.safetensors"
GROUP = {"encoder": "vision", "projector": "projector", "newline": "projector", "language_model": "language"}
"""Module of the model -> the group it belongs to."""
HASHED_VALUES = 2048
"""Number of values of each base weight, the first ones, in the fingerprint."""
LARGEST_ERROR = 1e-4
"""Largest error of a merge in float32, relative to the largest logit."""
LARGEST_SHARE = 0.1
"""Largest error of a merge in half precision, relative to the effect of the adapters on the logits."""


def save_adapter(wrapped: nn.Module, folder: str | Path) -> None:
    """Write adapters and groups trained in full: adapter_model.safetensors, adapter_config.json (both of peft) and
    vlm_vision_adapter.json.

    Raises:
        ValueError: no adapters, or adapters that are merged into their layers at present.
    """
    peft = _adapted(wrapped)
    model = unwrapped(peft)
    about = {
        "lora": _groups(_lora_layers(model)),
        "full": _groups(_full_modules(model)),
        "base_fingerprint": base_fingerprint(model, without=_full_modules(model)),
        "sight_fingerprint": vision_fingerprint(model),
    }
    with whole(Path(folder)) as staging:
        peft.save_pretrained(str(staging), save_embedding_layers=False)
        (staging / "README.md").unlink(missing_ok=True)  # peft's form to fill in
        write_json(staging / SIDECAR, about)
        write_card(staging, _card(model, about))
        write_manifest(staging)


def _card(model: VisionLanguageModel, about: dict[str, Any]) -> Card:
    base, card = model.hub_id or "BASE", model.card()
    groups = ", ".join([*(f"{one} by LoRA" for one in about["lora"]), *(f"{one} in full" for one in about["full"])])
    load = f"""
import vlm_vision as vv
from PIL import Image
from vlm_vision.train.adapters import load_adapter

base = vv.VisionLanguageModel.from_pretrained("{base}")  # the model that the adapters were trained on
model = load_adapter(base, ".")
{IMAGE}
print(base.answer(image, "What is this?", max_new_tokens=20))  # base holds the adapters now
"""
    return replace(
        card,
        title=f"Adapters of a {card.title[0].lower()}{card.title[1:]}",
        about=f"Trained: {groups}. Fingerprint of the base's weights: {about['base_fingerprint']}. {card.about} with adapters",
        load=load,
        notes=("Another base is an error. peft reads the folder too.",),
        tags=("peft", "lora", *card.tags),
    )


def load_adapter(model: VisionLanguageModel, folder: str | Path) -> nn.Module:
    """Put saved adapters on the model they were trained on. It is changed in place; its wrapper is returned, in
    evaluation mode and frozen.

    Strict where peft warns: a missing or unused weight is an error, and the model is then left as it was.

    Raises:
        ValueError: another base than the adapter's, one that it is merged into, other preprocessing, or a damaged folder.
    """
    folder = Path(folder)
    if (folder / "adapter_config.json").is_file() and not (folder / SIDECAR).is_file():
        raise ValueError(
            f"{folder} has no {SIDECAR}, which save_adapter writes with fingerprints of the base and its preprocessing: peft "
            "itself wrote the folder; load it with PeftModel.from_pretrained, which does not compare the base"
        )
    about, config = read_json(folder / SIDECAR), read_json(folder / "adapter_config.json")
    unwrapped(model)
    if any(isinstance(module, LoraLayer) for module in model.modules()):
        raise ValueError("this model has adapters already: load new ones on a model without adapters")
    if vision_fingerprint(model) != about.get("sight_fingerprint"):
        raise ValueError(
            f"{folder} was trained with another preprocessing, tap or image layout than this model has: load a model with the "
            "same ones, or the adapters get other tokens"
        )
    if base_fingerprint(model, without=config.get("modules_to_save") or []) != about.get("base_fingerprint"):
        raise ValueError(
            f"{folder} was trained on other weights than this model has: load the base model that it was trained on, "
            "without these adapters merged into it"
        )
    before = dict(model.named_modules())
    trains = {weight: weight.requires_grad for weight in model.parameters()}
    try:
        with quiet_peft():
            wrapped = PeftModel.from_pretrained(model, str(folder))
        _check_complete(wrapped, folder)
    except Exception as error:  # peft's are of many kinds
        for name, module in before.items():
            if name and model.get_submodule(name) is not module:
                model.set_submodule(name, module)
        for weight, trained in trains.items():
            weight.requires_grad_(trained)
        raise ValueError(f"{folder} does not fit this model: {' '.join(str(error).split())[:300]}") from error
    return wrapped.eval()


@torch.no_grad()
def merge(wrapped: nn.Module, batch: dict[str, Tensor]) -> VisionLanguageModel:
    """The plain model with the adapters in its weights, compared with them on `batch` before it is returned, unfrozen.

    Each weight becomes W + scale * B A in float32 and is rounded once, to the type it is stored in. The logits of the
    batch are computed in float32 with adapters, without, and with the merged and rounded weights; both figures are
    logged. `wrapped` stays as it is; a copy in float32 needs memory in addition to it, so move a large model to the CPU first.

    Args:
        wrapped: of `set_trainable` or `load_adapter`; a plain model is returned as it is.
        batch: the model's inputs, images among them; labels are not used.

    Raises:
        ValueError: weights that are not finite; a merge that changes a float32 model's logits by more than 1e-4 of the
            largest, or another's by more than a tenth of what the adapters do.
    """
    if isinstance(wrapped, VisionLanguageModel):
        return wrapped
    peft = _adapted(wrapped)
    for name, weight in get_peft_model_state_dict(peft, save_embedding_layers=False).items():
        if not torch.isfinite(weight).all():
            raise ValueError(f"{name} holds values that are not finite: load an earlier checkpoint")
    half = any(layer.get_base_layer().weight.dtype != torch.float32 for layer in _lora_layers(peft).values())
    peft = copy.deepcopy(peft).eval()
    stored = [
        (module, name, value.dtype)
        for module in peft.modules()
        for name, value in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
        if value.is_floating_point()
    ]
    peft.float()
    adapted = _logits(unwrapped(peft), batch)
    _switch(peft, False)
    plain = _logits(unwrapped(peft), batch)
    _switch(peft, True)
    model: VisionLanguageModel = peft.merge_and_unload(safe_merge=True)  # type: ignore[operator]
    _cast(stored)
    _check_merge(plain, adapted, _logits(model.float(), batch), half=half)
    _cast(stored)
    return model.requires_grad_(True)


def _check_merge(plain: Tensor, adapted: Tensor, merged: Tensor, *, half: bool) -> None:
    """Log what the merge and the adapters each do to the logits. Raises ValueError if the merge does too much."""
    error, effect = _rms(merged - adapted), _rms(adapted - plain)
    worst, scale = (merged - adapted).abs().max().item(), adapted.abs().max().item()
    figures = (
        f"merging changes the logits by {error:.2g}, at worst {worst:.2g} of {scale:.2g}, and the adapters change them by "
        f"{effect:.2g} (root mean square)"
    )
    if half and not error <= LARGEST_SHARE * effect:
        raise ValueError(
            f"{figures}: the stored type is too coarse for the adapters: load the base in float32 and merge it there"
        )
    if not half and not worst <= LARGEST_ERROR * scale:
        raise ValueError(f"{figures}: these adapters cannot be merged: keep them separate from the base model")
    log.info(figures)


def base_fingerprint(model: VisionLanguageModel, *, without: Iterable[str]) -> str:
    """16 hex digits of the weights under the adapters: name, shape and first values of each, but of the modules `without`.

    Values are rounded to bfloat16, so that the same weights in float32 have the same fingerprint.
    """
    digest, left_out = hashlib.sha256(), tuple(f"{name}." for name in without)
    weights = {name.replace(".base_layer.", "."): weight for name, weight in model.named_parameters()}
    for name in sorted(weights):
        if not name.startswith(left_out) and ".lora_" not in name:
            head = weights[name].detach().flatten()[:HASHED_VALUES].to("cpu", torch.bfloat16)
            digest.update(f"{name}{tuple(weights[name].shape)}".encode())
            digest.update(head.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def vision_fingerprint(model: VisionLanguageModel) -> str:
    """16 hex digits of what decides the patch tokens, apart from weights: architecture, preprocessing, tap, image layout."""
    described = {"encoder": model.encoder.to_dict(), "layout": model.layout.to_dict()}
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:16]


def _adapted(wrapped: nn.Module) -> PeftModel:
    if not isinstance(wrapped, PeftModel):
        raise ValueError(
            f"expected the model with adapters that set_trainable returned, got a {type(wrapped).__name__}: remove other "
            "wrappers, or call save_pretrained if the model has no adapters"
        )
    if any(layer.merged for layer in _lora_layers(wrapped).values()):
        raise ValueError("the adapters are merged into their layers: call unmerge_adapter first")
    return wrapped


def _lora_layers(model: nn.Module) -> dict[str, Any]:
    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}


def _full_modules(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, ModulesToSaveWrapper)]


def _groups(names: Iterable[str]) -> list[str]:
    return sorted({GROUP[name.split(".")[0]] for name in names})


def _check_complete(wrapped: PeftModel, folder: Path) -> None:
    """Raise ValueError unless the file holds the weights of these adapters, all and no others."""
    wanted = {
        name: list(weight.shape)
        for name, weight in get_peft_model_state_dict(wrapped, save_embedding_layers=False).items()
    }
    try:
        with safe_open(folder / WEIGHTS, framework="pt") as file:
            found = {name: file.get_slice(name).get_shape() for name in file.keys()}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{WEIGHTS} is damaged ({error})") from None
    for what, names in (("lacks", wanted.keys() - found.keys()), ("has unused", found.keys() - wanted.keys())):
        if names:
            raise ValueError(f"{WEIGHTS} {what} {', '.join(sorted(names)[:3])}")


def _switch(model: nn.Module, enabled: bool) -> None:
    """LoRA on or off; groups trained in full stay."""
    for layer in _lora_layers(model).values():
        layer.enable_adapters(enabled)


def _cast(stored: list[tuple[nn.Module, str, torch.dtype]]) -> None:
    for module, name, dtype in stored:
        tensor = getattr(module, name)
        tensor.data = tensor.data.to(dtype)


def _logits(model: VisionLanguageModel, batch: dict[str, Tensor]) -> Tensor:
    """Logits at the tokens of a batch, padding left out, (tokens, vocabulary)."""
    inputs = {name: value.to(model.device) for name, value in batch.items() if name != "labels"}
    with torch.autocast(model.device.type, enabled=False):
        logits = model(**inputs, use_cache=False).logits
    mask = inputs.get("attention_mask")
    return logits.flatten(0, 1) if mask is None else logits[mask.bool()]


def _rms(values: Tensor) -> float:
    return values.square().mean().sqrt().item()
