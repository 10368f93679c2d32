"""Text parts of HuggingFace folders: CLIP, SigLIP and SigLIP 2, whole models or the text tower alone.

Documented exceptions to "every stored weight is used": `position_ids` (an index buffer of old files) and the
`SIBLINGS` of the text part in a whole model.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from torch import Tensor

from vlm_vision.checkpoints import keys
from vlm_vision.checkpoints.checkpoint import Checkpoint
from vlm_vision.checkpoints.families.fields import activation, activation_back, block_keys
from vlm_vision.checkpoints.keys import Key, key, layer
from vlm_vision.checkpoints.text_towers import TextTower, scalar
from vlm_vision.checkpoints.towers import TowerWeights
from vlm_vision.nn.text import TextConfig
from vlm_vision.preprocess.tokenizer import TokenizerRules

Json = dict[str, Any]

LANDMARK = "embeddings.token_embedding.weight"
SIBLINGS = ("vision_model.", "visual_projection.", "logit_scale", "logit_bias")
"""Names, by prefix, of the other parts of a whole model."""

LEGACY_EOS = 2
"""The eos_token_id of CLIP configurations before transformers 4.31, by which transformers pools at the highest id."""


@dataclass(frozen=True)
class _Family:
    clip: bool
    """True for CLIP: causal, pooled at the end of the text, projection outside the tower; False for SigLIP."""
    defaults: Json


_BASE: Json = dict(num_hidden_layers=12, pad_token_id=1, eos_token_id=49407)
_CLIP = _Family(
    clip=True,
    defaults=_BASE
    | dict(
        vocab_size=49408,
        hidden_size=512,
        intermediate_size=2048,
        projection_dim=512,
        num_attention_heads=8,
        max_position_embeddings=77,
        hidden_act="quick_gelu",
        layer_norm_eps=1e-5,
    ),
)
_SIGLIP = _Family(
    clip=False,
    defaults=_BASE
    | dict(
        vocab_size=32000,
        hidden_size=768,
        intermediate_size=3072,
        num_attention_heads=12,
        max_position_embeddings=64,
        hidden_act="gelu_pytorch_tanh",
        layer_norm_eps=1e-6,
    ),
)

TOWERS = {"clip_text_model": _CLIP, "siglip_text_model": _SIGLIP, "siglip2_text_model": _SIGLIP}
"""model_type of a text tower alone -> how to read it."""

WHOLE_MODELS = {"clip": _CLIP, "siglip": _SIGLIP, "siglip2": _SIGLIP}
"""model_type of a model with a text tower -> how to read that."""


def read(checkpoint: Checkpoint) -> TextTower:
    """The text tower of a folder with config.json.

    Raises:
        ValueError: a model without a known text tower, or a config.json with wrong values.
    """
    config, folder = checkpoint.config, checkpoint.path
    model_type = str(config.get("model_type"))
    family = TOWERS.get(model_type) or WHOLE_MODELS.get(model_type)
    if family is None:
        known = ", ".join([*WHOLE_MODELS, *TOWERS])
        raise ValueError(f"{folder} has no text tower: its model_type is {model_type!r}, expected one of {known}")
    weights = checkpoint.weights
    prefix = _prefix(checkpoint)
    extra = [name for name in weights.shapes if not name.startswith((prefix, *SIBLINGS))] if prefix else []
    part = TowerWeights(weights, prefix, extra=extra, ignored=lambda name: name.endswith("position_ids"))
    try:
        text = _config(family, _fields(family, config), part.shapes)
        scale, bias = scalar(weights, "logit_scale"), scalar(weights, "logit_bias")
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"{folder / 'config.json'} has a value of the wrong kind ({error!r}): download it again"
        ) from None
    except ValueError as error:
        raise ValueError(f"{folder / 'config.json'}: {error}") from None
    return TextTower(
        source=str(folder),
        format="hf",
        config=text,
        keys=_keys(family, text),
        weights=part,
        rules=TokenizerRules(frame="clip") if family.clip else TokenizerRules(frame="siglip", drop_underscore=True),
        logit_scale=scale,
        logit_bias=bias,
    )


def write(kind: str, config: TextConfig, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Json]:
    """(weights, text_config) of a whole model of model_type `kind`.

    Raises:
        ValueError: an architecture that transformers' class cannot express.
    """
    family = WHOLE_MODELS[kind]
    described = family.defaults | dict(
        model_type=f"{kind}_text_model",
        vocab_size=config.vocab_size,
        hidden_size=config.embed_dim,
        intermediate_size=config.mlp_dim,
        num_hidden_layers=config.depth,
        num_attention_heads=config.num_heads,
        max_position_embeddings=config.context_length,
        hidden_act=activation_back(config.mlp),
        layer_norm_eps=config.norm_eps,
        eos_token_id=LEGACY_EOS if config.pool == "argmax" else config.eos_id,
        pad_token_id=config.pad_id,
        bos_token_id=None,  # nobody reads it, and the default is past a small vocabulary
        **{"projection_dim" if family.clip else "projection_size": config.features_dim},
    )
    tensors = keys.write(_keys(family, config), state)
    again = _config(family, described, frozenset(tensors))
    ours = replace(config, eos_id=again.eos_id) if config.pool != "eos" else config
    differ = [
        f"{field.name} {getattr(ours, field.name)!r} would become {getattr(again, field.name)!r}"
        for field in fields(TextConfig)
        if getattr(ours, field.name) != getattr(again, field.name)
    ]
    if differ:
        raise ValueError(f"transformers' {kind} cannot express this text tower: {', '.join(differ)}")
    outside = ("text_projection.",)
    return {name if name.startswith(outside) else f"text_model.{name}": t for name, t in tensors.items()}, described


def _fields(family: _Family, config: Json) -> Json:
    """The text part's fields, with transformers' defaults where it states nothing."""
    if config["model_type"] in TOWERS:
        return family.defaults | _stated(config)
    fields = family.defaults | _stated(config.get("text_config") or {})
    if config.get("text_config_dict"):  # of old CLIP files: stands above text_config, with its defaults
        fields |= family.defaults | _stated(config["text_config_dict"])
    # A whole CLIP says at the top how wide it projects.
    return fields | ({"projection_dim": config.get("projection_dim", 512)} if family.clip else {})


def _stated(fields: Json) -> Json:
    return {name: value for name, value in fields.items() if value is not None}


def _prefix(checkpoint: Checkpoint) -> str:
    """Prefix of the text part's names."""
    prefixes = [name.removesuffix(LANDMARK) for name in checkpoint.weights.shapes if name.endswith(LANDMARK)]
    if len(prefixes) != 1:
        raise ValueError(f"{checkpoint} holds {len(prefixes)} weights called {LANDMARK}, expected one text tower")
    return prefixes[0]


def _config(family: _Family, fields: Json, names: Collection[str]) -> TextConfig:
    projected = not family.clip or "text_projection.weight" in names
    width = fields["projection_dim"] if family.clip else fields.get("projection_size", fields["hidden_size"])
    legacy = family.clip and fields["eos_token_id"] == LEGACY_EOS
    return TextConfig(
        vocab_size=fields["vocab_size"],
        context_length=fields["max_position_embeddings"],
        embed_dim=fields["hidden_size"],
        depth=fields["num_hidden_layers"],
        num_heads=fields["num_attention_heads"],
        mlp_dim=fields["intermediate_size"],
        mlp=activation(fields),
        norm_eps=float(fields["layer_norm_eps"]),
        causal=family.clip,
        pool="last" if not family.clip else "argmax" if legacy else "eos",
        eos_id=fields["eos_token_id"],
        pad_id=fields["pad_token_id"],
        proj_dim=width if projected else 0,
        projection_bias=not family.clip,
    )


def _keys(family: _Family, config: TextConfig) -> list[Key]:
    keys = [
        key("token_embedding.weight", LANDMARK),
        key("position", "embeddings.position_embedding.weight", drop=1),
        *layer("norm", "final_layer_norm"),
    ]
    if config.proj_dim:
        keys += layer("head", "text_projection" if family.clip else "head", bias=config.projection_bias)
    return keys + block_keys(config.depth)
