"""Text parts of HuggingFace folders, whole models or the text tower alone: CLIP, MetaCLIP 2, SigLIP and SigLIP 2; TIPSv2;
and those of `vlm_vision.checkpoints.hf.bert_text`.

Documented exceptions to "every stored weight is used": `position_ids` (an index buffer of old files) and the
`SIBLINGS` of the text part in a whole model.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from vlm_vision.checkpoints import keys
from vlm_vision.checkpoints.checkpoint import Checkpoint
from vlm_vision.checkpoints.families.fields import activation, activation_back, block_keys
from vlm_vision.checkpoints.hf import bert_text
from vlm_vision.checkpoints.keys import Key, Spellings, key, layer
from vlm_vision.checkpoints.open_clip.reader import block_keys as open_clip_blocks
from vlm_vision.checkpoints.text_towers import TextTower, scalar
from vlm_vision.checkpoints.towers import TowerWeights, WeightSource
from vlm_vision.nn.text import TextConfig
from vlm_vision.preprocess.tokenizer import TokenizerRules

Json = dict[str, Any]

LANDMARK = "embeddings.token_embedding.weight"
SIBLINGS = ("vision_model.", "vision_encoder.", "visual_projection.", "logit_scale", "logit_bias", "temperature")
"""Names, by prefix, of the other parts of a whole model."""

LEGACY_EOS = 2
"""The eos_token_id of CLIP configurations before transformers 4.31, by which transformers pools at the highest id."""


@dataclass(frozen=True, kw_only=True)
class _Family:
    defaults: Json
    config: Callable[[Json, Collection[str]], TextConfig | bert_text.BertTextConfig]
    """(fields with defaults, stored names without prefix) -> ours"""
    keys: Callable[[Any, Collection[str]], list[Key]]
    """(our configuration, stored names without prefix) -> key table"""
    rules: TokenizerRules
    landmarks: tuple[str, ...] = (LANDMARK,)
    """Names of the token embedding, the first that a file has."""
    projection_dim: int | None = None
    """Width that a whole model's config.json states at the top, with its default; None for none."""
    ignored: Callable[[str], bool] = lambda name: name.endswith("position_ids")
    spellings: Spellings = ()


def _clip(fields: Json, names: Collection[str]) -> TextConfig:
    legacy = fields["eos_token_id"] == LEGACY_EOS
    projected = "text_projection.weight" in names
    return _text_config(
        fields, causal=True, pool="argmax" if legacy else "eos", proj_dim=fields["projection_dim"] if projected else 0
    )


def _metaclip_2(fields: Json, names: Collection[str]) -> TextConfig:
    return replace(_clip(fields, names), pool="eos")  # its own eos_token_id is 2


def _siglip(fields: Json, names: Collection[str]) -> TextConfig:
    width = fields.get("projection_size", fields["hidden_size"])
    return _text_config(fields, causal=False, pool="last", proj_dim=width, projection_bias=True)


def _tips(fields: Json, names: Collection[str]) -> TextConfig:
    facts = dict(pool_eps=float(fields["pooling_epsilon"]), scale_tokens=bool(fields["scale_sqrt_depth"]))
    return _text_config(fields, causal=False, pool="mean", position="sincos", mask_padding=True, **facts)


def _text_config(fields: Json, **facts: Any) -> TextConfig:
    """What the families call by the same names."""
    eos = {} if fields.get("eos_token_id") is None else {"eos_id": fields["eos_token_id"]}
    return TextConfig(
        vocab_size=fields["vocab_size"],
        context_length=fields["max_position_embeddings"],
        embed_dim=fields["hidden_size"],
        depth=fields["num_hidden_layers"],
        num_heads=fields["num_attention_heads"],
        mlp_dim=fields["intermediate_size"],
        mlp=activation(fields),
        norm_eps=float(fields["layer_norm_eps"]),
        pad_id=fields["pad_token_id"],
        **eos,
        **facts,
    )


def _clip_keys(config: TextConfig, names: Collection[str] = ()) -> list[Key]:
    keys = [
        key("token_embedding.weight", LANDMARK),
        key("position", "embeddings.position_embedding.weight", drop=1),
        *layer("norm", "final_layer_norm"),
    ]
    if config.proj_dim:
        keys += layer("head", "text_projection" if config.causal else "head", bias=config.projection_bias)
    return keys + block_keys(config.depth)


def _tips_keys(config: TextConfig, names: Collection[str]) -> list[Key]:
    """In the layout of the public hub, which is open_clip's, or of transformers in memory."""
    if LANDMARK in names:
        return [key("token_embedding.weight", LANDMARK), *layer("norm", "final_layer_norm"), *block_keys(config.depth)]
    rows = [key("token_embedding.weight", "token_embedding.weight"), *layer("norm", "ln_final")]
    return rows + open_clip_blocks(config.depth, scaled=False)


_BASE: Json = dict(num_hidden_layers=12, pad_token_id=1, eos_token_id=49407)
_CLIP = _Family(
    config=_clip,
    keys=_clip_keys,
    rules=TokenizerRules(frame="clip"),
    projection_dim=512,
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
_METACLIP_2 = replace(_CLIP, config=_metaclip_2, rules=TokenizerRules(frame="own"))
_SIGLIP = _Family(
    config=_siglip,
    keys=_clip_keys,
    rules=TokenizerRules(frame="siglip", drop_underscore=True),
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

_TIPS = _Family(
    config=_tips,
    keys=_tips_keys,
    rules=TokenizerRules(frame="own", trim=True),
    landmarks=(LANDMARK, "token_embedding.weight"),
    defaults=dict(
        vocab_size=32000,
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
        max_position_embeddings=64,
        hidden_act="relu",
        layer_norm_eps=1e-5,
        pad_token_id=0,
        scale_sqrt_depth=True,
        pooling_epsilon=1e-8,
    ),
)
_ALTCLIP, _CHINESE_CLIP = (
    _Family(
        config=bert_text.reader(kind),
        keys=lambda config, names: bert_text.keys(config),
        rules=TokenizerRules(frame="own", trim=True),
        landmarks=(kind.landmark,),
        projection_dim=kind.projection_dim,
        ignored=bert_text.is_ignored,
        spellings=bert_text.SPELLINGS,
        defaults=dict(kind.defaults),
    )
    for kind in (bert_text.ALTCLIP, bert_text.CHINESE_CLIP)
)

TOWERS = {
    "clip_text_model": _CLIP,
    "metaclip_2_text_model": _METACLIP_2,
    "siglip_text_model": _SIGLIP,
    "siglip2_text_model": _SIGLIP,
    "tipsv2_text_model": _TIPS,
    "altclip_text_model": _ALTCLIP,
    "chinese_clip_text_model": _CHINESE_CLIP,
}
"""model_type of a text tower alone -> how to read it."""

WHOLE_MODELS = {
    "clip": _CLIP,
    "metaclip_2": _METACLIP_2,
    "siglip": _SIGLIP,
    "siglip2": _SIGLIP,
    "tipsv2": _TIPS,
    "altclip": _ALTCLIP,
    "chinese_clip": _CHINESE_CLIP,
}
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
    prefix = _prefix(checkpoint, family)
    extra = [name for name in weights.shapes if not name.startswith((prefix, *SIBLINGS))] if prefix else []
    part = TowerWeights(weights, prefix, extra=extra, ignored=family.ignored, spellings=family.spellings)
    try:
        text = family.config(_fields(family, config), part.shapes)
        table = family.keys(text, part.shapes)
        scale, bias = _scale(family, config, weights), scalar(weights, "logit_bias")
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
        keys=table,
        weights=part,
        rules=family.rules,
        logit_scale=scale,
        logit_bias=bias,
    )


def _scale(family: _Family, config: Json, weights: WeightSource) -> Tensor | None:
    """Logarithm of the scale of the logits: TIPSv2 divides by a temperature, which public files state in config.json."""
    if family is not _TIPS or config["model_type"] in TOWERS:
        return scalar(weights, "logit_scale")
    temperature = scalar(weights, "temperature")
    if temperature is None:
        temperature = torch.tensor(float(config.get("temperature_init_value", 0.005065968260169029)))
    if not temperature > 0:
        raise ValueError(f"the temperature is {temperature.item()}, expected a positive number")
    return -temperature.double().log().to(temperature.dtype)


def write(kind: str, config: TextConfig, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Json]:
    """(weights, text_config) of a whole model of model_type `kind`.

    Raises:
        ValueError: an architecture that transformers' class cannot express.
    """
    family, clip = WHOLE_MODELS[kind], kind == "clip"
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
        **{"projection_dim" if clip else "projection_size": config.features_dim},
    )
    tensors = keys.write(_clip_keys(config), state)
    again = family.config(described, frozenset(tensors))
    assert isinstance(again, TextConfig)
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
    if family.projection_dim is None:
        return fields
    return fields | {"projection_dim": config.get("projection_dim", family.projection_dim)}


def _stated(fields: Json) -> Json:
    return {name: value for name, value in fields.items() if value is not None}


def _prefix(checkpoint: Checkpoint, family: _Family) -> str:
    """Prefix of the text part's names."""
    names = checkpoint.weights.shapes
    marks = [mark for mark in family.landmarks if any(name.endswith(mark) for name in names)] or family.landmarks
    prefixes = [name.removesuffix(marks[0]) for name in names if name.endswith(marks[0])]
    if len(prefixes) != 1:
        raise ValueError(f"{checkpoint} holds {len(prefixes)} weights called {marks[0]}, expected one text tower")
    return prefixes[0]
