"""Projectors of published models: the options and the key table of each form."""

import math
import re
from dataclasses import replace
from typing import Any

from vlm_vision.checkpoints.connectors import mergers, necks
from vlm_vision.checkpoints.connectors.candidate import Candidate, ProjectorSpec, Reader
from vlm_vision.checkpoints.connectors.candidate import shape_of as _shape
from vlm_vision.checkpoints.keys import Key, key, layer, squares
from vlm_vision.checkpoints.towers import TowerWeights, count


def _stack(name: str, part: TowerWeights, *layers: str, **options: Any) -> ProjectorSpec:
    """Linear layers, which we call fc1, fc2, ..., with biases unless the options say bias=False."""
    _, in_dim = _shape(part, f"{layers[0]}.weight", 2)
    out_dim, _ = _shape(part, f"{layers[-1]}.weight", 2)
    bias = options.get("bias", True)
    rows = [row for i, theirs in enumerate(layers, 1) for row in layer(f"fc{i}", theirs, bias=bias)]
    return ProjectorSpec(name, {"in_dim": in_dim, "out_dim": out_dim} | options, rows, part)


def _llava(candidate: Candidate) -> ProjectorSpec:
    act = candidate.activation(candidate.config, "projector_hidden_act", "gelu")
    bias = bool(candidate.config.get("multimodal_projector_bias", True))
    part = candidate.part("multi_modal_projector.")
    return _stack("mlp", part, "linear_1", "linear_2", bias=bias, activation=act)


def _llava_own(candidate: Candidate) -> ProjectorSpec:
    """LLaVA's own mlpNx_gelu: layers 0, 2, ..., with the activations in between."""
    kind = candidate.config.get("mm_projector_type", "mlp2x_gelu")
    if not re.fullmatch(r"mlp\d+x_gelu", kind):
        raise ValueError(f"{candidate.checkpoint} has mm_projector_type {kind!r}, expected linear or mlpNx_gelu")
    part = candidate.part("mm_projector.")
    depth = count(part.shapes, r"(\d+)\.weight$")
    return _stack("mlp", part, *(str(2 * i) for i in range(depth)), depth=depth)


def _llava_linear(candidate: Candidate) -> ProjectorSpec:
    part = candidate.part("mm_projector.")
    rows = [key("fc1.weight", "weight"), key("fc1.bias", "bias")]
    out_dim, in_dim = _shape(part, "weight", 2)
    return ProjectorSpec("linear", {"in_dim": in_dim, "out_dim": out_dim}, rows, part)


def _idefics3(candidate: Candidate) -> ProjectorSpec:
    part = candidate.part("connector.modality_projection.")
    out_dim, channels = _shape(part, "proj.weight", 2)
    shapes = candidate.weights.shapes
    width = next((shape[0] for name, shape in shapes.items() if name.endswith("patch_embedding.weight")), 0)
    scale = math.isqrt(channels // width) if width else 0
    if not width or scale * scale * width != channels:
        raise ValueError(
            f"{candidate.checkpoint}: its connector takes {channels} channels, expected a square number times the tower's {width}"
        )
    return ProjectorSpec(
        "pixel_shuffle",
        {"in_dim": width, "out_dim": out_dim, "scale": scale},
        layer("fc1", "proj", bias=False),
        part,
    )


def _idefics2(candidate: Candidate) -> ProjectorSpec:
    config = candidate.section("perceiver_config")
    part = candidate.part("connector.")
    act = candidate.activation(config, "hidden_act", "silu")
    first = candidate.activation(candidate.section("text_config"), "hidden_act", "silu")
    if act != first:
        raise ValueError(
            f"{candidate.checkpoint} has the activation {first} before its resampler and {act} in it, expected one for both"
        )
    hidden_dim, in_dim = _shape(part, "modality_projection.gate_proj.weight", 2)
    num_latents, out_dim = _shape(part, "perceiver_resampler.latents", 2)
    options = {
        "in_dim": in_dim,
        "out_dim": out_dim,
        "num_latents": num_latents,
        "depth": count(part.shapes, r"perceiver_resampler\.layers\.(\d+)\."),
        "num_heads": config.get("resampler_n_heads", 16),
        "num_kv_heads": config.get("num_key_value_heads", 4),
        "head_dim": config.get("resampler_head_dim", 96),
        "hidden_dim": hidden_dim,
        "activation": act,
        "eps": config.get("rms_norm_eps", 1e-6),
    }
    names = {
        "latents_norm": "input_latents_norm",
        "context_norm": "input_context_norm",
        "mlp_norm": "post_attention_layernorm",
    }
    names |= {f"attn.{x}_proj": f"self_attn.{x}_proj" for x in "qkvo"}
    names |= {f"mlp.{x}_proj": f"mlp.{x}_proj" for x in ("gate", "up", "down")}
    rows = [key("latents", "perceiver_resampler.latents"), key("norm.weight", "perceiver_resampler.norm.weight")]
    rows += [key(f"mlp.{x}_proj.weight", f"modality_projection.{x}_proj.weight") for x in ("gate", "up", "down")]
    for i in range(options["depth"]):
        theirs = f"perceiver_resampler.layers.{i}"
        rows += [key(f"layers.{i}.{ours}.weight", f"{theirs}.{name}.weight") for ours, name in names.items()]
    return ProjectorSpec("perceiver", options, rows, part)


def _qformer(candidate: Candidate) -> ProjectorSpec:
    config = candidate.section("qformer_config")
    query_tokens, last = f"{candidate.before}query_tokens", f"{candidate.before}language_projection"
    part = candidate.part("qformer.", query_tokens, f"{last}.weight", f"{last}.bias")
    if "encoder.layer.0.intermediate.dense.weight" in part.shapes:
        raise ValueError(
            f"{candidate.checkpoint}: its Q-Former reads the question with the image, which a projector cannot: expected that of BLIP-2"
        )
    if candidate.activation(config, "hidden_act", "gelu") != "gelu":
        raise ValueError(f"{candidate.checkpoint}: its Q-Former has hidden_act {config['hidden_act']!r}, expected gelu")
    _, num_queries, width = _shape(part, query_tokens, 3)
    hidden_dim, _ = _shape(part, "encoder.layer.0.intermediate_query.dense.weight", 2)
    _, in_dim = _shape(part, "encoder.layer.0.crossattention.attention.key.weight", 2)
    out_dim, _ = _shape(part, f"{last}.weight", 2)
    options = {
        "in_dim": in_dim,
        "out_dim": out_dim,
        "num_queries": num_queries,
        "width": width,
        "depth": count(part.shapes, r"encoder\.layer\.(\d+)\."),
        "num_heads": config.get("num_attention_heads", 12),
        "hidden_dim": hidden_dim,
        "cross_attention_frequency": config.get("cross_attention_frequency", 2),
        "eps": config.get("layer_norm_eps", 1e-12),
    }
    rows = [key("queries", query_tokens), *layer("norm", "layernorm"), *layer("fc1", last)]
    for i in range(options["depth"]):
        ours, theirs = f"layers.{i}", f"encoder.layer.{i}"
        rows += _bert_attention(f"{ours}.attn", f"{theirs}.attention")
        if i % options["cross_attention_frequency"] == 0:
            rows += _bert_attention(f"{ours}.cross", f"{theirs}.crossattention")
        rows += layer(f"{ours}.fc1", f"{theirs}.intermediate_query.dense")
        rows += layer(f"{ours}.fc2", f"{theirs}.output_query.dense")
        rows += layer(f"{ours}.mlp_norm", f"{theirs}.output_query.LayerNorm")
    return ProjectorSpec("qformer", options, rows, part)


def _bert_attention(ours: str, theirs: str) -> list[Key]:
    names = {"q_proj": "query", "k_proj": "key", "v_proj": "value"}
    rows = [row for our, their in names.items() for row in layer(f"{ours}.{our}", f"{theirs}.attention.{their}")]
    return (
        rows + layer(f"{ours}.o_proj", f"{theirs}.output.dense") + layer(f"{ours}_norm", f"{theirs}.output.LayerNorm")
    )


def _merger(part: TowerWeights, norm: str, fc1: str, fc2: str, **more: Any) -> ProjectorSpec:
    """Qwen's, with a layer norm, or an RMS norm, which has no bias."""
    layer_norm = f"{norm}.bias" in part.shapes
    (in_dim,) = _shape(part, f"{norm}.weight", 1)
    out_dim, channels = _shape(part, f"{fc2}.weight", 2)
    options: dict[str, Any] = {"in_dim": in_dim, "out_dim": out_dim, "merge": math.isqrt(channels // in_dim)}
    options["norm"] = "layer" if layer_norm else "rms"
    rows = layer("norm", norm, bias=layer_norm) + layer("fc1", fc1) + layer("fc2", fc2)
    return ProjectorSpec("patch_merger", options | more, rows, part)


def _qwen2_vl(candidate: Candidate) -> ProjectorSpec:
    """Of Qwen2-VL, Qwen2.5-VL, and HyperCLOVA X, which has one more linear map outside the tower."""
    root, shapes = candidate.before.removesuffix("vision_model."), candidate.weights.shapes
    last = [f"{root}{name}" for name in ("projector", "vision_projector") if f"{root}{name}.weight" in shapes]
    if root == candidate.before or not last:
        return _merger(candidate.part("merger."), "ln_q", "mlp.0", "mlp.2")
    after = last[0]
    part = candidate.part("merger.", f"{after}.weight", f"{after}.bias")
    found = _merger(part, "ln_q", "mlp.0", "mlp.2")
    out_dim, middle_dim = _shape(part, f"{after}.weight", 2)
    options = found.options | {"out_dim": out_dim, "middle_dim": middle_dim}
    return replace(found, options=options, keys=found.keys + layer("fc3", after))


def _paddle(part: TowerWeights) -> ProjectorSpec:
    return _merger(part, "pre_norm", "linear_1", "linear_2", eps=1e-5)


def _glm(candidate: Candidate) -> ProjectorSpec:
    config = candidate.section("vision_config") or candidate.config
    down = f"{candidate.before}downsample"
    part = candidate.part("merger.", f"{down}.weight", f"{down}.bias")
    out_dim, in_dim, merge, _ = _shape(part, f"{down}.weight", 4)
    hidden_dim, _ = _shape(part, "gate_proj.weight", 2)
    limited = config.get("model_type") == "glm5_next_vision" or candidate.config.get("model_type") == "glm5_next"
    options = {
        "in_dim": in_dim,
        "out_dim": out_dim,
        "merge": merge,
        "hidden_dim": hidden_dim,
        "activation": candidate.activation(config, "hidden_act", "silu"),
        "limit": float(config.get("swiglu_limit", 10.0)) if limited else None,
    }
    names = {"fc1": "proj"} | {f"mlp.{x}_proj": f"{x}_proj" for x in ("gate", "up", "down")}
    rows = [key("down.weight", f"{down}.weight", layout=squares(merge)), key("down.bias", f"{down}.bias")]
    rows += [key(f"{ours}.weight", f"{theirs}.weight") for ours, theirs in names.items()]
    return ProjectorSpec("gated_merger", options, rows + layer("norm", "post_projection_norm"), part)


def _ernie(candidate: Candidate) -> ProjectorSpec:
    part = candidate.part("resampler_model.")
    first, second, third = ("0", "2", "3") if "spatial_linear.0.weight" in part.shapes else ("fc1", "fc2", "ln")
    width, _ = _shape(part, f"spatial_linear.{first}.weight", 2)
    _, pairs = _shape(part, f"temporal_linear.{first}.weight", 2)
    if pairs != 2 * width:
        raise ValueError(
            f"{candidate.checkpoint}: its resampler merges {pairs // width} frames, which transformers cannot either: expected 2"
        )
    out_dim, _ = _shape(part, "mlp.weight", 2)
    vision, text = candidate.section("vision_config"), candidate.section("text_config")
    options = {
        "in_dim": width // vision.get("spatial_merge_size", 2) ** 2,
        "out_dim": out_dim,
        "merge": vision.get("spatial_merge_size", 2),
        "eps": float(vision.get("rms_norm_eps", 1e-6)),
        "out_eps": float(text.get("rms_norm_eps", 1e-5)),
    }
    rows = layer("fc", "mlp") + [key("norm.weight", "after_norm.weight")]
    for kind in ("spatial", "temporal"):
        for ours, theirs in zip(("fc1", "fc2", "norm"), (first, second, third), strict=True):
            rows += layer(f"{kind}_{ours}", f"{kind}_linear.{theirs}")
    return ProjectorSpec("frame_merger", options, rows, part)


def _video_llama_3(candidate: Candidate) -> ProjectorSpec:
    """Its image processor states how many patches become one; the default is one."""
    found, merge = _stack("mlp", candidate.part("projector.readout."), "0", "2"), candidate.merge_size()
    if merge == 1:
        return found
    rows = [replace(row, ours=tuple(f"mlp.{name}" for name in row.ours)) for row in found.keys]
    return replace(found, name="avg_pool", options=found.options | {"factor": merge, "how": "bilinear"}, keys=rows)


FORMS: dict[str, Reader] = (
    mergers.FORMS
    | necks.FORMS
    | {
        "projector.fc3.weight": lambda it: _stack(
            "fused_mlp", it.part("projector."), "fc1", "fc2", "fc3"
        ),  # OpenVLA, OFT
        "projector.fc2.weight": lambda it: _stack(
            "mlp", it.part("projector."), "fc1", "fc2"
        ),  # the same with one tower
        "projector.projector.4.weight": lambda it: _stack("fused_mlp", it.part("projector.projector."), "0", "2", "4"),
        "projector.projector.2.weight": lambda it: _stack(
            "mlp", it.part("projector.projector."), "0", "2"
        ),  # Prismatic's own
        "multi_modal_projector.linear_2.weight": _llava,  # LLaVA in transformers
        "mm_projector.0.weight": _llava_own,
        "mm_projector.weight": _llava_linear,
        "multi_modal_projector.linear.weight": lambda it: _stack("linear", it.part("multi_modal_projector."), "linear"),
        "connector.modality_projection.proj.weight": _idefics3,  # SmolVLM, SmolVLA
        "connector.perceiver_resampler.latents": _idefics2,
        "query_tokens": _qformer,  # BLIP-2
        "merger.mlp.2.weight": _qwen2_vl,  # and Qwen2.5-VL, Qwen3-Omni, dots3
        "adapter.mlp.2.weight": lambda it: _merger(it.part("adapter."), "ln_q", "mlp.0", "mlp.2"),  # dots3 on the hub
        "merger.linear_fc2.weight": lambda it: _merger(
            it.part("merger."), "norm", "linear_fc1", "linear_fc2"
        ),  # Qwen3-VL
        "projector.pre_norm.weight": lambda it: _paddle(it.part("projector.")),
        "mlp_AR.pre_norm.weight": lambda it: _paddle(it.part("mlp_AR.")),
        "merger.post_projection_norm.weight": _glm,
        "resampler_model.mlp.weight": _ernie,
        "projector.readout.2.weight": _video_llama_3,
    }
)
"""Weight that identifies a form -> its reader."""
