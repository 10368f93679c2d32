"""Models inside larger ones and layouts without golden files, made tiny by transformers itself, against transformers."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.golden import TOLERANCE, error, golden_case, with_prefix
from support.hf_models import TEXT, VISION, make, prismatic_own_file

import vlm_vision as vv
from vlm_vision.checkpoints.families.all import ENCODERS
from vlm_vision.new_models import new_encoder

CHANGED = {
    "vit_mae": {"mask_ratio": 0.0}, "dinov2": {"mlp_ratio": 2},
    "dinov2_with_registers": {"mlp_ratio": 2, "use_swiglu_ffn": True}, "dinov3_vit": {"num_register_tokens": 2},
    "clip_vision_model": {"hidden_act": "gelu"},
    "aimv2_vision_model": {"is_native": True},
}  # fmt: skip
"""Fields of a tiny model beside `VISION`."""

SQUARE = ("siglip2_vision_model", "idefics3_vision", "smolvlm_vision")
TOWERS = [family.name for family in ENCODERS if not family.written_as and family.name not in SQUARE]
"""Families whose tower takes pixels and stands alone in transformers; the others have golden cases and tests below."""


@pytest.mark.parametrize("model_type", TOWERS)
@pytest.mark.parametrize("layout", ["hub", "memory"])
@torch.inference_mode()
def test_both_key_layouts_of_transformers_load(model_type, layout, tmp_path):
    theirs = make(model_type, **VISION, **CHANGED.get(model_type, {}))
    theirs.save_pretrained(tmp_path)
    if layout == "memory":  # a bare state dict under the names of transformers 5
        (tmp_path / "model.safetensors").unlink()
        torch.save(theirs.state_dict(), tmp_path / "pytorch_model.bin")
    encoder = vv.load(tmp_path)
    pixels = torch.randn(2, 3, 16, 16)
    out = encoder(pixels, tap=vv.Tap(-1, norm=model_type != "clip_vision_model"))
    kept = {"noise": torch.arange(16.0)[None].expand(2, -1)} if model_type == "vit_mae" else {}
    assert error(with_prefix(out), theirs(pixels, **kept).last_hidden_state) < TOLERANCE


@pytest.mark.parametrize("model_type", ["idefics3", "smolvlm"])
@torch.inference_mode()
def test_tower_and_connector_of_smolvlm(model_type, tmp_path):
    theirs = make(
        model_type,
        vision_config=VISION | {"model_type": {"idefics3": "idefics3_vision", "smolvlm": "smolvlm_vision"}[model_type]},
        text_config=TEXT | {"model_type": "llama"},
        scale_factor=2,
    )
    theirs.save_pretrained(tmp_path)
    encoder, projector = vv.load(tmp_path), vv.load_projector(tmp_path)
    for height, width in ((16, 16), (24, 16), (8, 40)):
        pixels = torch.randn(1, 3, height, width)
        seen = theirs.model.vision_model(pixels).last_hidden_state
        out = encoder(pixels)
        assert error(out.patch_tokens, seen) < TOLERANCE, (height, width)
        if height == width:  # their connector takes no other grid
            assert error(projector(out.patch_tokens, out.grid), theirs.model.connector(seen)) < TOLERANCE
    encoder.save_pretrained(tmp_path / "saved")
    assert torch.equal(vv.load(tmp_path / "saved")(pixels).patch_tokens, out.patch_tokens)


@torch.inference_mode()
def test_tower_and_connector_of_paligemma(tmp_path):
    theirs = make(
        "paligemma",
        vision_config=VISION | {"model_type": "siglip_vision_model", "vision_use_head": False},
        text_config=TEXT | {"model_type": "gemma", "head_dim": 12},
        projection_dim=24,
    )
    theirs.save_pretrained(tmp_path)
    encoder, projector = vv.load(tmp_path), vv.load_projector(tmp_path)
    pixels = torch.randn(1, 3, 16, 16)
    out = encoder(pixels)
    assert error(out.patch_tokens, theirs.model.vision_tower(pixels).last_hidden_state) < TOLERANCE
    wanted = theirs.model.multi_modal_projector(out.patch_tokens)
    assert error(projector(out.patch_tokens, out.grid), wanted) < TOLERANCE


@pytest.mark.parametrize("policy", ["pi0", "smolvla"])
@torch.inference_mode()
def test_tower_and_connector_of_a_lerobot_policy(policy, tmp_path):
    family, connector = {
        "pi0": ("siglip_vision_model", "paligemma_with_expert.paligemma.model.multi_modal_projector.linear"),
        "smolvla": ("smolvlm_vision", "vlm_with_expert.vlm.model.connector.modality_projection.proj"),
    }[policy]
    tower = make("siglip_vision_model", **VISION, vision_use_head=False)
    where = connector.split(".model.")[0] + (
        ".model.vision_tower.vision_model." if policy == "pi0" else ".model.vision_model."
    )
    state = {f"model.{where}{name}": value for name, value in tower.state_dict().items()}
    state[f"model.{connector}.weight"] = torch.randn(20, 32 if policy == "pi0" else 128)
    if policy == "pi0":
        state[f"model.{connector}.bias"] = torch.randn(20)
    state["model.action_in_proj.weight"] = torch.randn(4, 4)
    save_file({name: value.contiguous().clone() for name, value in state.items()}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"type": policy}))
    with pytest.raises(ValueError, match="pass num_heads="):
        vv.load(tmp_path)
    encoder, pixels = vv.load(tmp_path, num_heads=2), torch.randn(1, 3, 16, 16)
    out = encoder(pixels)
    assert encoder.origin.family == family
    assert error(out.patch_tokens, tower(pixels).last_hidden_state) < TOLERANCE
    assert vv.load_projector(tmp_path)(out.patch_tokens, out.grid).shape == (1, 16 if policy == "pi0" else 4, 20)


@pytest.mark.parametrize("name", ["hf_llava_clip", "openvla_fused_bf16"])
@torch.inference_mode()
def test_projectors_equal_their_goldens(name):
    golden = load_file(golden_case(name) / "golden.safetensors")
    features = golden["features" if "features" in golden else "patch_features"]
    grid = (6, 6) if name == "hf_llava_clip" else (5, 5)
    assert error(vv.load_projector(golden_case(name))(features, grid), golden["projected"]) < TOLERANCE


def test_only_the_bytes_of_the_tower_are_read(tmp_path, monkeypatch):
    from vlm_vision.checkpoints.weights import WeightFiles

    read = []
    get = WeightFiles.get
    monkeypatch.setattr(WeightFiles, "get", lambda self, name, **how: read.append(name) or get(self, name, **how))
    vv.load(golden_case("openvla_fused_bf16"))
    assert read and all(name.startswith("vision_backbone.") for name in read)
    read.clear()
    vv.load_projector(golden_case("openvla_fused_bf16"))
    assert read and all(name.startswith("projector.") for name in read)


@torch.inference_mode()
def test_prismatics_own_run_folder_gives_the_same_towers(tmp_path):
    golden = load_file(golden_case("openvla_fused_bf16") / "golden.safetensors")
    folder = prismatic_own_file(tmp_path)
    out = vv.load(folder)(golden["pixel_values"])
    assert error(out.patch_tokens, golden["patch_features"]) < TOLERANCE
    assert error(vv.load_projector(folder)(out.patch_tokens, out.grid), golden["projected"]) < TOLERANCE


@torch.inference_mode()
def test_timm_inside_transformers_wrapper_is_timm(tmp_path):
    golden = golden_case("timm_augreg")
    config = json.loads((golden / "config.json").read_text()) | {"model_type": "timm_wrapper"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    stored = load_file(golden / "model.safetensors")
    save_file({f"timm_model.{name}": value for name, value in stored.items()}, tmp_path / "model.safetensors")
    pixels = torch.randn(1, 3, 56, 56)
    wrapped, plain = vv.load(tmp_path), vv.load(golden)
    assert wrapped.origin == plain.origin and torch.equal(wrapped(pixels).logits, plain(pixels).logits)


@torch.inference_mode()
def test_a_dinov3_without_registers_and_a_siglip_classifier(tmp_path):
    theirs = make("dinov3_vit", **VISION, num_register_tokens=0)
    theirs.save_pretrained(tmp_path / "v3")
    pixels = torch.randn(1, 3, 16, 16)
    encoder = vv.load(tmp_path / "v3")
    assert encoder(pixels).register_tokens is None
    assert error(with_prefix(encoder(pixels)), theirs(pixels).last_hidden_state) < TOLERANCE

    from transformers import AutoConfig, AutoModelForImageClassification

    config = AutoConfig.for_model("siglip", vision_config=VISION, id2label={str(i): str(i) for i in range(5)})
    classifier = AutoModelForImageClassification.from_config(config).eval()
    classifier.save_pretrained(tmp_path / "siglip")
    encoder = vv.load(tmp_path / "siglip")
    assert error(encoder(pixels).logits, classifier(pixels).logits) < TOLERANCE
    encoder.save_pretrained(tmp_path / "again")
    again, info = AutoModelForImageClassification.from_pretrained(tmp_path / "again", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert error(again(pixels).logits, classifier(pixels).logits) < TOLERANCE


@torch.inference_mode()
def test_the_rotary_base_of_an_original_dinov3_is_the_one_in_the_file(tmp_path):
    source = golden_case("dinov3_pth") / "model.pth"
    state = torch.load(source, weights_only=True)
    plain = vv.load(source)
    assert plain.config.rope_base == 100.0
    periods = state["rope_embed.periods"]
    torch.save(state | {"rope_embed.periods": periods**1.5}, tmp_path / "other.pth")
    assert vv.load(tmp_path / "other.pth").config.rope_base == 1000.0
    torch.save(state | {"rope_embed.periods": periods + 0.5}, tmp_path / "odd.pth")
    with pytest.raises(ValueError, match="not powers of one base"):
        vv.load(tmp_path / "odd.pth")


def test_what_timms_names_tell_and_what_its_arguments_may_say(tmp_path):
    from vlm_vision.checkpoints.timm import reader as timm

    heads = {
        "aimv2_huge_patch14_224": (1536, 12),
        "vit_huge_patch14_224": (1280, 16),
        "vit_huge_plus_patch16_dinov3": (1280, 20),
    }
    heads |= {"vit_giant_patch14_dinov2": (1536, 24), "vit_giantopt_patch16_siglip_256": (1536, 16)}
    heads |= {"vit_7b_patch16_dinov3": (4096, 32), "vit_giant_patch14_clip_224": (1408, 16)}
    assert {name: timm._num_heads(name, dim) for name, (dim, _) in heads.items()} == {
        n: h for n, (_, h) in heads.items()
    }
    for field, value in (("rope_mixed", True), ("pool_include_prefix", True)):
        folder = tmp_path / field
        folder.mkdir()
        golden = golden_case("timm_augreg")
        config = json.loads((golden / "config.json").read_text())
        config["model_args"][field] = value
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "model.safetensors").write_bytes((golden / "model.safetensors").read_bytes())
        with pytest.raises(ValueError, match=f"model_args has {field}=True, which is not supported"):
            vv.load(folder)


@torch.inference_mode()
def test_a_dino_saved_as_a_vit_keeps_its_own_resize(tmp_path):
    stored = load_file(golden_case("timm_augreg") / "model.safetensors")
    torch.save({name: value for name, value in stored.items() if not name.startswith("head.")}, tmp_path / "dino.pth")
    encoder = vv.load(tmp_path / "dino.pth")
    with pytest.warns(UserWarning, match="crop_rounding"):
        encoder.save_pretrained(tmp_path / "saved")
    again, pixels = vv.load(tmp_path / "saved"), torch.randn(1, 3, 56, 72)
    assert again.config == encoder.config and again.origin == encoder.origin
    assert torch.equal(again(pixels).patch_tokens, encoder(pixels).patch_tokens)


def test_an_activation_that_transformers_has_no_name_for_is_not_saved(tmp_path):
    encoder = new_encoder(
        dict(image_size=16, patch_size=8, embed_dim=16, depth=1, num_heads=2, mlp_dim=32, mlp="swiglu")
    )
    with pytest.raises(ValueError, match="transformers cannot express mlp 'swiglu' here: choose one of gelu"):
        encoder.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()
