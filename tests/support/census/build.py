"""Tiny models of any model type that has a vision part, with every weight away from its initial value."""

import copy
import warnings
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING, CONFIG_MAPPING_NAMES

Json = dict[str, Any]

SMALL: Json = dict(
    hidden_size=64, embed_dim=64, d_model=64, embedding_dim=64, hidden_dim=64,
    num_hidden_layers=3, depth=3, num_layers=2, encoder_layers=2, decoder_layers=2, n_layer=2,
    num_attention_heads=4, num_heads=4, encoder_attention_heads=4, decoder_attention_heads=4, n_head=4,
    num_key_value_heads=2, intermediate_size=96, ffn_dim=96, mlp_dim=96, encoder_ffn_dim=96, decoder_ffn_dim=96, d_ff=96,
    vocab_size=128, max_position_embeddings=512, projection_dim=24, text_hidden_size=64, out_hidden_size=64,
    num_experts=4, num_local_experts=4, n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=32,
    pad_token_id=0, bos_token_id=1, eos_token_id=2, num_codebooks=2, head_dim=16,
)  # fmt: skip
"""Values for fields of any part of a configuration."""

VISION: Json = dict(image_size=64, patch_size=8, num_key_value_heads=4, head_dim=16, initializer_range=0.02)
"""Values for fields of the vision part."""


def towers() -> dict[str, str]:
    """Every model type of the installed transformers whose configuration has a vision part -> the model_type of that part."""
    found = {}
    for name in sorted(CONFIG_MAPPING_NAMES):
        cls = CONFIG_MAPPING[name]
        named = "vision_config" in (getattr(cls, "sub_configs", None) or {})
        part = None
        try:
            part = getattr(cls(), "vision_config", None)
        except Exception:  # a configuration without defaults
            if not named:
                continue
        if named or part is not None:
            found[name] = getattr(part, "model_type", "") or _usual_part(cls)
    return found


def _usual_part(cls: type[PreTrainedConfig]) -> str:
    """model_type of a vision part that a configuration may lack."""
    usual = (getattr(cls, "sub_configs_defaults", None) or {}).get("vision_config")
    usual = getattr(usual, "model_type", None) or getattr(getattr(usual, "config_class", usual), "model_type", None)
    return usual or ""


def model_types() -> list[str]:
    """Every model type of the installed transformers whose configuration has a vision part."""
    return list(towers())


def shrink(config: Json, changes: Json, *, vision: bool = False) -> Json:
    """A configuration's dictionary at tiny size; `changes` win, by name or, for a part, as a dictionary of its own.

    An empty dictionary in `changes` stands for itself.
    """
    small: Json = {}
    for name, value in config.items():
        if isinstance(value, dict) and (name.endswith("_config") or name in ("backbone_config",)):
            inner = changes.get(name, {}) if isinstance(changes.get(name), dict) else {}
            small[name] = shrink(value, inner, vision=vision or "vision" in name or name == "backbone_config")
        elif vision and name in VISION:
            small[name] = VISION[name]
        elif name in SMALL and isinstance(value, int) and not isinstance(value, bool):
            small[name] = SMALL[name]
        else:
            small[name] = value
    for name in ("layer_types", "mlp_layer_types"):
        if isinstance(small.get(name), list):
            layers = small.get("num_hidden_layers") or small.get("depth") or 2
            small[name] = small[name][:layers]
    return small | {
        k: v
        for k, v in changes.items()
        if not (v and isinstance(v, dict) and isinstance(small.get(k), dict) and k.endswith("_config"))
    }


def tiny_config(model_type: str, changes: Json) -> PreTrainedConfig:
    """The configuration of a model type at tiny size."""
    default = CONFIG_MAPPING[model_type]()
    state = default.to_dict()
    for name in getattr(default, "sub_configs", {}) or {}:
        part = getattr(default, name, None)
        if isinstance(part, PreTrainedConfig):
            state[name] = part.to_dict()
    state = shrink(copy.deepcopy(state), changes)
    return CONFIG_MAPPING[model_type].from_dict(state)


def build(model_type: str, changes: Json, model: str = "") -> PreTrainedModel:
    """The model with random weights: all of them, norms and scales too. `model` names its class, "" the one of AutoModel."""
    torch.manual_seed(0)
    config = tiny_config(model_type, changes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = getattr(transformers, model)(config) if model else AutoModel.from_config(config)
    stir(made)
    return made.eval()


def stir(model: nn.Module) -> None:
    """Move every weight, and every stored buffer of floating point numbers, away from its initial value."""
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            spread = 0.3 if weight.ndim < 2 else 0.05
            weight.copy_(torch.nan_to_num(weight).clamp(-2, 2) + spread * torch.randn_like(weight))
        stored = model.state_dict()
        for name, buffer in model.named_buffers():
            if name in stored and buffer.is_floating_point() and not name.endswith("running_var"):
                buffer.copy_(torch.nan_to_num(buffer).clamp(-2, 2) + 0.3 * torch.randn_like(buffer))
