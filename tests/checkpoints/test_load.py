"""Loading and saving: strict, exact, and one clear sentence for whatever is wrong."""

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.golden import golden_case, shared_folder

import vlm_vision as vv
from vlm_vision.checkpoints.families.all import MODEL_TYPES

NEWER = {"tipsv2_vision_model"}
"""model_types that the oldest transformers here does not have."""

FAMILIES = ["hf_vit", "hf_vit_cls", "hf_clip_vision_proj", "hf_siglip_p14_cropped", "hf_dinov2", "hf_dinov2_reg"]


@pytest.fixture
def copied(tmp_path):
    """Copies a golden case to a folder that a test may damage."""

    def copy(name: str) -> Path:
        return Path(shutil.copytree(golden_case(name), tmp_path / name))

    return copy


def rewrite(folder: Path, change) -> None:
    """Apply `change` to the state dict of a folder."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def configure(folder: Path, **values) -> None:
    config = json.loads((folder / "config.json").read_text()) | values
    (folder / "config.json").write_text(json.dumps(config))


def pixels_for(encoder: vv.Encoder) -> torch.Tensor:
    return torch.randn(1, 3, *encoder.config.image_size)


@pytest.mark.parametrize("name", [*FAMILIES, "hf_siglip", "hf_clip_quickgelu", "hf_dinov2_swiglu"])
@torch.inference_mode()
def test_a_saved_tower_is_the_same_to_the_bit_for_us_and_for_transformers(tmp_path, name):
    encoder = vv.load(golden_case(name))
    encoder.save_pretrained(tmp_path / "saved")
    again = vv.load(tmp_path / "saved")
    assert again.config == encoder.config and again.preprocess == encoder.preprocess
    for key, value in encoder.state_dict().items():
        assert torch.equal(again.state_dict()[key], value)

    import transformers

    config = transformers.AutoConfig.from_pretrained(tmp_path / "saved")
    cls = getattr(transformers, config.architectures[0])
    theirs, info = cls.from_pretrained(tmp_path / "saved", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    pixels = pixels_for(encoder)
    out, wanted = encoder(pixels), theirs(pixels)
    pairs = {"image_embeds": out.pooled, "pooler_output": out.pooled, "logits": out.logits}
    checked = 0
    for field, ours in pairs.items():
        if getattr(wanted, field, None) is not None and ours is not None:
            torch.testing.assert_close(ours, getattr(wanted, field), rtol=0, atol=1e-5 * ours.abs().max().item())
            checked += 1
    assert checked


def test_defaults_are_those_of_transformers():
    from transformers import CONFIG_MAPPING, AutoConfig

    absent = {("vit_mae", "pooler_output_size"), ("vit_mae", "pooler_act")}  # heads that these never have
    absent |= {("idefics3_vision", "vision_use_head"), ("smolvlm_vision", "vision_use_head")}
    absent |= {("idefics2_vision", "vision_use_head")}
    absent |= {
        ("blip_vision_model", "num_channels"),
        ("janus_vision_model", "intermediate_size"),
    }  # fixed, or a product
    absent |= {("bridgetower_vision_model", "num_attention_heads")}  # width / 64
    absent |= {
        (f"{name}_vision", "downsample_mode") for name in ("minicpmv4_6", "minicpmv4_7", "minicpm_ocr")
    }  # whole model's
    for name, (family, changed) in MODEL_TYPES.items():
        if name not in CONFIG_MAPPING:
            assert name in NEWER, f"transformers has no {name}"
            continue
        theirs = {"vision_use_head": True} | AutoConfig.for_model(name).to_dict()  # no field before transformers 5.23
        for field, value in (family.defaults | changed).items():
            if (name, field) in absent or (field == "projection_dim" and field not in theirs):  # kin of CLIP
                continue
            assert theirs[field] in (value, [value, value]) or value is None, (name, field)  # a square may be two sides


def test_tap_reference_and_preprocessing_are_saved_with_the_tower(tmp_path):
    tap = vv.Tap(-2, norm=False)
    encoder = vv.load(golden_case("hf_dinov2"), tap=tap, reference="original", image_size=112)
    encoder.save_pretrained(tmp_path / "saved")
    again = vv.load(tmp_path / "saved")
    assert again.tap == tap and again.origin == encoder.origin and again.preprocess.output_size == (112, 112)
    assert again.config.position_resize == "bicubic_offset"
    assert vv.load(tmp_path / "saved", tap=vv.Tap()).tap == vv.Tap()


def test_preprocessing_changed_after_saving_is_refused(tmp_path):
    vv.load(golden_case("hf_dinov2")).save_pretrained(tmp_path / "saved")
    file = tmp_path / "saved" / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"resample": 2}))
    with pytest.raises(ValueError, match="was saved with preprocessing [0-9a-f]{16} and now describes [0-9a-f]{16}"):
        vv.load(tmp_path / "saved")


@torch.inference_mode()
def test_the_reference_decides_the_position_resize():
    pixels = torch.randn(1, 3, 112, 112)
    outs = {
        reference: vv.load(golden_case("hf_dinov2"), reference=reference)(pixels).patch_tokens
        for reference in ("transformers", "timm", "original")
    }
    assert all(not torch.allclose(outs["transformers"], outs[other]) for other in ("timm", "original"))
    native = vv.load(golden_case("hf_dinov2"), reference="original")(torch.zeros(1, 3, 84, 84)).patch_tokens
    same = vv.load(golden_case("hf_dinov2"))(torch.zeros(1, 3, 84, 84)).patch_tokens
    assert torch.equal(native, same)
    with pytest.raises(ValueError, match="expected one of transformers, timm, original"):
        vv.load(golden_case("hf_dinov2"), reference="jax")


def test_half_precision_files_are_widened_or_kept():
    folder = golden_case("hf_llava_siglip_fp16")
    assert vv.load(folder).dtype == torch.float32
    assert vv.load(folder, dtype=torch.bfloat16).dtype == torch.bfloat16


@torch.inference_mode()
def test_a_pickle_of_plain_tensors_loads_like_safetensors(copied):
    folder = copied("hf_dinov2")
    expected = vv.load(folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    pixels = pixels_for(expected)
    assert torch.equal(vv.load(folder)(pixels).patch_tokens, expected(pixels).patch_tokens)


def test_code_in_a_pickle_never_runs(copied, tmp_path):
    class Hostile:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    folder = copied("hf_dinov2")
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"embeddings.cls_token": Hostile()}))
    with pytest.raises(ValueError, match="not a PyTorch file of plain tensors"):
        vv.load(folder)
    assert not (tmp_path / "ran").exists()


def test_a_missing_weight_is_named(copied):
    folder = copied("hf_dinov2")
    rewrite(folder, lambda t: t.pop("layernorm.bias"))
    with pytest.raises(ValueError, match="lacks the weight layernorm.bias"):
        vv.load(folder)


def test_an_unused_weight_is_named(copied):
    folder = copied("hf_clip_quickgelu")
    rewrite(folder, lambda t: t.update({"vision_model.extra.weight": torch.zeros(2)}))
    with pytest.raises(ValueError, match="holds the weight extra.weight"):
        vv.load(folder)


def test_only_known_parts_may_stand_next_to_the_vision_part(copied):
    folder = copied("hf_clip_quickgelu")
    rewrite(folder, lambda t: t.update({"audio_model.weight": torch.zeros(2)}))
    with pytest.raises(ValueError, match="audio_model.weight"):
        vv.load(folder)


def test_a_bare_tower_has_no_other_parts(tmp_path):
    vv.load(golden_case("hf_dinov2")).save_pretrained(tmp_path / "bare")
    rewrite(tmp_path / "bare", lambda t: t.update({"audio_model.weight": torch.zeros(2)}))
    with pytest.raises(ValueError, match="audio_model.weight"):
        vv.load(tmp_path / "bare")


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"hidden_size": 96}, r"has shape \[.*48.*\], but its configuration makes it \[.*96"),
        ({"num_hidden_layers": 5}, "lacks 18 weights"),
        ({"num_hidden_layers": 3}, "holds 18 weights"),
        ({"patch_size": 7}, "configuration and weights are of different models"),
        ({"model_type": "dinov22"}, "did you mean 'dinov2'"),
        ({"hidden_act": "mish"}, "config.json has hidden_act 'mish', expected one of gelu"),
        ({"num_hidden_layers": "four"}, "depth is 'four'"),
        ({"patch_size": "8"}, "value of the wrong kind|patch_size"),
        ({"image_size": [56]}, "value of the wrong kind|image_size"),
        ({"intermediate_size": 7.5, "mlp_ratio": [1]}, "value of the wrong kind"),
        ({"layer_norm_eps": -1}, "norm_eps is -1"),
        ({"num_hidden_layers": 10**9}, "at most 131072"),
        ({"num_attention_heads": 5}, "num_heads 5 does not divide embed_dim 48"),
    ],
)
def test_a_configuration_that_disagrees_with_the_weights_is_refused(copied, values, says):
    folder = copied("hf_dinov2")
    configure(folder, **values)
    with pytest.raises(ValueError, match=says):
        vv.load(folder)


def test_a_truncated_file_is_refused(copied):
    folder = copied("hf_dinov2")
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match="not a complete safetensors file"):
        vv.load(folder)


@pytest.mark.parametrize("text", ["{", "[1, 2]", "null"])
def test_a_config_that_is_no_json_object_is_refused(copied, text):
    folder = copied("hf_dinov2")
    (folder / "config.json").write_text(text)
    with pytest.raises(ValueError, match="config.json (is not valid JSON|holds a JSON)"):
        vv.load(folder)


def test_a_lost_shard_is_named(copied):
    folder = copied("hf_clip_gelu_sharded")
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ValueError, match="lacks model-00002-of-00002.safetensors"):
        vv.load(folder)


def test_a_missing_folder_is_refused_with_the_near_one():
    with pytest.raises(ValueError, match="there is no folder .*did you mean .*hf_dinov2"):
        vv.load(golden_case("hf_dinov22"))
    with pytest.raises(ValueError, match="no hub id of the form owner/name"):
        vv.load("no-such-model")


def test_a_hub_id_that_cannot_be_had_says_so(monkeypatch):
    def unreachable(*args, **kwargs):
        raise ConnectionError("no network")

    monkeypatch.setattr("huggingface_hub.snapshot_download", unreachable)
    with pytest.raises(ValueError, match="there is no folder owner/name, and the hub did not give it .*no network"):
        vv.load("owner/name")


def test_a_hub_id_is_downloaded_without_code(monkeypatch):
    asked = {}

    def download(source, **options):
        asked.update(options, source=source)
        return str(golden_case("hf_dinov2"))

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert isinstance(vv.load("facebook/dinov2-small", revision="main"), vv.Encoder)
    assert asked["source"] == "facebook/dinov2-small" and asked["revision"] == "main"
    assert not any(pattern.endswith((".py", "*")) for pattern in asked["allow_patterns"])


def test_saving_what_the_layout_cannot_express_writes_nothing(encoder, tmp_path):
    encoder.fold_layer_scale()
    odd = vv.Encoder(
        vv.VisionTransformer(vv.ViTConfig(**(vars(encoder.config) | {"num_registers": 2}))),
        preprocess=encoder.preprocess,
        origin=encoder.origin,
    )
    with pytest.raises(ValueError, match="cannot express this architecture: num_registers 2 would become 0"):
        odd.save_pretrained(tmp_path / "saved")
    with pytest.raises(ValueError, match="cannot save as 'onnx'"):
        encoder.save_pretrained(tmp_path / "saved", format="onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_folded_tower_is_not_saved_as_what_it_is_not(tmp_path):
    encoder = vv.load(golden_case("hf_dinov2"))
    encoder.fold_layer_scale()
    with pytest.raises(ValueError, match="save it before folding"):
        encoder.save_pretrained(tmp_path / "saved")


@torch.inference_mode()
def test_the_real_tower_gives_what_transformers_gives():
    from transformers import AutoModel

    folder = shared_folder() / "models" / "dinov2-small-saliency"
    if not folder.is_dir():
        pytest.skip(f"no real weights: {folder} does not exist")
    encoder, theirs = vv.load(folder), AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    pixels = encoder.preprocess([golden_case("preprocess") / "images" / "coffee.jpg"])
    assert pixels.shape == (1, 3, 224, 224)
    out, wanted = encoder(pixels), theirs(pixels)
    scale = wanted.last_hidden_state.abs().max()
    assert (out.patch_tokens - wanted.last_hidden_state[:, 1:]).abs().max() / scale < 1e-5
    assert (out.pooled - wanted.pooler_output).abs().max() / scale < 1e-5


@torch.inference_mode()
def test_pickles_of_the_old_format_load(copied):
    folder = copied("hf_dinov2")
    state = load_file(folder / "model.safetensors")
    torch.save(state, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    (folder / "model.safetensors").unlink()
    assert isinstance(vv.load(folder), vv.Encoder)
    (folder / "pytorch_model.bin").write_bytes(b"hello")
    with pytest.raises(ValueError, match="not a PyTorch file of plain tensors"):
        vv.load(folder)


def test_a_llava_folder_may_leave_the_kind_of_its_tower_out(copied):
    folder = copied("hf_llava_clip")
    vision = json.loads((folder / "config.json").read_text())["vision_config"]
    del vision["model_type"]
    configure(folder, vision_config=vision)
    assert vv.load(folder).origin.family == "clip_vision_model"


@pytest.mark.parametrize("head", [True, False])
@torch.inference_mode()
def test_siglip_for_classification_reads_the_mean_of_the_patches(tmp_path, head):
    from transformers import SiglipConfig, SiglipForImageClassification

    vision = dict(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=32,
        patch_size=8,
        vision_use_head=head,
    )
    theirs = SiglipForImageClassification(SiglipConfig(vision_config=vision, num_labels=5)).eval()
    theirs.save_pretrained(tmp_path)
    encoder, pixels = vv.load(tmp_path), torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(encoder(pixels).logits, theirs(pixels).logits, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (dict(source=None), "source is None"),
        (dict(source=""), "source is ''"),
        (dict(tap=-2), "tap is -2: pass one Tap"),
        (dict(dtype="float32"), "dtype is 'float32'"),
        (dict(device="nope"), "device 'nope' is not available on this machine"),
        (dict(image_size=57.5), "image_size is 57.5"),
        (dict(image_size=3), "smaller than one patch"),
    ],
)
def test_wrong_arguments_are_one_sentence(arguments, says):
    with pytest.raises(ValueError, match=says):
        vv.load(**({"source": golden_case("hf_dinov2")} | arguments))
