"""The groups of a `VisionLanguageModel` for training: each is frozen, has LoRA adapters, or trains in full.

Three groups: vision is the encoder, projector what stands between (with the newline token of a layout that has one),
language the language model.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.utils import ModulesToSaveWrapper
from torch import nn
from transformers.pytorch_utils import Conv1D  # GPT-2's linear layer

from vlm_vision.encoder import Encoder
from vlm_vision.nn.blocks import Film
from vlm_vision.vlm.model import VisionLanguageModel

How = Literal["frozen", "lora", "full"]


def group_modules(model: nn.Module) -> dict[str, nn.ModuleList]:
    """The groups by name, each as one module, for `parameter_groups` and norms; of a model wrapped by peft too."""
    vlm = unwrapped(model)
    between: list[nn.Module] = [vlm.projector]
    if vlm.image_newline is not None:
        between.append(nn.ParameterList([vlm.image_newline]))
    parts = {"vision": [vlm.encoder], "projector": between, "language": [vlm.language_model]}
    return {name: nn.ModuleList(modules) for name, modules in parts.items()}


def set_trainable(
    model: VisionLanguageModel,
    *,
    vision: How,
    projector: Literal["frozen", "full"],
    language: How,
    lora_rank: int = 16,
    lora_alpha: int = 32,
    lora_dropout: float = 0.0,
) -> nn.Module:
    """Freeze and unfreeze the groups, and put LoRA adapters on every linear layer of those that ask for them.

    FiLM's own layers train in full there: they begin as zeros, which are no weights to adapt (so does OpenVLA-OFT).

    What the encoder's tap does not reach (blocks past it, pooling, heads), and mergers of deep features that the language
    model does not read, stay frozen whatever is asked. Next to a group with adapters, one that trains in full becomes part
    of the adapter (peft's `modules_to_save`): saved and loaded with it, also by peft itself. A copy trains then, and the
    weights it started from are kept: they take memory twice.

    Returns:
        The model to train: the model itself, or the peft wrapper around it. `vlm_vision.train.adapters` saves, loads and
        merges the wrapper.

    Raises:
        ValueError: the model has adapters already.
    """
    if not isinstance(model, VisionLanguageModel) or any(isinstance(one, LoraLayer) for one in model.modules()):
        raise ValueError("this model has adapters already: merge them, or start from a model without adapters")
    asked: dict[str, How] = {"vision": vision, "projector": projector, "language": language}
    wrapped: nn.Module = model
    for name, group in group_modules(model).items():
        group.requires_grad_(asked[name] == "full")
    _freeze_idle(model)
    adapted = [_PARTS[name] for name, how in asked.items() if how == "lora"]
    if adapted:
        idle = {id(module) for part in _idle(model) for module in part.modules()}
        films = _films(model, without=idle)
        kept = [name for part, how in asked.items() if how == "full" for name in _whole(model, part)]
        lora = LoraConfig(
            r=lora_rank,
            lora_alpha=lora_alpha,
            lora_dropout=lora_dropout,
            target_modules=[
                name for part in adapted for name in _linear_layers(model, part, without=idle) if name not in films
            ],
            modules_to_save=[*kept, *(films if vision == "lora" else [])] or None,
        )
        with quiet_peft():
            wrapped = get_peft_model(model, lora)
        _freeze_idle(model)
        _check_whole(model, lora.modules_to_save or [])
    return wrapped


@contextmanager
def quiet_peft() -> Iterator[None]:
    """Without warnings that need no action: of GPT-2's linear layers, which peft sees to itself, and of a name in
    transformers that peft still uses."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set")
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
        yield


def unwrapped(model: nn.Module) -> VisionLanguageModel:
    """The `VisionLanguageModel` in peft's wrapper, with adapters in its layers; a plain one is returned as it is."""
    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    if not isinstance(inner, VisionLanguageModel):
        raise ValueError(f"expected a VisionLanguageModel, plain or in peft's wrapper, got a {type(inner).__name__}")
    return inner


def trainable_table(model: nn.Module) -> str:
    """One line for each group: frozen, LoRA or full, how many parameters train of how many, and their size.

    The size is that of what trains, as it is stored; adapters count on top of the group's own parameters.
    """
    lines = [f"{'group':10} {'how':14} {'trains':>15} {'of':>15} {'MiB':>9}"]
    for name, group in group_modules(model).items():
        ranks = sorted({rank for one in group.modules() if isinstance(one, LoraLayer) for rank in one.r.values()})
        own = [w for path, w in group.named_parameters() if ".lora_" not in path and ".original_module." not in path]
        trains = [w for w in group.parameters() if w.requires_grad]
        how = "LoRA rank " + ", ".join(map(str, ranks)) if ranks else "full" if trains else "frozen"
        count, total = sum(w.numel() for w in trains), sum(w.numel() for w in own)
        lines.append(f"{name:10} {how:14} {count:15,} {total:15,} {sum(w.nbytes for w in trains) / 2**20:9.1f}")
    return "\n".join(lines)


_PARTS = {"vision": "encoder", "projector": "projector", "language": "language_model"}
"""Group -> the module of the model that LoRA goes into."""


def _whole(model: VisionLanguageModel, group: str) -> list[str]:
    """Names of the modules that hold all weights of a group, for peft to copy.

    Those right under encoder and projector where they have no weights of their own, so that both stay what they are. The
    language model is one, for its tied weights.
    """
    if group == "language":
        return [_PARTS[group]]
    names = list(_holders(model.get_submodule(_PARTS[group]), _PARTS[group]))
    newline = group == "projector" and model.image_newline is not None
    return [*names, "newline"] if newline else names


def _films(model: VisionLanguageModel, *, without: set[int]) -> list[str]:
    """Names of the layers of FiLM in the encoder, but those in `without`."""
    return [
        holder
        for name, module in model.encoder.named_modules()
        if isinstance(module, Film) and id(module) not in without
        for holder in _holders(module, f"{_PARTS['vision']}.{name}")
    ]


def _holders(module: nn.Module, name: str) -> Iterator[str]:
    """The topmost modules with weights of their own."""
    if any(True for _ in module.parameters(recurse=False)):
        yield name
    else:
        for child_name, child in module.named_children():
            yield from _holders(child, f"{name}.{child_name}")


def _check_whole(model: VisionLanguageModel, names: list[str]) -> None:
    """peft finds modules by how their names end: raise ValueError if it copied others than `names`."""
    found = {name for name, module in model.named_modules() if isinstance(module, ModulesToSaveWrapper)}
    if found != set(names):
        raise ValueError(f"peft would save {', '.join(sorted(found))}, expected {', '.join(names)}: rename the modules")


def _towers(model: VisionLanguageModel) -> list[Encoder]:
    return [module for module in model.encoder.modules() if isinstance(module, Encoder)]


def _idle(model: VisionLanguageModel) -> list[nn.Module]:
    """Modules of the encoder that neither its image tokens nor the deep features that the model reads come from."""
    idle = [part for tower in _towers(model) for part in tower.model.unused_modules(tower.tap)]
    return idle if model.config.deepstack else [*idle, *(tower.model.deepstack for tower in _towers(model))]


def _freeze_idle(model: VisionLanguageModel) -> None:
    for part in _idle(model):
        part.requires_grad_(False)
    for tower in _towers(model):
        if tower.model.mask_token is not None:
            tower.model.mask_token.requires_grad_(False)


def _linear_layers(model: VisionLanguageModel, part: str, *, without: set[int]) -> list[str]:
    """Full names of the linear layers of a part, but those in `without` and the output embedding."""
    output = model.get_output_embeddings()
    return [
        f"{part}.{name}"
        for name, module in model.get_submodule(part).named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not output and id(module) not in without
    ]
