"""Damaged, hostile and ambiguous files: one clear sentence, nothing executed, memory bounded."""

import io
import json
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from support.bare_states import bare, state_of
from support.golden import golden_case

import vlm_vision as vv


class Evil:
    """Writes a file if it is ever unpickled."""

    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self):
        return (Path.touch, (self.target,))


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path):
    torch.save({"model": {"patch_embed.proj.weight": Evil(tmp_path / "ran")}}, tmp_path / "evil.pth")
    with pytest.raises(ValueError, match="is not a PyTorch file of plain tensors"):
        vv.load(tmp_path / "evil.pth")
    assert not (tmp_path / "ran").exists()


def test_an_npz_with_objects_is_refused_and_not_run(tmp_path):
    with (tmp_path / "evil.npz").open("wb") as file:
        np.savez(file, **{"embedding/kernel": np.array([Evil(tmp_path / "ran")], dtype=object)})
    with pytest.raises(ValueError, match="expected floating point numbers; nothing of it was read"):
        vv.load(tmp_path / "evil.npz")
    assert not (tmp_path / "ran").exists()


def test_an_npz_that_unpacks_to_much_more_is_refused(tmp_path):
    with (
        zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as bomb,
        bomb.open("a.npy", "w", force_zip64=True) as out,
    ):
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (2**28 + 1,)})
        out.write(header.getvalue())
        for _ in range(65):
            out.write(bytes(2**24))
    with pytest.raises(ValueError, match="expected a file of weights"):
        vv.load(tmp_path / "bomb.npz")


def test_an_npz_header_that_promises_more_than_there_is(tmp_path):
    with zipfile.ZipFile(tmp_path / "short.npz", "w") as file:
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (10**12,)})
        file.writestr("embedding/kernel.npy", header.getvalue())
    with pytest.raises(ValueError, match="holds less: download it again"):
        vv.load(tmp_path / "short.npz")


def test_overlapping_safetensors_are_refused(tmp_path):
    folder = tmp_path / "timm"
    folder.mkdir()
    (folder / "config.json").write_text((golden_case("timm_augreg") / "config.json").read_text())
    entry = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}
    header = json.dumps({"patch_embed.proj.weight": entry, "norm.weight": entry}).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(16))
    with pytest.raises(ValueError, match="is not a complete safetensors file"):
        vv.load(folder)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"architecture": "vit_base_patch16_224", "model_args": [1]}', '{"a": 1}']
)
def test_json_that_is_no_configuration(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="not valid JSON|not an object|names no model_type"):
        vv.load(tmp_path)


@pytest.mark.parametrize("name", ["dinov2_pth/model.pth", "timm_augreg", "bv_siglip/siglip.npz", "open_clip_quickgelu"])
def test_truncated_files_are_refused(tmp_path, name):
    source = golden_case(name)
    folder = tmp_path / "copy"
    folder.mkdir()
    for file in [source] if source.is_file() else source.iterdir():
        data = file.read_bytes()
        (folder / file.name).write_bytes(data[: len(data) // 2] if file.suffix != ".json" else data)
    with pytest.raises(ValueError, match="download it again|use a safetensors copy"):
        vv.load(folder / source.name if source.is_file() else folder)


def test_weights_of_another_family_are_refused(tmp_path):
    for name, other in (("timm_augreg", "timm_dinov3"), ("hf_dinov2", "hf_siglip"), ("hf_vit", "hf_dinov2")):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text((golden_case(name) / "config.json").read_text())
        save_file(load_file(golden_case(other) / "model.safetensors"), folder / "model.safetensors")
        with pytest.raises(ValueError):
            vv.load(folder)


def test_a_bare_state_dict_that_does_not_tell_its_activation(tmp_path):
    torch.save(state_of("timm_siglip_tanh_gelu"), tmp_path / "siglip.pth")
    with pytest.raises(ValueError, match='pass architecture="..."'):
        vv.load(tmp_path / "siglip.pth")
    with pytest.raises(ValueError, match="embed_dim 128 where 1152 is expected"):
        vv.load(tmp_path / "siglip.pth", architecture="vit_so400m_patch16_siglip_256")
    with pytest.raises(ValueError, match="it is no plain vision transformer of timm"):
        vv.load(tmp_path / "siglip.pth", architecture="resnet50")


def test_the_architecture_of_a_bare_state_dict_can_be_told(tmp_path):
    model, state = bare(embed_dim=192, num_heads=3, num_classes=5)
    torch.save(state, tmp_path / "vit.pth")
    with pytest.raises(ValueError, match='architecture="..."'):
        vv.load(tmp_path / "vit.pth")
    loaded = vv.load(tmp_path / "vit.pth", architecture="vit_tiny_patch16_224")
    assert loaded.origin.reference == "timm" and loaded.config.num_heads == 3
    pixels = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(loaded(pixels).logits, model(pixels).logits)


def test_a_head_count_that_cannot_be_known(tmp_path):
    model, state = bare(embed_dim=24, num_heads=2)
    torch.save(state, tmp_path / "dino.pth")
    with pytest.raises(ValueError, match="pass num_heads=..."):
        vv.load(tmp_path / "dino.pth")
    pixels = torch.randn(1, 3, 32, 32)
    loaded = vv.load(tmp_path / "dino.pth", num_heads=2)
    assert loaded.origin.family == "dino"
    torch.testing.assert_close(loaded(pixels).patch_tokens, model(pixels).patch_tokens)


def test_a_file_with_student_and_teacher_asks_which(tmp_path):
    state = torch.load(golden_case("dinov2_pth") / "model.pth", weights_only=True)
    both = {who: {f"backbone.{name}": value for name, value in state.items()} for who in ("student", "teacher")}
    torch.save(both, tmp_path / "training.pth")
    with pytest.raises(ValueError, match=r"2 towers \(student.backbone, teacher.backbone\): choose one by part="):
        vv.load(tmp_path / "training.pth")
    loaded = vv.load(tmp_path / "training.pth", part="teacher.backbone")
    assert loaded.origin.family == "dinov2"


def test_chunked_blocks_of_dinov2_training_load(tmp_path):
    state = torch.load(golden_case("dinov2_pth") / "model.pth", weights_only=True)
    chunked = {name.replace("blocks.", "blocks.0."): value for name, value in state.items()}
    torch.save(chunked, tmp_path / "chunked.pth")
    plain = vv.load(golden_case("dinov2_pth") / "model.pth").state_dict()
    assert all(
        torch.equal(value, plain[name]) for name, value in vv.load(tmp_path / "chunked.pth").state_dict().items()
    )


def test_a_folder_of_two_formats_asks_which(tmp_path):
    for name in ("open_clip_quickgelu", "hf_clip_quickgelu"):
        for file in golden_case(name).iterdir():
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(ValueError, match='choose one by format="hf" or format="open_clip"'):
        vv.load(tmp_path)
    assert vv.load(tmp_path, format="hf").origin.reference == "transformers"
    assert vv.load(tmp_path, format="open_clip").origin.reference == "open_clip"


def test_options_of_training_beside_the_weights_do_no_harm(tmp_path):
    import argparse

    state = torch.load(golden_case("timm_deit_distilled_pth") / "checkpoint.pth", weights_only=True)
    torch.save(state | {"args": argparse.Namespace(lr=1e-3), "epoch": 3}, tmp_path / "deit.pth")
    assert vv.load(tmp_path / "deit.pth").origin.family == "deit"


@pytest.mark.parametrize(
    "content",
    [
        {"tap": 3},
        {"tap": {"foo": 3}},
        {"towers": ["."]},
        {"towers": ["../x"]},
        {"towers": []},
        {"towers": 3},
        {"preprocess": 3},
        {"family": "x"},
    ],
)
def test_a_sidecar_changed_by_hand_is_refused(tmp_path, content):
    for file in golden_case("hf_dinov2").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "vlm_vision.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"vlm_vision.json has no usable|fields|keys"):
        vv.load(tmp_path)


ODD = ["8", -1, 0, None, [], {}, 1.5, 10**30, True, float("nan")]


@pytest.mark.parametrize(
    "name", ["hf_dinov2", "hf_dinov3", "hf_siglip", "hf_vit", "timm_dinov2_reg4", "open_clip_siglip"]
)
def test_values_of_every_kind_in_a_configuration_are_one_sentence_or_load(tmp_path, name):
    source = golden_case(name)
    file = next(f for f in ("open_clip_config.json", "config.json") if (source / f).is_file())
    for other in source.iterdir():
        (tmp_path / other.name).write_bytes(other.read_bytes())
    whole = json.loads((source / file).read_text())
    inside = (
        whole.get("vision_config") or whole.get("model_args") or whole.get("model_cfg", {}).get("vision_cfg") or whole
    )
    refused = 0
    for field in list(inside):
        kept = inside[field]
        for value in ODD:
            inside[field] = value
            (tmp_path / file).write_text(json.dumps(whole))
            try:
                vv.load(tmp_path)
            except ValueError as error:
                refused += 1
                assert "\n" not in str(error).strip()
        inside[field] = kept
    assert refused > 20


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"format": "x"}, "format is 'x'"), ({"part": 3}, "part is 3"), ({"num_heads": 0}, "num_heads is 0"),
        ({"architecture": 3}, "architecture is 3"), ({"dtype": torch.int8}, "expected torch.float32"),
    ],
)  # fmt: skip
def test_arguments_of_the_wrong_kind(arguments, says):
    with pytest.raises(ValueError, match=says):
        vv.load(golden_case("hf_dinov2"), **arguments)
    with pytest.raises(ValueError, match="there is no folder"):
        vv.load("x" * 5000)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("hf_dinov2", {"num_heads": 2}), ("timm_augreg", {"part": "x"}), ("bv_siglip/siglip.npz", {"architecture": "x"}),
        ("open_clip_quickgelu", {"architecture": "ViT-B-32"}), ("openvla_fused_bf16", {"part": "x"}),
    ],
)  # fmt: skip
def test_a_hint_that_nobody_would_read_is_refused(name, hint):
    with pytest.raises(ValueError, match=f"itself: leave {next(iter(hint))}= out"):
        vv.load(golden_case(name), **hint)


def test_sizes_whose_product_no_tensor_can_have(tmp_path):
    for file in golden_case("hf_dinov2").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    config |= dict(image_size=2**17, patch_size=2**17, hidden_size=2**14, num_attention_heads=2, num_channels=2**17)
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="cannot be made"):
        vv.load(tmp_path)


def test_one_weight_under_two_names_is_an_error(tmp_path):
    vision = dict(
        hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8
    )
    transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**vision)).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    name = next(name for name in weights if name.endswith("layers.0.mlp.fc1.bias"))
    save_file(weights | {name.replace("layers.", "layer."): weights[name] + 1}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="mlp.fc1.bias and .* are one weight under two names: remove the wrong one"):
        vv.load(tmp_path)
