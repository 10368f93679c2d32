"""Connectors that merge neighboring tokens: InternVL, Nemotron Omni, Mistral, LightOnOCR, Llama 4, Inkling 2, Muse, Kimi, MiniMax,
Step 3 and Ovis2."""

from typing import Any

from vlm_vision.checkpoints.connectors.candidate import Candidate, ProjectorSpec, Reader, shape_of
from vlm_vision.checkpoints.keys import Key, TensorLayout, key, layer
from vlm_vision.checkpoints.towers import TowerWeights


def _only(candidate: Candidate, *names: str) -> TowerWeights:
    """These weights alone, under their whole names."""
    return TowerWeights(candidate.weights, None, extra=names)


def _layers(candidate: Candidate, *names: str) -> TowerWeights:
    """Weight and bias of each layer, under their whole names."""
    return _only(candidate, *(f"{name}.{part}" for name in names for part in ("weight", "bias")))


def _merge_mlp(
    part: TowerWeights,
    *layers: str,
    activations: tuple[str, ...],
    merge: int,
    norm: str = "",
    merged_norm: str = "",
    channels_first: bool = False,
    **options: Any,
) -> ProjectorSpec:
    """`MergeMLP` of the layers of these names; `channels_first` if a square is stored as (channel, row, column)."""
    merge_at = options.get("merge_at", 0)
    into = shape_of(part, f"{layers[0]}.weight", 2)[1]
    widths = [shape_of(part, f"{name}.weight", 2)[0] for name in layers]
    options |= dict(
        in_dim=into // merge**2 if merge_at == 0 else into,
        out_dim=widths[-1],
        merge=merge,
        widths=tuple(widths[:-1]),
        activations=activations,
        biases=tuple(f"{name}.bias" in part.shapes for name in layers),
    )
    rows: list[Key] = []
    for i, (name, bias) in enumerate(zip(layers, options["biases"], strict=True)):
        layout = _channels_first(merge) if channels_first and i == merge_at else None
        rows.append(key(f"layers.{i}.weight", f"{name}.weight", layout=layout))
        rows += [key(f"layers.{i}.bias", f"{name}.bias")] if bias else []
    for ours, theirs in (("norm", norm), ("merged_norm", merged_norm)):
        if theirs:
            affine = f"{theirs}.bias" in part.shapes
            options[ours] = "layer" if affine else "rms"
            rows += layer(ours, theirs, bias=affine)
    return ProjectorSpec("merge_mlp", options, rows, part)


def _channels_first(merge: int) -> TensorLayout:
    """Our linear map of a square in (row, column, channel) order as one of (channel, row, column)."""
    return TensorLayout(
        write=lambda x: x.unflatten(1, (merge**2, -1)).transpose(1, 2).flatten(1),
        read=lambda x, shape: x.unflatten(1, (-1, merge**2)).transpose(1, 2).flatten(1),
    )


def _internvl(candidate: Candidate, prefix: str, norm: str, *linear: str) -> ProjectorSpec:
    """Of InternVL and Qianfan-OCR; Nemotron Omni's has an RMS norm, and for some a norm of the tokens before it."""
    config = candidate.config
    merge = int(1 / config.get("downsample_ratio", 0.5))
    names = [f"{candidate.before}{prefix}{name}" for name in (norm, *linear)]
    if f"{names[0]}.bias" in candidate.weights.shapes:
        act = candidate.activation(config, "projector_hidden_act", "gelu")
        part = _layers(candidate, *names)
        return _merge_mlp(part, *names[1:], activations=(act, "none"), merge=merge, merged_norm=names[0])
    final = [
        f"{candidate.before}{name}" for name in ("vision_final_layernorm", "vision_projector.vision_final_layernorm")
    ]
    final = [name for name in final if f"{name}.weight" in candidate.weights.shapes]
    vision = config.get("vision_config") or {}
    return _merge_mlp(
        _layers(candidate, *names, *final),
        *names[1:],
        activations=("relu_squared", "none"),
        merge=merge,
        merged_norm=names[0],
        norm="".join(final),
        eps=(float(vision.get("layer_norm_eps", 1e-6)), 1e-5),
    )


def _mistral(candidate: Candidate) -> ProjectorSpec:
    """Of Mistral Small 3.1, LightOnOCR and, under other names, of Mistral Large 4's public files."""
    merger, before = f"{candidate.before}patch_merger.merging_layer", candidate.before
    names = [f"{before}{name}" for name in ("norm", "linear_1", "linear_2")]
    if not before.endswith(("multi_modal_projector.", "vision_projection.")):
        adapter = f"{before}vision_language_adapter"
        names = [f"{before}pre_mm_projector_norm", f"{adapter}.w_in", f"{adapter}.w_out"]
    config, text = candidate.config, candidate.section("text_config")
    usual = 1e-5 if config.get("model_type") == "mistral_large4" else 1e-6
    return _merge_mlp(
        _layers(candidate, merger, *names),
        merger,
        *names[1:],
        activations=("none", candidate.activation(config, "projector_hidden_act", "gelu"), "none"),
        merge=config.get("spatial_merge_size", 2),
        norm=names[0],
        channels_first=True,
        eps=(float(text.get("rms_norm_eps", usual)), 1e-5),
        floor=True,
    )


def _llama4(candidate: Candidate) -> ProjectorSpec:
    before = candidate.before
    names = [f"{before}vision_adapter.mlp.{name}" for name in ("fc1", "fc2")]
    names.append(f"{before.removesuffix('vision_model.')}multi_modal_projector.linear_1")
    if f"{names[2]}.weight" not in candidate.weights.shapes:
        raise ValueError(
            f"{candidate.checkpoint} holds Llama 4's adapter without its last layer, multi_modal_projector.linear_1: give the "
            "folder of the whole model"
        )
    config = candidate.config.get("vision_config") or {}
    part = _layers(candidate, *names)
    ratio = config.get("pixel_shuffle_ratio", 0.5)
    return _merge_mlp(part, *names, activations=("gelu", "gelu", "none"), merge=round(1 / ratio))


def _inkling2(candidate: Candidate, *layers: str) -> ProjectorSpec:
    config = candidate.config.get("vision_config") or candidate.config
    names = [f"{candidate.before}{name}" for name in layers]
    return _merge_mlp(
        _layers(candidate, *names),
        *names,
        activations=(candidate.activation(config, "hidden_act", "gelu"), "none"),
        merge=config.get("spatial_merge_size") or config.get("adapter_merge_size") or 2,
    )


def _muse(candidate: Candidate) -> ProjectorSpec:
    names = [f"{candidate.before}{name}" for name in ("vision_adapter.fc1", "vision_adapter.fc2", "vision_projection")]
    act = candidate.activation(candidate.config, "projector_hidden_act", "gelu")
    return _merge_mlp(
        _layers(candidate, *names),
        *names,
        activations=(act, act, "none"),
        merge=candidate.section("vision_config").get("merge_size", 2),
        channels_first=True,
        out_eps=float(candidate.section("text_config").get("rms_norm_eps", 1e-5)),
    )


def _kimi(candidate: Candidate, *layers: str) -> ProjectorSpec:
    rows, columns = candidate.section("vision_config").get("merge_kernel_size", (2, 2))
    if rows != columns:
        raise ValueError(f"{candidate.checkpoint} has merge_kernel_size {[rows, columns]}, expected a square")
    names = [f"{candidate.before}mm_projector.{name}" for name in layers]
    norms = [f"{before}mm_projector.pre_norm" for before in (candidate.before, f"{candidate.before}model.")]
    norm = next(name for name in norms if f"{name}.weight" in candidate.weights.shapes)
    return _merge_mlp(
        _layers(candidate, norm, *names),
        *names,
        activations=("gelu", "none"),
        merge=rows,
        norm=norm,
        eps=(float(candidate.config.get("projection_layer_norm_eps", 1e-5)), 1e-5),
    )


def _minimax(candidate: Candidate, merger: str) -> ProjectorSpec:
    names = [f"{candidate.before}multi_modal_projector.{name}" for name in ("linear_1", "linear_2")]
    names += [f"{candidate.before}{merger}{name}" for name in ("linear_1", "linear_2")]
    return _merge_mlp(
        _layers(candidate, *names),
        *names,
        activations=("gelu", "none", "gelu", "none"),
        merge=candidate.section("vision_config").get("spatial_merge_size", 2),
        merge_at=2,
    )


def _step3(candidate: Candidate, downsampler: str) -> ProjectorSpec:
    convs = [f"{candidate.before}{downsampler}{i}" for i in (1, 2)]
    around = candidate.before.removesuffix("vision_model.")
    ends = [f"{around}{name}" for name in ("multi_modal_projector", "vit_large_projector")]
    end = next((name for name in ends if f"{name}.weight" in candidate.weights.shapes), None)
    if end is None:
        raise ValueError(
            f"{candidate.checkpoint} holds Step 3's convolutions without the linear layer after them: give the folder of the "
            "whole model"
        )
    part = _layers(candidate, *convs, end)
    out_dim, _ = shape_of(part, f"{end}.weight", 2)
    _, in_dim, _, _ = shape_of(part, f"{convs[0]}.weight", 4)
    bias = f"{end}.bias" in part.shapes
    rows = [row for i, name in enumerate(convs) for row in layer(f"convs.{i}", name)] + layer("fc", end, bias=bias)
    return ProjectorSpec("conv_downsample", {"in_dim": in_dim, "out_dim": out_dim, "bias": bias}, rows, part)


_CHOICES = {"softmax": "softmax", "st_argmax": "argmax"}


def _ovis2(candidate: Candidate) -> ProjectorSpec:
    config = candidate.section("vision_config")
    kind = config.get("tokenize_function", "softmax")
    if kind not in _CHOICES:
        raise ValueError(
            f"{candidate.checkpoint} has tokenize_function {kind!r}, expected one of {', '.join(_CHOICES)}"
        )
    tower, table = f"{candidate.before}vision_tower.", f"{candidate.before}visual_embeddings_table.weight"
    head, norm = f"{tower}head_linear.weight", f"{tower}head_norm"
    part = _only(candidate, table, head, f"{norm}.weight", f"{norm}.bias")
    words, into = shape_of(part, head, 2)
    rows, out_dim = shape_of(part, table, 2)
    merge = config.get("hidden_stride", 1)
    options = {
        "in_dim": into // merge**2,
        "out_dim": out_dim,
        "words": words,
        "indicators": rows - words,
        "merge": merge,
        "choice": _CHOICES[kind],
    }
    keys = [key("table.weight", table), key("logits.weight", head), *layer("norm", norm)]
    return ProjectorSpec("visual_vocabulary", options, keys, part)


FORMS: dict[str, Reader] = {
    "multi_modal_projector.layer_norm.weight": lambda it: _internvl(
        it, "multi_modal_projector.", "layer_norm", "linear_1", "linear_2"
    ),
    "mlp1.0.weight": lambda it: _internvl(it, "mlp1.", "0", "1", "3"),  # their public files
    "patch_merger.merging_layer.weight": _mistral,
    "vision_adapter.mlp.fc2.weight": _llama4,
    "merger.linear_2.weight": lambda it: _inkling2(it, "merger.linear_1", "merger.linear_2"),
    "vision_tower.proj_in.weight": lambda it: _inkling2(it, "vision_tower.proj_in", "vision_tower.proj_out"),
    "visual.proj_in.weight": lambda it: _inkling2(it, "visual.proj_in", "visual.proj_out"),
    "vision_projection.weight": _muse,
    "mm_projector.in_proj.weight": lambda it: _kimi(it, "in_proj", "out_proj"),
    "mm_projector.proj.0.weight": lambda it: _kimi(it, "proj.0", "proj.2"),
    "multi_modal_projector.merge_linear_2.weight": lambda it: _minimax(it, "multi_modal_projector.merge_"),
    "patch_merge_mlp.linear_2.weight": lambda it: _minimax(it, "patch_merge_mlp."),
    "downsampler2.weight": lambda it: _step3(it, "downsampler"),
    "vit_downsampler2.weight": lambda it: _step3(it, "vit_downsampler"),
    "visual_embeddings_table.weight": _ovis2,
}
"""The weight by which a form is known -> its reader."""
