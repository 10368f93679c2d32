"""The table of families and formats in docs/encoders.md is what the code says, and every cell of it loads here."""

import json
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.golden import golden_case

import vlm_vision as vv
from vlm_vision.checkpoints.families.all import FAMILIES, TOWERS, resize_rule
from vlm_vision.checkpoints.save import FORMATS as WRITTEN
from vlm_vision.checkpoints.sniff import FORMATS
from vlm_vision.cli.main import main
from vlm_vision.encoder import Origin
from vlm_vision.new_models import new_encoder

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "encoders.md").read_text()

GOLDEN = {
    ("hf", "vit"): "hf_vit", ("hf", "deit"): "hf_deit_distilled", ("hf", "vit_mae"): "hf_vit_mae",
    ("hf", "ijepa"): "hf_ijepa", ("hf", "dinov2"): "hf_dinov2", ("hf", "dinov2_with_registers"): "hf_dinov2_reg",
    ("hf", "dinov3_vit"): "hf_dinov3", ("hf", "clip_vision_model"): "hf_clip_quickgelu",
    ("hf", "siglip_vision_model"): "hf_siglip", ("hf", "siglip2_vision_model"): "hf_siglip2_naflex",
    ("hf", "aimv2_vision_model"): "hf_aimv2", ("timm", "vit"): "timm_augreg", ("timm", "deit"): "timm_deit3",
    ("timm", "dinov2_with_registers"): "timm_dinov2_reg4", ("timm", "dinov3_vit"): "timm_dinov3",
    ("timm", "siglip_vision_model"): "timm_siglip_tanh_gelu", ("timm", "siglip2_vision_model"): "timm_naflex_siglip",
    ("pth", "deit"): "timm_deit_distilled_pth/checkpoint.pth", ("pth", "dinov2"): "dinov2_pth/model.pth",
    ("pth", "dinov2_with_registers"): "dinov2_pth_reg4/model.pth", ("pth", "dinov3_vit"): "dinov3_pth/model.pth",
    ("open_clip", "clip_vision_model"): "open_clip_quickgelu", ("open_clip", "siglip_vision_model"): "open_clip_siglip",
    ("big_vision", "vit"): "bv_augreg_npz/augreg.npz", ("big_vision", "siglip_vision_model"): "bv_siglip/siglip.npz",
    ("big_vision", "siglip2_vision_model"): "bv_naflex/naflex.npz",
}  # fmt: skip
"""Cells that a golden case proves to 1e-5."""

CENSUS = {family.name for family in TOWERS if not family.presets}
"""Towers that tests/checkpoints/test_census.py proves, and no preset describes."""

CELLS = [(form, family) for form, families in FORMATS.items() for family in families if family not in CENSUS]


def test_the_table_in_the_docs_is_the_one_of_the_code(capsys):
    assert main(["formats"]) == 0
    assert capsys.readouterr().out in PAGE


@pytest.mark.parametrize(("form", "family"), CELLS)
@torch.inference_mode()
def test_every_cell_loads(tmp_path, form, family):
    source = golden_case(GOLDEN[form, family]) if (form, family) in GOLDEN else _made(tmp_path, form, family)
    heads = 3 if form == "lerobot" else None  # of no public width: the file alone does not tell
    loaded = vv.load(source, tap=vv.Tap(), num_heads=heads)
    towers = list(loaded.towers) if isinstance(loaded, vv.FusedEncoder) else [loaded]
    encoder = next(tower for tower in towers if tower.origin.family == family)
    pixels = torch.randn(1, 3, *encoder.config.image_size)
    assert encoder(pixels).patch_tokens.isfinite().all()
    if form in WRITTEN:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what the file cannot say
            encoder.save_pretrained(tmp_path / "again", format=form)
        again = vv.load(tmp_path / "again")
        assert again.origin == encoder.origin and torch.equal(again(pixels).patch_tokens, encoder(pixels).patch_tokens)


def _made(folder: Path, form: str, family: str) -> Path:
    """A checkpoint of a cell without golden case, out of a golden of another format."""
    if form == "lerobot" or not FAMILIES[family].presets:
        return _siglip_inside(folder, form, family)
    if form == "hf":
        return _tiny(folder, family)
    if form == "timm":
        source = {"dinov2": "dinov2_pth/model.pth", "clip_vision_model": "open_clip_gelu_resized"}.get(family)
        if family == "tipsv2_vision_model":
            encoder = vv.load(_tiny(folder, family))
        else:
            encoder = vv.load(golden_case(source)) if source else _headless_aimv2(folder)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            encoder.save_pretrained(folder / "timm", format="timm")
        return folder / "timm"
    if form == "pth":  # a plain ViT: DINO's file is bare, MAE's inside "model"
        stored = load_file(golden_case("timm_augreg") / "model.safetensors")
        state = {name: value for name, value in stored.items() if not name.startswith("head.")}
        torch.save({"dino": state, "vit_mae": {"model": state}}[family], folder / "file.pth")
        return folder / "file.pth"
    assert form == "openvla"
    if family in ("dinov2_with_registers", "siglip_vision_model"):
        return golden_case("openvla_fused_bf16")
    case, backbone = {
        "vit": ("timm_augreg", "in1k-vit-l"),
        "clip_vision_model": ("open_clip_quickgelu", "clip-vit-l"),
    }[family]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        vv.load(golden_case(case)).save_pretrained(folder / "timm", format="timm")
    described = json.loads((folder / "timm" / "config.json").read_text())
    stored = load_file(folder / "timm" / "model.safetensors")
    tensors = {
        f"vision_backbone.featurizer.{name}": value for name, value in stored.items() if not name.startswith("head.")
    }
    save_file(tensors, folder / "model.safetensors")
    sides = [described["model_args"]["img_size"][0]]
    arguments = {
        name: value for name, value in described["model_args"].items() if name not in ("num_classes", "img_size")
    }
    config = dict(model_type="prismatic", vision_backbone_id=backbone, image_resize_strategy="resize-naive")
    config |= dict(timm_model_args=[arguments], image_sizes=sides)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def _tiny(folder: Path, family: str) -> Path:
    """A small model with random weights, by the fields of the family's first preset."""
    small = dict(image_size=16, patch_size=4, embed_dim=32, depth=1, num_heads=2, mlp_dim=64)
    encoder = new_encoder(dict(FAMILIES[family].presets[0].fields) | small)
    encoder.origin = Origin(family, "transformers")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        encoder.save_pretrained(folder / "tiny")
    return folder / "tiny"


def _headless_aimv2(folder: Path) -> vv.Encoder:
    stored = load_file(golden_case("hf_aimv2") / "model.safetensors")
    (folder / "hf").mkdir()
    save_file(
        {name: value for name, value in stored.items() if not name.startswith("head.")},
        folder / "hf" / "model.safetensors",
    )
    config = json.loads((golden_case("hf_aimv2") / "config.json").read_text()) | {"use_head": False}
    (folder / "hf" / "config.json").write_text(json.dumps(config))
    return vv.load(folder / "hf")


def _siglip_inside(folder: Path, form: str, family: str) -> Path:
    """A SigLIP without head as Idefics3's or SmolVLM's tower, or inside a policy of LeRobot's."""
    tower = vv.load(golden_case("hf_llava_siglip_fp16"))
    tower.model.config = replace(tower.config, position_resize=resize_rule(family, "transformers"))
    origin = Origin(family, "transformers")
    vv.Encoder(tower.model, preprocess=tower.preprocess, origin=origin).save_pretrained(folder / "hf")
    if form == "hf":
        return folder / "hf"
    policy, stem = {
        "siglip_vision_model": ("pi0", "model.paligemma_with_expert.paligemma.model.vision_tower.vision_model."),
        "smolvlm_vision": ("smolvla", "model.vlm_with_expert.vlm.model.vision_model."),
    }[family]
    stored = load_file(folder / "hf" / "model.safetensors")
    tensors = {stem + name.removeprefix("vision_model."): value for name, value in stored.items()}
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"type": policy}))
    return folder
