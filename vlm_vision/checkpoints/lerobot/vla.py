"""Policies around a vision-language model of transformers: GR00T N1.7, VLA-JEPA, WALL-OSS, EO-1, EVO-1, MolmoAct2.

Their config.json names that model and, but for EO-1, does not describe it. The description is that in the local folder of that
name, or in the hub's cache; else it follows from the shapes of the weights and from what the public models have in common.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vlm_vision.checkpoints.checkpoint import Checkpoint
from vlm_vision.checkpoints.families.all import REFUSED
from vlm_vision.checkpoints.hf import reader as hf
from vlm_vision.checkpoints.lerobot import sizes
from vlm_vision.checkpoints.lerobot.images import preprocess_of
from vlm_vision.checkpoints.towers import Hints, Tower, only
from vlm_vision.nn.output import Tap

Json = dict[str, Any]


@dataclass(frozen=True)
class PolicyKind:
    """Where a policy states which vision-language model it is built around, and what that is where it is not described."""

    base: str
    """Field of config.json with its hub id or folder."""
    mark: str
    """A weight of its tower."""
    from_shapes: Callable[[Mapping[str, tuple[int, ...]], int | None], Json]
    """(shapes of the tower's weights and its merger's, number of heads or None) -> its config.json; ValueError if it is not public."""


POLICIES: dict[str, PolicyKind] = {
    "groot": PolicyKind("base_model_path", "patch_embed.proj.weight", sizes.qwen3_vl),
    "vla_jepa": PolicyKind("qwen_model_name", "patch_embed.proj.weight", sizes.qwen3_vl),
    "wall_x": PolicyKind("pretrained_name_or_path", "patch_embed.proj.weight", sizes.qwen2_5_vl),
    "eo1": PolicyKind("vlm_base", "patch_embed.proj.weight", sizes.qwen2_5_vl),
    "evo1": PolicyKind("vlm_model_name", "embeddings.patch_embeddings.projection.weight", sizes.internvl),
    "molmoact2": PolicyKind("checkpoint_path", "image_vit.patch_embedding.weight", sizes.molmo2),
}
"""LeRobot's policy type -> its vision-language model."""

FAMILIES = ("qwen3_vl_vision", "qwen2_5_vl_vision", "internvl_vision", "molmo2_vision")

_ORIGINALS = {"Gr00tN1d7": "groot", "molmoact2": "molmoact2"}
"""model_type of the folder that a policy starts from -> the policy."""

_XVLA = "xvla"


def policy_of(checkpoint: Checkpoint) -> str | None:
    """The type of the policy in a folder, if it is one of these, or X-VLA, which is refused."""
    config = checkpoint.config
    if "model_type" in config:
        return _ORIGINALS.get(str(config["model_type"]))
    name = str(config.get("type"))
    return name if name in POLICIES or name == _XVLA else None


def read(checkpoint: Checkpoint, hints: Hints) -> list[Tower]:
    """The tower of the policy's vision-language model, with the policy's own tap and preprocessing.

    Raises:
        ValueError: X-VLA; a model that is neither described nor public; as `hf.reader.read`.
    """
    name = policy_of(checkpoint)
    assert name is not None
    only(checkpoint, hints, "num_heads")
    known = described(checkpoint, hints.num_heads)
    [tower] = hf.read(known, Hints())
    usual = hf.preprocess_of(base, {}) if (base := base_folder(checkpoint)) and _has_images(base) else tower.preprocess
    preprocess = preprocess_of(name, checkpoint, base_folder(checkpoint), usual, tower.config)
    return [replace(tower, format="lerobot", tap=_tap(name, known, tower), preprocess=preprocess)]


def described(checkpoint: Checkpoint, num_heads: int | None = None) -> Checkpoint:
    """The folder of a policy under the config.json of its vision-language model; any other checkpoint unchanged.

    Raises:
        ValueError: as `read`.
    """
    name = policy_of(checkpoint)
    if name is None:
        return checkpoint
    if name == _XVLA:
        raise ValueError(f"{checkpoint} is a policy of type 'xvla': {REFUSED['florence2']}")
    policy, config = POLICIES[name], checkpoint.config
    given: Any = config.get("vlm_config") if name == "eo1" else None
    if name == "molmoact2" and "vit_config" in config:
        given = config
    if not isinstance(given, dict):
        base = base_folder(checkpoint)
        given = base.config if base is not None else None
    if given is None:
        given = _public(checkpoint, policy, num_heads)
    return checkpoint.described_by(sizes.as_molmo2(given) if name == "molmoact2" else given)


def base_folder(checkpoint: Checkpoint) -> Checkpoint | None:
    """The folder of the vision-language model that a policy names, if it lies here: as a path, or in the hub's cache."""
    name, config = policy_of(checkpoint), checkpoint.config
    if name is None or name == _XVLA:
        return None
    source: Any = config.get("model_name" if config.get("model_type") == "Gr00tN1d7" else POLICIES[name].base)
    if not isinstance(source, str) or not source:
        return None
    folder = Path(source).expanduser()
    if not (folder / "config.json").is_file():
        from huggingface_hub import try_to_load_from_cache

        try:
            cached = try_to_load_from_cache(source, "config.json")
        except ValueError:  # no form of a hub id
            cached = None
        if not isinstance(cached, str):
            return None
        folder = Path(cached).parent
    base = checkpoint.other(folder)
    return base_folder(base) if base.config.get("model_type") == "Gr00tN1d7" else base


def _has_images(base: Checkpoint) -> bool:
    """Whether a folder describes the preprocessing of images as transformers does."""
    if base.has("preprocessor_config.json"):
        return "image_processor_type" in base.json("preprocessor_config.json")
    return base.has("processor_config.json") and "image_processor" in base.json("processor_config.json")


def _public(checkpoint: Checkpoint, policy: PolicyKind, num_heads: int | None) -> Json:
    shapes = checkpoint.weights.shapes
    prefixes = [name.removesuffix(policy.mark) for name in shapes if name.endswith(policy.mark)]
    if len(prefixes) != 1:
        raise ValueError(f"{checkpoint} holds {len(prefixes)} weights called {policy.mark}, expected one tower")
    prefix = prefixes[0]
    part = {name.removeprefix(prefix): shape for name, shape in shapes.items() if name.startswith(prefix)}
    try:
        return policy.from_shapes(part, num_heads)
    except (KeyError, IndexError, ZeroDivisionError) as error:
        raise ValueError(f"{checkpoint} holds no tower of its policy: {error} is missing or of another shape") from None
    except ValueError as error:
        source = checkpoint.config.get(policy.base)
        raise ValueError(
            f"{checkpoint}: {error}; config.json names {source!r} as {policy.base}: set that to a local folder with its config.json"
        ) from None


def _tap(name: str, known: Checkpoint, tower: Tower) -> Tap:
    """MolmoAct2 reads two blocks side by side, counted from the end of a tower whose unused last blocks are not stored."""
    if name != "molmoact2":
        return tower.tap
    depth, config = tower.config.depth, known.config
    count, layers = config["vision_config"]["num_hidden_layers"], config["adapter_config"]["vit_layers"]
    if not isinstance(layers, list | tuple) or not layers or not all(isinstance(layer, int) for layer in layers):
        raise ValueError(f"{known} has vit_layers {layers!r}: expected a list of blocks")
    first, *more = (layer + (count if layer < 0 else 0) - depth for layer in layers)
    tap = Tap(first, norm=False, more=tuple(more))
    tap.blocks(depth)
    return tap
