"""Connectors of Gemma 4, MiniCPM-V, the towers of SAM, and Kosmos-2.5."""

from vlm_vision.checkpoints.connectors.candidate import Candidate, ProjectorSpec, Reader, shape_of
from vlm_vision.checkpoints.keys import key, layer


def _gemma4(candidate: Candidate) -> ProjectorSpec:
    config = candidate.section("vision_config")
    shift, gain = (f"{candidate.before}vision_tower.std_{name}" for name in ("bias", "scale"))
    part = candidate.part("embed_vision.", shift, gain)
    out_dim, in_dim = shape_of(part, "embedding_projection.weight", 2)
    eps, standardize = float(config.get("rms_norm_eps", 1e-6)), shift in part.shapes
    options = {
        "in_dim": in_dim,
        "out_dim": out_dim,
        "factor": config.get("pooling_kernel_size", 3),
        "eps": eps if standardize else eps / in_dim,  # the norm undoes the factor before it, but for eps
        "weighted": False,
        "standardize": standardize,
    }
    rows = [key("shift", shift), key("gain", gain)] if shift in part.shapes else []
    return ProjectorSpec("pooled_linear", options, rows + layer("fc1", "embedding_projection", bias=False), part)


def _minicpm(candidate: Candidate) -> ProjectorSpec:
    part = candidate.part("merger.mlp.")
    if rounds := candidate.config.get("merger_times", 1) - 1:
        raise ValueError(
            f"{candidate.checkpoint} has merger_times {rounds + 1}, expected 1: one merger of 2 x 2 tokens"
        )
    sides = list(candidate.config.get("merge_kernel_size") or (2, 2))
    if sides != [2, 2]:
        raise ValueError(f"{candidate.checkpoint} has merge_kernel_size {sides}, expected [2, 2]")
    out_dim, channels = shape_of(part, "0.linear_2.weight", 2)
    options = {"in_dim": channels // 4, "out_dim": out_dim, "merge": 2, "norm": "layer_after"}
    rows = layer("norm", "0.pre_norm") + layer("fc1", "0.linear_1") + layer("fc2", "0.linear_2")
    return ProjectorSpec("patch_merger", options, rows, part)


def _neck(
    candidate: Candidate, *, stem: str = "", down: tuple[str, ...] = (), linear: tuple[str, ...] = ()
) -> ProjectorSpec:
    """SAM's neck under `stem`, and the convolutions and linear maps behind it, by their names after the stem's first part."""
    beside = [f"{candidate.before}{name}.{part}" for name in (*down, *linear) for part in ("weight", "bias")]
    part = candidate.part(f"{stem}neck.", *beside)
    width, in_dim, *_ = shape_of(part, "conv1.weight", 4)
    rows = [
        row for i in (1, 2) for row in layer(f"conv{i}", f"conv{i}", bias=False) + layer(f"norm{i}", f"layer_norm{i}")
    ]
    widths = []
    for i, name in enumerate(down):
        widths.append(shape_of(part, f"{candidate.before}{name}.weight", 4)[0])
        rows += layer(f"down.{i}", f"{candidate.before}{name}", bias=False)
    out_dim = (widths or [width])[-1]
    for i, name in enumerate(linear):
        out_dim, _ = shape_of(part, f"{candidate.before}{name}.weight", 2)
        rows += layer(f"fc.{i}", f"{candidate.before}{name}")
    options = {"in_dim": in_dim, "out_dim": out_dim, "width": width, "down": widths, "linear": len(linear)}
    return ProjectorSpec("conv_neck", options, rows, part)


def _got_ocr2(candidate: Candidate) -> ProjectorSpec:
    down = ("multi_modal_projector.conv_upsampler1", "multi_modal_projector.conv_upsampler2")
    linear = ("multi_modal_projector.multimodal_projector",)
    return _neck(candidate, stem="vision_tower.", down=down, linear=linear)


def _pp_formulanet(candidate: Candidate) -> ProjectorSpec:
    down = ("multi_modal_projector.conv1", "multi_modal_projector.conv2")
    return _neck(candidate, down=down, linear=("multi_modal_projector.linear_1", "multi_modal_projector.linear_2"))


def _kosmos(candidate: Candidate) -> ProjectorSpec:
    config = candidate.section("text_config")
    part = candidate.part("image_to_text_projection.")
    out_dim, in_dim = shape_of(part, "dense.weight", 2)
    num_latents, _ = shape_of(part, "latent_query", 2)
    options = {"in_dim": in_dim, "out_dim": out_dim, "num_latents": num_latents}
    options["num_heads"] = config.get("attention_heads", 16)
    rows = [key("latents", "latent_query"), *layer("fc1", "dense")]
    for ours, theirs in (("q_proj", "q_proj"), ("k_proj", "k_proj"), ("v_proj", "v_proj"), ("o_proj", "out_proj")):
        rows += layer(f"attn.{ours}", f"x_attn.{theirs}")
    return ProjectorSpec("latent_attention", options, rows, part)


FORMS: dict[str, Reader] = {
    "multi_modal_projector.conv_upsampler2.weight": _got_ocr2,  # and PP-Chart2Table
    "multi_modal_projector.conv2.weight": _pp_formulanet,
    "post_conv.weight": lambda it: _neck(it, stem="vision_tower.", down=("post_conv",)),
    "vision_encoder.neck.conv2.weight": lambda it: _neck(it, stem="vision_encoder."),  # SAM, HQ-SAM
    "embed_vision.embedding_projection.weight": _gemma4,
    "merger.mlp.0.linear_2.weight": _minicpm,
    "image_to_text_projection.latent_query": _kosmos,
}
"""Weight that identifies a form -> its reader."""
