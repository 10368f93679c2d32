"""timm folders: `config.json` with an architecture name, and weights in timm's layout.

The name decides what the weights do not show: the activation (exact or tanh GELU differ between SigLIP variants), the
epsilon and the number of heads. `model_args` of the config override the name.
"""

import re
from typing import Any

from vlm_vision.checkpoints.checkpoint import Checkpoint
from vlm_vision.checkpoints.families.all import resize_rule
from vlm_vision.checkpoints.timm import layout as timm_layout
from vlm_vision.checkpoints.timm import rotary
from vlm_vision.checkpoints.timm.preprocess import from_timm
from vlm_vision.checkpoints.timm.refused import reason
from vlm_vision.checkpoints.towers import MALFORMED_ERRORS, Format, Hints, Tower, TowerWeights, only
from vlm_vision.nn.config import Activation, ViTConfig

Json = dict[str, Any]

FAMILIES = (
    "vit", "deit", "dinov2", "dinov2_with_registers", "dinov3_vit", "clip_vision_model", "siglip_vision_model",
    "siglip2_vision_model", "aimv2_vision_model", "tipsv2_vision_model",
)  # fmt: skip
"""timm's architecture -> family."""

ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu",
    "gelu_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "quickgelu": "quick_gelu",
    "silu": "swiglu",
}
"""timm's act_layer -> ours."""

_LARGER_EPS = ("clip_vision_model", "dinov3_vit", "aimv2_vision_model")
_SIXTEEN_HEADS = re.compile(
    r"(so400m|giantopt|gigantic|huge(?!_plus)|giant(?!.*(dinov2|tipsv2|lingbot|radio)))|vit_base_patch16_gap_224"
)
_ARGUMENTS = set(
    "img_size patch_size embed_dim depth num_heads mlp_ratio num_classes in_chans global_pool class_token no_embed_class "
    "pre_norm init_values reg_tokens num_reg_tokens qkv_bias proj_bias act_layer fc_norm use_fc_norm final_norm "
    "pos_embed_grid_size swiglu_mlp swiglu_align_to rope_temperature pos_embed_interp_mode dynamic_img_size "
    "dynamic_img_pad strict_img_size weight_init fix_init qkv_fused scale_mlp scale_attn_inner scale_attn_norm scale_mlp_norm "
    "use_abs_pos_emb use_pre_transformer_norm use_post_transformer_norm attn_pool_num_heads attn_pool_mlp_ratio".split()
) | set(rotary.ARGUMENTS)
"""model_args that are read, or visible in the shapes, or without effect on a forward pass; so are drop rates."""

_WIDTHS = {"tiny": 192, "small": 384, "base": 768, "large": 1024, "huge": 1280, "so400m": 1152}
_TANH_SIGLIP = re.compile(
    r"naflexvit_.*siglip|patch32_siglip|so400m_patch16_siglip|giantopt|large_patch16_siglip_(gap_)?512"
)


def recognises(checkpoint: Checkpoint) -> bool:
    """Whether config.json is timm's, or transformers' wrapper of timm's."""
    config = checkpoint.config
    return "architecture" in config and config.get("model_type") in (None, "timm_wrapper")


def read(checkpoint: Checkpoint, hints: Hints) -> list[Tower]:
    """The tower of a folder.

    Raises:
        ValueError: an architecture other than a plain vision transformer, weights that do not fit.
    """
    only(checkpoint, hints, "num_heads")
    config, weights = checkpoint.config, checkpoint.weights
    described = config.get("pretrained_cfg", config)
    arguments = config.get("model_args") or {}
    if not isinstance(described, dict) or not isinstance(arguments, dict):
        raise ValueError(
            f"{checkpoint.path / 'config.json'} has a pretrained_cfg or model_args that is not an object: download it again"
        )
    wrapper = "timm_model."
    prefix = wrapper if any(name.startswith(wrapper) for name in weights.shapes) else ""
    part = TowerWeights(weights, prefix, ignored=timm_layout.is_ignored_weight, spellings=timm_layout.IN_CHUNKS)
    return [tower(str(checkpoint), part, str(config["architecture"]), arguments, described, hints)]


def tower(source: str, part: TowerWeights, architecture: str, arguments: Json, described: Json, hints: Hints) -> Tower:
    """A tower of timm's layout.

    Args:
        source: name of the tower in an error.
        part: its weights.
        architecture: timm's name, with or without a tag after a dot.
        arguments: model_args, timm's arguments in addition to the name.
        described: timm's pretrained_cfg: input_size, mean, std, ...
        hints: a head count here overrides that of the name.
    """
    name = architecture.split(".")[0]
    if why := reason(name):
        raise ValueError(f"{source} has timm's architecture {architecture!r}, which is not read: {why}")
    try:
        fields = timm_layout.fields(part.shapes, image_size=_image_size(arguments, described))
        family, config = family_of(name, fields), config_of(name, fields, arguments, hints)
        size = (described.get("input_size") or (3, *config.image_size))[1:]
        described = described | {"input_size": [3, *size]}
        preprocess = from_timm(described, patch_size=config.patch_size if "naflex" in name else None)
        table = timm_layout.key_table(config, part.shapes, rotary.order_of(name, arguments, config.head_dim))
    except MALFORMED_ERRORS as error:
        raise ValueError(f"{source}: its configuration has a value of the wrong kind ({error!r})") from None
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None
    return Tower(
        source=source,
        format="timm",
        family=family,
        reference="timm",
        config=config,
        keys=table,
        weights=part,
        preprocess=preprocess,
    )


def _image_size(arguments: Json, described: Json) -> tuple[int, int] | None:
    size: Any = arguments.get("img_size") or (described.get("input_size") or ())[1:]
    if isinstance(size, int):
        return size, size
    return (int(size[0]), int(size[1])) if size else None


def family_of(name: str, fields: Json) -> str:
    """Our family of a timm architecture."""
    if "dinov3" in name or "lingbot" in name:
        return "dinov3_vit"
    if "tipsv2" in name:
        return "tipsv2_vision_model"
    if name.startswith("eva"):
        return "vit"
    if "dinov2" in name:
        return "dinov2_with_registers" if fields["num_registers"] else "dinov2"
    if name.startswith("aimv2"):
        return "aimv2_vision_model"
    if name.startswith("naflexvit"):
        return "siglip2_vision_model"
    if "siglip" in name:
        return "siglip_vision_model"
    if "clip" in name:
        return "clip_vision_model"
    return "deit" if name.startswith("deit") else "vit"


def config_of(name: str, fields: Json, arguments: Json, hints: Hints) -> ViTConfig:
    """Our configuration of a timm architecture, from the shapes of its weights (`timm_layout.fields`) and its model_args."""
    family = family_of(name, fields)
    _check(name, family, fields, arguments)
    given = arguments.get("global_pool")
    pool = _pool(_default_pool(name, fields) if given is None else given)
    if fields.get("class_input") == "distilled" or "distilled" in name:
        pool = "cls_dist"
    facts: Json = dict(
        mlp=fields.get("mlp") or _activation(name, arguments),
        norm_eps=1e-5 if family in _LARGER_EPS or name.startswith(("vit_pe_", "beit3_")) else 1e-6,
        num_heads=hints.num_heads or arguments.get("num_heads") or _num_heads(name, fields["embed_dim"]),
        position_resize=resize_rule(family, "timm"),
        pool=pool,
    )
    if rope := rotary.rope_of(name, arguments):
        facts |= dict(rope=rope, position=fields.get("position", "learned").replace("rope2d", "none"))
    else:
        facts["rope_base"] = float(arguments.get("rope_temperature") or 100.0)
    if pool == "map" and rope:  # timm's module `eva` pools class token and registers too
        heads = arguments.get("attn_pool_num_heads") or (8 if name.startswith("vit_pe_") else facts["num_heads"])
        facts |= dict(pool="map_all", pool_heads=0 if heads == facts["num_heads"] else int(heads))
    if arguments.get("pos_embed_interp_mode"):
        facts["position_resize"] = f"{arguments['pos_embed_interp_mode']}_antialias"
    return ViTConfig(**(fields | facts))


def _check(name: str, family: str, fields: Json, arguments: Json) -> None:
    """Raise ValueError if the weights are not those of the architecture `name` with these arguments."""
    unknown = [key for key, value in arguments.items() if value and key not in _ARGUMENTS and not key.endswith("_rate")]
    if unknown:
        options = ", ".join(f"{key}={arguments[key]!r}" for key in unknown)
        raise ValueError(f"model_args has {options}, which is not supported")
    size, patch = re.search(r"_(tiny|small|base|large|huge|so400m)_", name), re.search(r"patch(\d+)", name)
    registers = re.search(r"_reg(\d+)_", name)
    count: int | None = (
        4 if family == "dinov3_vit" else 1 if "distilled" in name else int(registers[1]) if registers else 0
    )
    if "radio" in name:
        count = None  # class tokens of several teachers
    named = size is not None and not name.startswith("aimv2") and "_plus_" not in name
    expected = {
        "embed_dim": _WIDTHS[size[1]] if size and named else None,
        "patch_size": int(patch[1]) if patch else None,
        "num_registers": count,
    } | arguments
    tabled = family != "dinov3_vit" and rotary.has_table(name)
    normed = family == "clip_vision_model" or name.startswith("vit_pe_")
    scaled: bool | None = None  # neither the name nor the arguments say
    if (
        arguments.get("init_values") is not None
        or "dinov" in name
        or family in ("dinov3_vit", "tipsv2_vision_model")
        or name.startswith("deit3")
    ):
        scaled = True
    elif "init_values" in arguments or family in ("clip_vision_model", "siglip_vision_model", "deit"):
        scaled = False
    registered = expected.get("reg_tokens", expected.get("num_reg_tokens", expected["num_registers"]))
    pairs = [(field, expected.get(field), fields[field]) for field in ("embed_dim", "depth", "patch_size")]
    pairs += [
        ("registers", registered, fields["num_registers"]),
        ("LayerScale", scaled, fields["layer_scale"] is not None),
        ("a position table", expected.get("use_abs_pos_emb", tabled), fields.get("position") != "rope2d"),
        (
            "norm before the blocks",
            expected.get("pre_norm", expected.get("use_pre_transformer_norm", normed)),
            fields["pre_norm"],
        ),
    ]
    wrong = [
        f"{what} {have!r} where {want!r} is expected" for what, want, have in pairs if want is not None and want != have
    ]
    if wrong:
        raise ValueError(f"the weights are not those of the architecture {name}: they have {', '.join(wrong)}")


def _activation(name: str, arguments: Json) -> Activation:
    given = arguments.get("act_layer")
    if given is not None:
        if given not in ACTIVATIONS:
            raise ValueError(f"act_layer is {given!r}: expected one of {', '.join(ACTIVATIONS)}")
        return ACTIVATIONS[given]
    if "quickgelu" in name:
        return "quick_gelu"
    return "gelu_tanh" if _TANH_SIGLIP.search(name) else "gelu"


def _num_heads(name: str, dim: int) -> int:
    if _SIXTEEN_HEADS.search(name) and not name.startswith("aimv2"):
        return 16
    head_dim = 128 if name.startswith("aimv2") or "7b" in name else 64
    if dim % head_dim:
        raise ValueError(f"the number of heads of {name} at width {dim} is not known: pass num_heads=...")
    return dim // head_dim


def _default_pool(name: str, fields: Json) -> str:
    if "pe_core" in name or ("siglip" in name and "_gap_" not in name):
        return "map"
    if "lingbot" in name or (name.startswith("eva") and "_clip_" in name):
        return "token"
    if name.startswith(("eva", "beit3", "vit_pe_")):
        return "avg"
    if "_gap" in name or name.startswith("aimv2") or "dinov3" in name or not fields["class_token"]:
        return "map" if "_map" in name else "avg"
    return "token"


def _pool(name: str) -> str:
    pools = {"token": "cls", "avg": "mean", "map": "map", "": "none"}
    if name not in pools:
        raise ValueError(f"global_pool is {name!r}: expected one of {', '.join(filter(None, pools))}")
    return pools[name]


FORMAT = Format("timm", FAMILIES, recognises, read)
