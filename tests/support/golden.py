"""The golden encoder cases: how each is loaded and which of our outputs is which of its tensors."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from einops import rearrange
from safetensors.torch import load_file
from torch import Tensor

import vlm_vision as vv
from vlm_vision.encoder import Encoder

TOLERANCE = 1e-5
"""Of the output's scale; the references' own fp32 noise is below 2e-6."""

FILES = {
    "dinov2_pth": "model.pth",
    "dinov2_pth_reg4": "model.pth",
    "dinov2_pth_swiglu": "model.pth",
    "dinov3_pth": "model.pth",
    "dinov3_pth_swiglu": "model.pth",
    "timm_deit_distilled_pth": "checkpoint.pth",
    "bv_siglip": "siglip.npz",
    "bv_siglip2_scan": "siglip.npz",
    "bv_augreg_npz": "augreg.npz",
    "bv_naflex": "naflex.npz",
}
"""Cases whose checkpoint is a file; the others are folders."""

ENCODERS = [
    "hf_vit", "hf_vit_cls", "hf_vit_mae", "hf_deit_distilled", "hf_ijepa", "hf_clip_quickgelu", "hf_clip_gelu_sharded",
    "hf_clip_vision_proj", "hf_siglip", "hf_siglip_p14_cropped", "hf_dinov2", "hf_dinov2_reg", "hf_dinov2_swiglu",
    "hf_dinov3", "hf_dinov3_gated", "hf_aimv2", "timm_augreg", "timm_deit3", "timm_dinov2_reg4", "timm_dinov3",
    "timm_siglip_exact_gelu", "timm_siglip_tanh_gelu", "timm_deit_distilled_pth", "dinov2_pth", "dinov2_pth_reg4",
    "dinov2_pth_swiglu", "dinov3_pth", "dinov3_pth_swiglu", "open_clip_quickgelu", "open_clip_gelu_resized",
    "open_clip_siglip", "bv_siglip", "bv_siglip2_scan", "bv_augreg_npz",
]  # fmt: skip
"""Cases that take (B, C, H, W) pixels."""

NAFLEX = ["hf_siglip2_naflex", "timm_naflex_siglip", "bv_naflex"]
"""Cases that take patch vectors of images of any shape."""


@dataclass
class Case:
    """One golden case and our encoder of it."""

    about: dict
    golden: dict[str, Tensor]
    encoder: Encoder

    @property
    def last_block(self) -> bool:
        """Whether `tokens` are those of the last block before the norm (CLIP in transformers)."""
        return "NO final norm" in self.about["outputs"].get("tokens", "")


HERE = Path(__file__).resolve().parents[1] / "data" / "golden"
"""One case of each format and the losses: enough to prove exactness in a clone alone."""


def shared_folder() -> Path:
    """Folder with all cases and with real weights: VLM_VISION_SHARED, or shared beside the checkout."""
    return Path(os.environ.get("VLM_VISION_SHARED", Path(__file__).resolve().parents[3] / "shared"))


def golden_case(name: str) -> Path:
    """Folder of a case, or a file in it; skips the test where neither the checkout nor the shared folder has the case."""
    for root in (HERE, shared_folder() / "golden"):
        if (root / name).exists():
            return root / name
    pytest.skip(f"no golden case {name} in tests/data/golden or {shared_folder()}: VLM_VISION_SHARED names the folder")


def case(name: str) -> Case:
    """Load case `name` as a user would."""
    folder = golden_case(name)
    encoder = vv.load(source(name))
    assert isinstance(encoder, Encoder)
    return Case(json.loads((folder / "case.json").read_text()), load_file(folder / "golden.safetensors"), encoder)


def error(ours: Tensor | None, golden: Tensor) -> float:
    """Largest difference over the golden's largest value."""
    assert ours is not None and ours.shape == golden.shape
    return ((ours - golden).abs().max() / golden.abs().max()).item()


def with_prefix(out: vv.VisionOutput) -> Tensor:
    """All tokens in the order of every reference: CLS, registers, patches."""
    prefix = [out.cls_token[:, None]] if out.cls_token is not None else []
    prefix += [out.register_tokens] if out.register_tokens is not None else []
    return torch.cat([*prefix, out.patch_tokens], dim=1)


def errors(case: Case, run: str) -> dict[str, float]:
    """Error of every tensor that the case holds for a run."""
    golden, encoder = case.golden, case.encoder
    pixels = golden[f"pixel_values.{run}"]
    normed = encoder(pixels)
    raw = encoder(pixels, tap=vv.Tap(-1, norm=False))
    before = encoder(pixels, tap=vv.Tap(-2, norm=False))
    tokens = with_prefix(raw if case.last_block else normed)
    ours = {
        "embed": encoder.model.embed(pixels)[0],
        "block": with_prefix(before),
        "block_patches": before.patch_tokens,
        "block_patches_norm": encoder(pixels, tap=vv.Tap(-2)).patch_tokens,
        "last": with_prefix(raw),
        "prenorm": with_prefix(raw),
        "tokens": tokens,
        "pooled": normed.cls_token
        if f"image_features.{run}" in golden and normed.cls_token is not None
        else normed.pooled,
        "image_features": normed.pooled,
        "logits": normed.logits,
    }
    if encoder.model.head_dist is not None:
        ours["cls_logits"] = encoder.model.head(normed.cls_token)
        ours["distillation_logits"] = encoder.model.head_dist(normed.register_tokens[:, 0])
    assert normed.grid == tuple(case.about["runs"][run]["grid"])
    assert encoder.num_patch_tokens(*pixels.shape[-2:]) == normed.patch_tokens.shape[1]
    return {name: error(value, golden[f"{name}.{run}"]) for name, value in ours.items() if f"{name}.{run}" in golden}


def images(case: Case, run: str) -> list[Tensor]:
    """The images (3, H, W) whose patch vectors a NaFlex case holds."""
    size = case.encoder.config.patch_size
    stored = next(
        case.golden[f"{name}.{run}"] for name in ("pixel_values", "patches") if f"{name}.{run}" in case.golden
    )
    shapes = case.about["runs"][run]["spatial_shapes"]
    return [
        rearrange(row[: h * w], "(h w) (p q c) -> c (h p) (w q)", h=h, w=w, p=size, q=size)
        for row, (h, w) in zip(stored, shapes, strict=True)
    ]


def naflex_errors(case: Case, run: str) -> dict[str, float]:
    """Worst error over the images of a NaFlex run, all packed in one sequence."""
    seen = images(case, run)
    normed, before = case.encoder.packed(seen), case.encoder.packed(seen, tap=vv.Tap(-2, norm=False))
    found: dict[str, list[float]] = {}
    for i, (out, block, image) in enumerate(zip(normed, before, seen, strict=True)):
        count = out.patch_tokens.shape[1]
        ours = {
            "tokens": out.patch_tokens,
            "block": block.patch_tokens,
            "embed": case.encoder.model.embed(image[None])[0],
        }
        for name, value in ours.items():
            found.setdefault(name, []).append(error(value[0], case.golden[f"{name}.{run}"][i, :count]))
        found.setdefault("pooled", []).append(error(out.pooled[0], case.golden[f"pooled.{run}"][i]))
    return {name: max(values) for name, values in found.items()}


PAIRS = [
    "hf_clip_quickgelu", "hf_clip_gelu_sharded", "hf_siglip", "hf_siglip2_naflex", "open_clip_quickgelu",
    "open_clip_siglip", "bv_siglip", "bv_siglip2_scan",
]  # fmt: skip
"""Cases with a text tower."""


def source(name: str) -> Path:
    """What a user gives `load` for a case."""
    folder = golden_case(name)
    return folder / FILES[name] if name in FILES else folder


def pair_errors(name: str) -> dict[str, float]:
    """Error of every text tensor of a case, and of images against texts."""
    folder = golden_case(name)
    golden = {key.removesuffix(".native"): value for key, value in load_file(folder / "golden.safetensors").items()}
    about = json.loads((folder / "case.json").read_text())
    ids = golden["input_ids"] if "input_ids" in golden else torch.tensor(about["text_inputs"]["input_ids"])
    pixels = images(case(name), "native") if name in NAFLEX else golden["pixel_values"]
    pair = vv.load_pair(source(name))
    out, text = pair(pixels, ids), pair.text(ids)
    ours = {
        "text_tokens": text.tokens,
        "text_features": text.features,
        "image_embeds": out.image_embeds,
        "text_embeds": out.text_embeds,
        "logits_per_image": out.logits_per_image,
    }
    if "sigmoid_loss" in golden:  # big_vision gives the loss in the place of the logits
        signs = 2 * torch.eye(len(ids)) - 1
        ours["sigmoid_loss"] = -torch.nn.functional.logsigmoid(signs * out.logits_per_image).sum(dim=-1).mean()
    return {key: error(value, golden[key]) for key, value in ours.items() if key in golden}


def model_errors(name: str) -> dict[str, float]:
    """Error of the vision features and projector output of a vision-language or vision-language-action model."""
    folder = golden_case(name)
    golden, arch = load_file(folder / "golden.safetensors"), json.loads((folder / "case.json").read_text())["arch"]
    encoder, projector = vv.load(folder), vv.load_projector(folder)
    layer = arch.get("vision_feature_layer")
    out = encoder(golden["pixel_values"], tap=None if layer is None else vv.Tap(layer, norm=False))
    features = golden["features" if layer is not None else "patch_features"]
    projected = projector(out.patch_tokens, out.grid)
    return {"features": error(out.patch_tokens, features), "projected": error(projected, golden["projected"])}


MODELS = ["hf_llava_clip", "hf_llava_siglip_fp16", "openvla_fused_bf16"]


def table() -> str:
    """case, reference and worst error of every encoder, text tower, pair and VLA tower, as Markdown."""
    rows = ["| case | reference | tensors | worst error | of |", "|---|---|---|---|---|"]
    for name in [*ENCODERS, *NAFLEX, *PAIRS, *MODELS]:
        reference = json.loads((golden_case(name) / "case.json").read_text())["reference"]
        found: dict[str, float] = {}
        if name in ENCODERS or name in NAFLEX:
            loaded = case(name)
            measure = naflex_errors if name in NAFLEX else errors
            for run in loaded.about["runs"]:
                found |= {f"{key}.{run}": value for key, value in measure(loaded, run).items()}
        if name in PAIRS:
            found |= pair_errors(name)
        if name in MODELS:
            found |= model_errors(name)
        worst = max(found, key=lambda key: found[key])
        row = f"| {name} | {reference['name']} {str(reference['version'])[:10]} | {len(found)} | {found[worst]:.0e} | {worst} |"
        rows += [row] if row not in rows else []
    return "\n".join(rows)


if __name__ == "__main__":
    with torch.inference_mode():
        print(table())
