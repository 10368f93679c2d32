"""Text towers of open_clip folders: those of its own `CLIP` and `CustomTextCLIP`, SigLIP's among them."""

from collections.abc import Mapping
from typing import Any

from vlm_vision.checkpoints.checkpoint import Checkpoint
from vlm_vision.checkpoints.keys import TRANSPOSED, Key, key, layer
from vlm_vision.checkpoints.open_clip.reader import CONFIG, block_keys, own_weights
from vlm_vision.checkpoints.text_towers import TextTower, scalar
from vlm_vision.checkpoints.towers import MALFORMED_ERRORS, TowerWeights
from vlm_vision.nn.text import TextConfig
from vlm_vision.preprocess.tokenizer import TokenizerRules

Json = dict[str, Any]

LANDMARK = "token_embedding.weight"
_IGNORED = ("visual.", "logit_scale", "logit_bias", "input_resolution", "context_length", "vocab_size", "attn_mask")
"""Names, by prefix, of other parts at the top level: the image tower, and buffers of OpenAI's files."""

_UNKNOWN = {
    "hf_model_name": "a text model of transformers",
    "embed_cls": "a class token (CoCa)",
    "qk_norm": "norms of queries and keys",
    "scaled_cosine_attn": "cosine attention",
    "scale_heads": "scaled heads",
    "scale_attn_inner": "a norm inside the attention",
    "scale_attn": "a norm after the attention",
    "scale_fc": "a norm inside the MLP",
}
"""Switches of open_clip that are not supported in a text tower, and their meaning."""

_TOKENIZER = {"clean", "strip_sep_token", "reduction_mask"}
"""Tokenizer arguments that are supported; reduction_mask drops tokens of long texts at random, here they are cut."""


def read(checkpoint: Checkpoint) -> TextTower:
    """The text tower of a folder with open_clip_config.json.

    Raises:
        ValueError: a text tower with unsupported parts, or a configuration with wrong values.
    """
    config, folder = checkpoint.json(CONFIG), checkpoint.path
    model = config.get("model_cfg")
    text = model.get("text_cfg") if isinstance(model, dict) else None
    if not isinstance(model, dict) or not isinstance(text, dict):
        raise ValueError(f"{folder / CONFIG} has no model_cfg with a text_cfg: download it again")
    if "multimodal_cfg" in model:
        raise ValueError(f"{folder / CONFIG} is a CoCa, whose text tower has a class token: it is not supported")
    for switch, what in _UNKNOWN.items():
        if text.get(switch):
            raise ValueError(f"{folder / CONFIG}: text_cfg has {switch}={text[switch]!r}, {what}: it is not supported")
    weights = own_weights(checkpoint)
    stems = [name.removesuffix(LANDMARK) for name in weights.shapes if name.endswith(LANDMARK)]
    if len(stems) != 1:
        raise ValueError(f"{folder} holds {len(stems)} weights called {LANDMARK}, expected one text tower")
    prefix = stems[0]
    root = prefix.removesuffix("text.")
    part = TowerWeights(weights, prefix, ignored=lambda name: prefix == root and name.startswith(_IGNORED))
    try:
        tower = _config(part.shapes, model, text)
        rules = _rules(text)
        scale, bias = scalar(weights, f"{root}logit_scale"), scalar(weights, f"{root}logit_bias")
    except MALFORMED_ERRORS as error:
        raise ValueError(f"{folder}: a value or weight is missing or of the wrong kind ({error!r})") from None
    except ValueError as error:
        raise ValueError(f"{folder / CONFIG}: {error}") from None
    return TextTower(
        source=str(folder),
        format="open_clip",
        config=tower,
        keys=_keys(tower, linear=bool(text.get("proj_bias"))),
        weights=part,
        rules=rules,
        logit_scale=scale,
        logit_bias=bias,
    )


def _config(shapes: Mapping[str, tuple[int, ...]], model: Json, text: Json) -> TextConfig:
    dim, activation = text.get("width", 512), text.get("act_kwargs") or {}
    if set(activation) - {"approximate"} or activation.get("approximate", "none") not in ("none", "tanh"):
        raise ValueError(f"text_cfg has act_kwargs {activation!r}, expected {{'approximate': 'tanh'}}")
    pool = text.get("pool_type", "argmax")
    if pool not in ("argmax", "eos", "last"):
        raise ValueError(f"text_cfg has pool_type {pool!r}, expected argmax, eos or last")
    projected = text.get("proj_type", "linear") != "none"
    return TextConfig(
        vocab_size=text.get("vocab_size", 49408),
        context_length=text.get("context_length", 77),
        embed_dim=dim,
        depth=text.get("layers", 12),
        num_heads=text.get("heads", 8),
        mlp_dim=int(dim * text.get("mlp_ratio", 4.0)),
        mlp="quick_gelu"
        if model.get("quick_gelu")
        else "gelu_tanh"
        if activation.get("approximate") == "tanh"
        else "gelu",
        norm_eps=float((text.get("norm_kwargs") or {}).get("eps", 1e-5)),
        layer_scale=text.get("ls_init_value"),
        causal=not text.get("no_causal_mask", False),
        pool=pool,
        eos_id=text.get("eos_id", 2),
        pad_id=text.get("pad_id", 0),
        proj_dim=model["embed_dim"] if projected else 0,
        projection_bias=projected and bool(text.get("proj_bias")),
    )


def _rules(text: Json) -> TokenizerRules:
    """open_clip's own BPE is CLIP's; a tokenizer of transformers is used unchanged."""
    given = text.get("tokenizer_kwargs") or {}
    if unknown := set(given) - _TOKENIZER:
        raise ValueError(f"text_cfg has tokenizer_kwargs {', '.join(sorted(unknown))}, which are not supported")
    if text.get("tokenizer_mode"):
        raise ValueError(f"text_cfg has tokenizer_mode {text['tokenizer_mode']!r}, which is not supported")
    if not text.get("hf_tokenizer_name"):
        return TokenizerRules(frame="clip", clean=given.get("clean", "lower"), html=True, pad_id=0)
    clean, strip = given.get("clean", "whitespace"), bool(given.get("strip_sep_token"))
    return TokenizerRules(frame="own", clean=clean, html=True, strip_sep_token=strip)


def _keys(config: TextConfig, *, linear: bool) -> list[Key]:
    """`linear`: the projection is a layer, not a matrix applied from the right."""
    keys = [
        key("token_embedding.weight", LANDMARK),
        key("position", "positional_embedding", drop=1),
        *layer("norm", "ln_final"),
    ]
    if config.proj_dim and linear:
        keys += layer("head", "text_projection", bias=config.projection_bias)
    elif config.proj_dim:
        keys.append(key("head.weight", "text_projection", layout=TRANSPOSED))
    return keys + block_keys(config.depth, scaled=config.layer_scale is not None)
