"""A checkpoint is opened once: every file of it, for one load of any format; a pickle once more, for its checksums."""

import os
import shutil
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.golden import golden_case, source
from support.vla_folders import policy_folder

import vlm_vision as vv
from vlm_vision.checkpoints.checkpoint import Checkpoint
from vlm_vision.checkpoints.sniff import READERS

CASES = {
    "hf": ["hf_siglip", "hf_clip_gelu_sharded", "hf_llava_clip", "hf_siglip2_naflex"],
    "timm": ["timm_augreg", "timm_naflex_siglip"],
    "pth": ["dinov2_pth", "dinov3_pth", "timm_deit_distilled_pth"],
    "open_clip": ["open_clip_quickgelu", "open_clip_siglip"],
    "big_vision": ["bv_siglip", "bv_naflex"],
    "openvla": ["openvla_fused_bf16"],
}
"""Format -> golden cases; a policy of LeRobot is made below."""


class Opens:
    """How often each file under a folder was opened while `folder` was set.

    What Python opens is counted. torch.load opens an archive once so and then maps it itself; the library of safetensors
    opens files past Python, and is not used to read them (the last test here)."""

    def __init__(self):
        self.folder, self.counts = "", Counter()
        sys.addaudithook(self._seen)

    def _seen(self, event: str, arguments: tuple) -> None:
        if event == "open" and self.folder and isinstance(arguments[0], str | bytes | os.PathLike):
            path = os.fsdecode(arguments[0])
            if path.startswith(self.folder):
                self.counts[os.path.relpath(path, self.folder)] += 1

    def of(self, folder: Path, work) -> Counter:
        self.folder, self.counts = str(folder), Counter()
        try:
            work()
        finally:
            self.folder = ""
        return self.counts


_OPENS = Opens()  # an audit hook cannot be taken away again


def folder_of(path: Path) -> Path:
    return path if path.is_dir() else path.parent


@pytest.mark.parametrize(("form", "name"), [(form, name) for form, names in CASES.items() for name in names])
def test_one_load_opens_each_file_once(form, name):
    path = source(name)
    opened = _OPENS.of(folder_of(path), lambda: vv.load(path))
    assert opened and all(count == 1 + file.endswith((".pth", ".bin")) for file, count in opened.items()), opened
    assert any(file.endswith((".safetensors", ".bin", ".pth", ".npz")) for file in opened)


def policy(folder: Path) -> Path:
    """SigLIP inside a policy of LeRobot."""
    stem = "model.paligemma_with_expert.paligemma.model.vision_tower.vision_model."
    stored = load_file(golden_case("hf_siglip") / "model.safetensors")
    tower = {name: value for name, value in stored.items() if name.startswith("vision_model.")}
    save_file(
        {stem + name.removeprefix("vision_model."): value for name, value in tower.items()},
        folder / "model.safetensors",
    )
    (folder / "config.json").write_text('{"type": "pi0"}')
    return folder


def test_so_does_a_load_of_lerobot_and_of_openpi(tmp_path):
    folder = policy(tmp_path)
    assert _OPENS.of(folder, lambda: vv.load(folder, num_heads=2)) == {"config.json": 1, "model.safetensors": 1}
    openpi = tmp_path / "openpi"
    openpi.mkdir()
    stored = load_file(folder / "model.safetensors")
    save_file({name.removeprefix("model."): value for name, value in stored.items()}, openpi / "model.safetensors")
    assert _OPENS.of(openpi, lambda: vv.load(openpi, num_heads=2)) == {"model.safetensors": 1}


def test_a_policy_and_the_description_of_its_model_are_opened_once_each(tmp_path):
    folder = policy_folder("vla_jepa", tmp_path / "policy").path

    def both():
        checkpoint = Checkpoint(folder)
        vv.load(checkpoint)
        vv.load_projector(checkpoint)

    opened = {"policy/config.json": 1, "policy/model.safetensors": 1, "policy_base/config.json": 1}
    assert _OPENS.of(tmp_path, both) == opened


def test_an_adapter_and_its_base_are_opened_once_each(tmp_path):
    base = Path(shutil.copytree(golden_case("openvla_fused_bf16"), tmp_path / "base"))
    run = tmp_path / "run" / "lora_adapter"
    run.mkdir(parents=True)
    save_file({}, run / "adapter_model.safetensors")
    described = {"peft_type": "LORA", "r": 4, "lora_alpha": 2, "base_model_name_or_path": str(base)}
    (run / "adapter_config.json").write_text(str(described).replace("'", '"'))
    opened = _OPENS.of(tmp_path, lambda: vv.load(tmp_path / "run"))
    assert len(opened) == 4 and set(opened.values()) == {1}, opened


def test_a_pickle_of_the_old_format_alone_is_opened_twice(tmp_path):
    """Once to see that it is no archive."""
    folder = Path(shutil.copytree(golden_case("hf_dinov2"), tmp_path / "old"))
    state = load_file(folder / "model.safetensors")
    torch.save(state, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    (folder / "model.safetensors").unlink()
    opened = _OPENS.of(folder, lambda: vv.load(folder))
    assert opened.pop("pytorch_model.bin") == 2 and set(opened.values()) == {1}, opened


@pytest.mark.parametrize("name", ["hf_clip_quickgelu", "open_clip_siglip", "bv_siglip"])
def test_a_pair_opens_each_file_once(name):
    path = source(name)
    opened = _OPENS.of(folder_of(path), lambda: vv.load_pair(path))
    assert opened and set(opened.values()) == {1}, opened


def test_a_masked_autoencoder_opens_each_file_once():
    from vlm_vision.mae import load_mae

    path = golden_case("hf_vit_mae")
    opened = _OPENS.of(path, lambda: load_mae(path))
    assert opened and set(opened.values()) == {1}, opened


def test_a_tower_and_a_projector_may_share_one_opening():
    folder = golden_case("openvla_fused_bf16")

    def both():
        checkpoint = Checkpoint(folder)
        vv.load(checkpoint)
        vv.load_projector(checkpoint)

    assert set(_OPENS.of(folder, both).values()) == {1}


@pytest.mark.parametrize(("form", "name"), [(form, names[0]) for form, names in CASES.items()])
def test_one_format_alone_reads_and_those_before_it_look_at_no_weight(monkeypatch, form, name):
    checkpoint = Checkpoint(source(name))
    recognised = [reader.name for reader in READERS if reader.recognises(checkpoint)]
    assert recognised[0] == form
    if checkpoint.is_folder:
        assert not checkpoint._weights  # config.json was enough


def test_names_shapes_and_dtypes_are_those_of_the_tensors():
    for name in ("hf_llava_siglip_fp16", "openvla_fused_bf16", "open_clip_quickgelu"):
        weights = Checkpoint(golden_case(name)).weights
        for stored in list(weights.shapes)[:20]:
            kept, own = weights.get(stored), weights.get(stored, keep=False)
            assert weights.shapes[stored] == tuple(kept.shape) and weights.dtypes[stored] == kept.dtype
            assert torch.equal(kept, own)


def test_safetensors_are_read_as_the_library_reads_them(tmp_path):
    kinds = [torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64]
    kinds += [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2]
    tensors = {str(kind): (torch.randn(3, 5) * 3).abs().to(kind) for kind in kinds}
    tensors |= {"scalar": torch.tensor(2.5), "empty": torch.zeros(0, 4)}
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    weights, wanted = Checkpoint(tmp_path).weights, load_file(tmp_path / "model.safetensors")
    assert set(weights.shapes) == set(wanted)
    for name, value in wanted.items():
        for keep in (True, False):
            stored = weights.get(name, keep=keep)
            assert stored.dtype == value.dtype and stored.shape == value.shape, name
            assert stored.view(torch.uint8).equal(value.view(torch.uint8)) if value.ndim else stored == value, name


def test_no_reader_opens_a_file_past_python():
    modules = [module for name, module in sys.modules.items() if name.startswith("vlm_vision.checkpoints")]
    assert len(modules) > 20 and not any(hasattr(module, "safe_open") for module in modules)
