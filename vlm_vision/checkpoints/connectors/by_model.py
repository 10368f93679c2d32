"""Readers of projectors whose weights do not state what they are: the model type does."""

import math
from collections.abc import Callable
from typing import Any

from vlm_vision.checkpoints.keys import TRANSPOSED, Key, Spellings, TensorLayout, key, layer, squares
from vlm_vision.checkpoints.projectors import Candidate, ProjectorSpec
from vlm_vision.checkpoints.towers import TowerWeights

ONE_MORE = TensorLayout(write=lambda x: x - 1, read=lambda x, shape: x + 1)
"""Weights of Gemma's RMS norms, which are stored less one."""

POINTWISE = TensorLayout(write=lambda x: x[..., None, None], read=lambda x, shape: x.flatten(1))
"""Our linear map as a convolution of one place."""


def _merger(
    part: TowerWeights,
    merge: int,
    fc1: str,
    fc2: str,
    *,
    norm: str = "",
    after: bool = True,
    **more: Any,
) -> ProjectorSpec:
    """A perceptron on squares of tokens, with the norm named `norm`, of merged tokens or before."""
    hidden, width = part.shapes[f"{fc1}.weight"]
    out_dim, _ = part.shapes[f"{fc2}.weight"]
    bias = f"{fc1}.bias" in part.shapes
    options: dict[str, Any] = {"in_dim": width // merge**2, "out_dim": out_dim, "merge": merge, "bias": bias}
    options |= {"norm": ("layer_after" if after else "layer") if norm else "none"}
    options |= {"hidden_dim": hidden // 2 if more.get("gated") else hidden}
    rows = layer("fc1", fc1, bias=bias) + layer("fc2", fc2, bias=bias)
    return ProjectorSpec("patch_merger", options | more, rows + (layer("norm", norm) if norm else []), part)


def _aya_vision(it: Candidate) -> ProjectorSpec:
    eps = float(it.config.get("adapter_layer_norm_eps", 1e-6))
    part, merge = it.part("multi_modal_projector."), it.config.get("downsample_factor", 2)
    return _merger(part, merge, "linear_1", "linear_2", norm="layernorm", eps=eps, activation="silu", gated=True)


def _cohere2_vision(it: Candidate) -> ProjectorSpec:
    part, merge = it.part("multi_modal_projector."), it.config.get("downsample_factor", 2)
    return _merger(part, merge, "linear_1", "linear_2", activation="silu", gated=True)


def _lfm2_vl(it: Candidate) -> ProjectorSpec:
    part, merge = it.part("multi_modal_projector."), it.config.get("downsample_factor", 2)
    norm = "layer_norm" if "layer_norm.weight" in part.shapes else ""
    act = it.activation(it.config, "projector_hidden_act", "gelu")
    return _merger(part, merge, "linear_1", "linear_2", norm=norm, eps=1e-5, activation=act)


def _cosmos3_edge(it: Candidate) -> ProjectorSpec:
    merge = it.section("vision_config").get("spatial_merge_size", 2)
    return _merger(it.part("projector."), merge, "linear_fc1", "linear_fc2", norm="norm", after=False)


def _hunyuan(it: Candidate) -> ProjectorSpec:
    """Of HunYuan-VL and HY-V4-VL; the vectors for ends of rows and images are not part of it."""
    config = it.section("vision_config")
    marks = ("image_newline", "image_begin", "image_end", "image_sep")
    own = ((r"^proj\.0\.", "proj_conv."), (r"^proj\.2\.", "proj_out."), (r"^norm\.", "before_rms."))  # Tencent's names
    part = _renamed(it, ("patch_merger.", "perceive."), own, ignored=lambda name: name in marks)
    hidden, in_dim, merge, _ = part.shapes["proj_conv.weight"]
    out_dim, _, _, _ = part.shapes["proj_out.weight"]
    options: dict[str, Any] = {
        "in_dim": in_dim,
        "out_dim": out_dim,
        "merge": merge,
        "norm": "rms",
        "hidden_dim": hidden,
    }
    options |= {
        "eps": float(config.get("rms_norm_eps", 1e-5)),
        "activation": it.activation(config, "hidden_act", "gelu"),
    }
    rows = [
        key("norm.weight", "before_rms.weight"),
        key("fc1.weight", "proj_conv.weight", layout=squares(merge)),
        key("fc1.bias", "proj_conv.bias"),
        key("fc2.weight", "proj_out.weight", layout=POINTWISE),
        key("fc2.bias", "proj_out.bias"),
    ]
    if "mlp.weight" in part.shapes:
        options |= {"middle_dim": out_dim, "out_dim": part.shapes["mlp.weight"][0], "out_norm": True}
        rows += [*layer("fc3", "mlp"), key("out_norm.weight", "after_rms.weight")]
    return ProjectorSpec("patch_merger", options, rows, part)


def _renamed(
    it: Candidate,
    prefixes: tuple[str, ...],
    spellings: Spellings,
    ignored: Callable[[str], bool] = lambda name: False,
) -> TowerWeights:
    """The weights under the first of the prefixes that is stored."""
    stored = [f"{it.before}{prefix}" for prefix in prefixes]
    prefix = next(prefix for prefix in stored if any(name.startswith(prefix) for name in it.weights.shapes))
    return TowerWeights(it.weights, prefix, ignored=ignored, spellings=spellings)


def _gemma3(it: Candidate) -> ProjectorSpec:
    vision, part = it.section("vision_config"), it.part("multi_modal_projector.")
    in_dim, out_dim = part.shapes["mm_input_projection_weight"]
    side = vision.get("image_size", 224) // vision.get("patch_size", 16)
    tokens = math.isqrt(it.config.get("mm_tokens_per_image", 256))
    eps = float(vision.get("layer_norm_eps", 1e-6))
    rows = [
        key("norm.weight", "mm_soft_emb_norm.weight", layout=ONE_MORE),
        key("fc1.weight", "mm_input_projection_weight", layout=TRANSPOSED),
    ]
    options = {"in_dim": in_dim, "out_dim": out_dim, "factor": side // tokens, "eps": eps}
    return ProjectorSpec("pooled_linear", options, rows, part)


def _layers(part: TowerWeights, names: list[str], **options: Any) -> tuple[dict[str, Any], list[Key]]:
    """Options and rows of a perceptron whose linear layers are called so."""
    _, in_dim = part.shapes[f"{names[0]}.weight"]
    out_dim, _ = part.shapes[f"{names[-1]}.weight"]
    rows = [row for i, name in enumerate(names, 1) for row in layer(f"fc{i}", name)]
    return {"in_dim": in_dim, "out_dim": out_dim, "depth": len(names)} | options, rows


def _deepseek_vl(it: Candidate) -> ProjectorSpec:
    part = it.part("aligner.")
    return ProjectorSpec("mlp", *_layers(part, ["linear1", "linear2"]), part)


def _janus(it: Candidate) -> ProjectorSpec:
    part, vision = it.part("aligner."), it.section("vision_config")
    hidden = {name.rsplit(".", 1)[0] for name in part.shapes if name.startswith("hidden_layers.")}
    act = it.activation(vision, "hidden_act", "gelu")
    return ProjectorSpec(
        "mlp", *_layers(part, ["fc1", *(f"hidden_layers.{i}" for i in range(len(hidden)))], activation=act), part
    )


def _vipllava(it: Candidate) -> ProjectorSpec:
    part = it.part("multi_modal_projector.")
    act = it.activation(it.config, "projector_hidden_act", "gelu")
    eps = float(it.config.get("projector_layernorm_eps", 1e-5))
    options, rows = _layers(part, ["linear_1", "linear_2"], activation=act, norm=True, eps=eps)
    return ProjectorSpec("mlp", options, rows + layer("norm", "projector_layernorm"), part)


def _git(it: Candidate) -> ProjectorSpec:
    part = it.part("visual_projection.visual_projection.")
    out_dim, in_dim = part.shapes["0.weight"]
    eps = float(it.section("vision_config").get("layer_norm_eps", 1e-5))
    options = {"in_dim": in_dim, "out_dim": out_dim, "out_norm": True, "eps": eps}
    return ProjectorSpec("linear", options, layer("fc1", "0") + layer("norm", "1"), part)


def _modernvbert(it: Candidate) -> ProjectorSpec:
    part, scale = it.part("connector."), it.config.get("pixel_shuffle_factor", 4)
    out_dim, width = part.shapes["modality_projection.weight"]
    options: dict[str, Any] = {"in_dim": width // scale**2, "out_dim": out_dim, "scale": scale}
    rows = [key("fc1.weight", "modality_projection.weight")]
    if "norm.weight" in part.shapes:
        options |= {"out_norm": True, "eps": float(it.section("text_config").get("rms_norm_eps", 1e-6))}
        rows.append(key("norm.weight", "norm.weight"))
    return ProjectorSpec("pixel_shuffle", options, rows, part)


def _aria(it: Candidate) -> ProjectorSpec:
    part = it.part("multi_modal_projector.")
    hidden, in_dim = part.shapes["feed_forward.linear_in.weight"]
    counts = it.config.get("projector_patch_to_query_dict") or {1225: 128, 4900: 256}
    options = {
        "in_dim": in_dim,
        "out_dim": part.shapes["feed_forward.linear_out.weight"][0],
        "counts": [[int(patches), int(queries)] for patches, queries in counts.items()],
        "num_heads": it.section("vision_config").get("num_attention_heads", 16),
        "hidden_dim": hidden,
        "exact": True,
        "num_queries": part.shapes["query"][0],
    }
    ours = tuple(f"attn.{x}_proj" for x in "qkv")
    rows = [key(f"{x}_proj.weight", f"cross_attn.{x}_proj.weight") for x in "qkv"]
    rows += [
        key("queries", "query"),
        *layer("query_norm", "cross_attn.layer_norm"),
        *layer("context_norm", "cross_attn.layer_norm_kv"),
        key(tuple(f"{name}.weight" for name in ours), "cross_attn.multihead_attn.in_proj_weight"),
        key(tuple(f"{name}.bias" for name in ours), "cross_attn.multihead_attn.in_proj_bias"),
        *layer("attn.o_proj", "cross_attn.multihead_attn.out_proj"),
        *layer("linear", "cross_attn.linear"),
        *layer("norm", "layer_norm"),
        key("fc1.weight", "feed_forward.linear_in.weight"),
        key("fc2.weight", "feed_forward.linear_out.weight"),
    ]
    return ProjectorSpec("query_attention", options, rows, part)


def _phi4(it: Candidate) -> ProjectorSpec:
    """Of one crop; the vectors between crops and rows are not part of it."""
    part = TowerWeights(
        it.weights,
        it.before,
        ignored=lambda name: not name.startswith(("img_projection_up.", "img_projection_down.")),
    )
    options, rows = _layers(part, ["img_projection_up", "img_projection_down"])
    rows = [key(tuple(f"mlp.{name}" for name in row.ours), row.theirs) for row in rows]
    del options["depth"]
    return ProjectorSpec("avg_pool", options | {"factor": 2, "how": "mean_mirrored"}, rows, part)


def _molmo2(it: Candidate) -> ProjectorSpec:
    """Tokens of the blocks in vision_feature_layer side by side; images pool two by two."""
    config = it.section("adapter_config")
    layers = ((1, "gate"), (2, "down"), (3, "up"))
    own = (  # Ai2's names
        (r"^image_pooling_2d\.w([qkvo])\.", r"image_pooling_2d.\1_proj."),
        *((rf"^image_projector\.w{i}\.", f"image_projector.{name}_proj.") for i, name in layers),
    )
    tower = "image_vit."
    part = _renamed(it, ("multi_modal_projector.", "vision_backbone."), own, lambda name: name.startswith(tower))
    width, inner = part.shapes["image_pooling_2d.o_proj.weight"]
    hidden, _ = part.shapes["image_projector.gate_proj.weight"]
    head_dim = config.get("head_dim", 72)
    options = {
        "in_dim": part.shapes["image_pooling_2d.q_proj.weight"][1],
        "out_dim": part.shapes["image_projector.down_proj.weight"][0],
        "width": width,
        "num_heads": inner // head_dim,
        "num_kv_heads": part.shapes["image_pooling_2d.k_proj.weight"][0] // head_dim,
        "head_dim": head_dim,
        "hidden_dim": hidden,
        "activation": it.activation(config, "hidden_act", "silu"),
        "attention_bias": "image_pooling_2d.q_proj.bias" in part.shapes,
        "masked": config.get("pooling_attention_mask", True),
        "mlp_bias": "image_projector.gate_proj.bias" in part.shapes,
    }
    rows = [key("mlp.down_proj.weight", "image_projector.down_proj.weight")]
    for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
        rows += layer(f"attn.{name}", f"image_pooling_2d.{name}", bias=bool(options["attention_bias"]))
    for name in ("gate_proj", "up_proj"):
        rows += layer(f"mlp.{name}", f"image_projector.{name}", bias=bool(options["mlp_bias"]))
    return ProjectorSpec("attention_pool", options, rows, part)


MODELS: dict[str, tuple[tuple[str, ...], Callable[[Candidate], ProjectorSpec]]] = {
    "aya_vision": (("multi_modal_projector.linear_2.weight",), _aya_vision),
    "cohere2_vision": (("multi_modal_projector.linear_2.weight",), _cohere2_vision),
    "lfm2_vl": (("multi_modal_projector.linear_2.weight",), _lfm2_vl),
    "cosmos3_edge": (("projector.linear_fc2.weight",), _cosmos3_edge),
    "hunyuan_vl": (("patch_merger.proj_conv.weight", "perceive.proj.0.weight"), _hunyuan),
    "hy_v4_vl": (("patch_merger.proj_conv.weight", "perceive.proj.0.weight"), _hunyuan),
    "gemma3": (("multi_modal_projector.mm_input_projection_weight",), _gemma3),
    "shieldgemma2": (("multi_modal_projector.mm_input_projection_weight",), _gemma3),
    "t5gemma2_encoder": (("multi_modal_projector.mm_input_projection_weight",), _gemma3),
    "deepseek_vl": (("aligner.linear2.weight",), _deepseek_vl),
    "janus": (("aligner.fc1.weight",), _janus),
    "vipllava": (("multi_modal_projector.linear_2.weight",), _vipllava),
    "git": (("visual_projection.visual_projection.0.weight",), _git),
    "modernvbert": (("connector.modality_projection.weight",), _modernvbert),
    "ultravbert": (("connector.modality_projection.weight",), _modernvbert),
    "aria": (("multi_modal_projector.feed_forward.linear_in.weight",), _aria),
    "phi4_multimodal": (("img_projection_up.weight",), _phi4),
    "molmo2": (
        ("multi_modal_projector.image_pooling_2d.q_proj.weight", "vision_backbone.image_pooling_2d.wq.weight"),
        _molmo2,
    ),
}
"""model_type of a whole model -> weights by one of which its projector is known, and its reader."""

_PAIRS = "its towers meet in vectors for whole images and texts: expected a model with a projector of patch tokens"

REFUSED: dict[str, str] = dict.fromkeys(
    (
        "clip",
        "metaclip_2",
        "altclip",
        "chinese_clip",
        "siglip",
        "siglip2",
        "aimv2",
        "tipsv2",
        "vision-text-dual-encoder",
    ),
    _PAIRS,
) | {
    "owlvit": "it finds objects and has no language model: expected a model with a projector of patch tokens",
    "owlv2": "it finds objects and has no language model: expected a model with a projector of patch tokens",
    "clipseg": "it segments images and has no language model: expected a model with a projector of patch tokens",
    "blip": "its language model reads the tokens by attention in each block: expected a model with a projector of patch tokens",
    "bridgetower": "its text tower reads the tokens by attention in several blocks: expected a model with a projector of patch tokens",
    "glm_image": "it turns tokens into discrete codes: expected a model with a projector of patch tokens",
    "deepseek_vl_hybrid": "its projector reads tokens of two towers at two sizes, which no projector here does",
    "granite4_vision": "it has several projectors, for several blocks of its language model: expected one",
    "granite_docling": "its tower's deep features go to blocks of its language model, with one of two projectors: expected one",
    "kosmos-2": "its projector reads the class token with the patches, which no projector here does",
    "pix2struct": "its decoder reads the tokens by attention in each block: expected a model with a projector of patch tokens",
    "mllama": "its language model reads tiles by attention in several blocks: expected a model with a projector of patch tokens",
    "unlimited_ocr": "its projector reads both stages of a tower that does not load: expected a model with one tower",
    **dict.fromkeys(
        ("sam3", "sam3_lite_text", "sam3_tracker", "sam3_tracker_video", "sam3_video"),
        "its neck makes several feature maps, and it has no language model: expected a model with a projector of patch tokens",
    ),
    "idefics": "its language model reads the tokens by attention in several blocks: expected a model with a projector of patch tokens",
    "instructblip": "its Q-Former reads the question with the image, which a projector cannot: expected BLIP-2's",
    "instructblipvideo": "its Q-Former reads the question with the image, which a projector cannot: expected BLIP-2's",
}
"""model_type of a whole model -> why no projector of it can be loaded."""
