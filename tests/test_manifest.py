"""The manifest of saved folders, and folders that are written whole or not at all."""

import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.policies import made
from support.tiny_vlm import join

import vlm_vision as vv
from vlm_vision.checkpoints.manifest import renew_manifest, verify, write_manifest
from vlm_vision.cli.main import main
from vlm_vision.files import MANIFEST, one_line, shown, whole
from vlm_vision.new_models import new_encoder
from vlm_vision.train.adapters import save_adapter
from vlm_vision.train.trainable import set_trainable


def changed(folder: Path) -> dict[str, str]:
    return {one.name: str(one) for one in verify(folder) if one.state != "same"}


def saved(what: str, folder: Path) -> None:
    torch.manual_seed(0)
    tower = new_encoder(dict(image_size=16, patch_size=8, embed_dim=16, depth=1, num_heads=2, mlp_dim=32))
    match what:
        case "encoder":
            tower.save_pretrained(folder)
        case "fused":
            vv.FusedEncoder([tower, tower]).save_pretrained(folder)
        case "vlm":
            join().save_pretrained(folder)
        case "policy":
            made("parallel").save_pretrained(folder)
        case "adapters":
            save_adapter(set_trainable(join(), vision="frozen", projector="full", language="lora"), folder)


@pytest.mark.parametrize("what", ["encoder", "fused", "vlm", "policy", "adapters"])
def test_every_save_has_a_manifest_that_does_not_differ_between_runs(what, tmp_path):
    for name in ("a", "b"):
        saved(what, tmp_path / name)
    files = {path.relative_to(tmp_path / "a").as_posix() for path in (tmp_path / "a").rglob("*") if path.is_file()}
    assert {one.name for one in verify(tmp_path / "a")} == files - {MANIFEST} and not changed(tmp_path / "a")
    assert (tmp_path / "a" / MANIFEST).read_bytes() == (tmp_path / "b" / MANIFEST).read_bytes()


def test_hashes_are_those_of_sha256sum_and_of_the_tensors(tmp_path):
    tensors = {"b": torch.arange(6.0).view(2, 3), "a": torch.zeros(2, dtype=torch.bfloat16), "none": torch.zeros(0)}
    save_file(tensors, tmp_path / "x.safetensors")
    write_manifest(tmp_path)
    entry = json.loads((tmp_path / MANIFEST).read_text())["files"]["x.safetensors"]
    data = (tmp_path / "x.safetensors").read_bytes()
    assert (entry["size"], entry["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
    digests = {name: hashlib.sha256(t.view(-1).view(torch.uint8).numpy().tobytes()) for name, t in tensors.items()}
    kinds = {"a": "BF16[2]", "b": "F32[2,3]", "none": "F32[0]"}
    assert entry["tensors"] == {name: f"{kinds[name]} {digests[name].hexdigest()}" for name in kinds}


def test_each_difference_is_named(encoder, tmp_path, capsys):
    encoder.save_pretrained(tmp_path)
    assert main(["verify", str(tmp_path)]) == 0
    assert torch.equal(vv.load(tmp_path, verify=True).model.norm.weight, encoder.model.norm.weight)
    weights = load_file(tmp_path / "model.safetensors")
    first, second, third = sorted(weights)[:3]
    weights[first][0] += 1
    weights["new"] = weights.pop(second)
    weights[third] = weights[third].view(-1)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "preprocessor_config.json").unlink()
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / ".gitattributes").write_text("")
    states = {one.name: one for one in verify(tmp_path)}
    assert {name: one.state for name, one in states.items() if one.state != "same"} == {
        "model.safetensors": "changed", "preprocessor_config.json": "missing", "notes.txt": "extra",
    }  # fmt: skip
    tensors = dict(states["model.safetensors"].tensors)
    assert tensors == {first: "changed", second: "missing", "new": "extra", third: "changed"}
    capsys.readouterr()
    assert main(["verify", str(tmp_path)]) == 2
    out, error = capsys.readouterr()
    assert f"  missing  {second}\n" in out and "extra    notes.txt\n" in out
    assert "3 of 6 files" in error
    with pytest.raises(
        ValueError, match=r"is not as it was saved: model.safetensors changed \(.* changed, .*restore it"
    ):
        vv.load(tmp_path, verify=True)


@pytest.mark.parametrize(
    "content", ["{}", "[]", '{"files": {"a": 3}}', '{"files": {"a": {"size": 1, "sha256": 2}}}', "{"]
)
def test_a_damaged_manifest_is_one_sentence_and_loading_ignores_it(encoder, tmp_path, content):
    encoder.save_pretrained(tmp_path)
    (tmp_path / MANIFEST).write_text(content)
    with pytest.raises(ValueError, match=MANIFEST):
        verify(tmp_path)
    vv.load(tmp_path)


def test_damaged_safetensors_have_no_tensors(encoder, tmp_path):
    encoder.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    for damage in (b"", b"\xff" * 12, (40).to_bytes(8, "little") + b"[" * 40, file.read_bytes()[:-1]):
        file.write_bytes(damage)
        assert changed(tmp_path)["model.safetensors"].startswith("model.safetensors changed")


def test_what_has_no_manifest_is_refused(encoder, tmp_path):
    with pytest.raises(ValueError, match="has no vlm_vision_manifest.json to compare it with"):
        vv.load("mini", verify=True)
    with pytest.raises(ValueError, match="not a folder: expected a folder"):
        verify(tmp_path / "none")
    (tmp_path / "a.pth").write_bytes(b"")
    with pytest.raises(ValueError, match="is a single file, which has no manifest"):
        vv.load(tmp_path / "a.pth", verify=True)


def test_a_later_save_is_a_whole_one(tmp_path):
    vlm = join()
    vlm.save_pretrained(tmp_path / "a", max_shard_size="20KB")
    assert (tmp_path / "a/model.safetensors.index.json").is_file() and not changed(tmp_path / "a")
    vlm.save_pretrained(tmp_path / "a")
    assert not changed(tmp_path / "a")  # shards of the save before would be read in place of the new file
    assert len(list((tmp_path / "a").glob("*.safetensors"))) == 1


def test_the_entry_of_a_file_is_renewed_alone(encoder, tmp_path):
    encoder.save_pretrained(tmp_path)
    for name in ("README.md", "config.json"):
        (tmp_path / name).write_text("{}")
    renew_manifest(tmp_path, "README.md")
    assert list(changed(tmp_path)) == ["config.json"]


LIMITED = """
import resource, signal, sys
sys.path[:0] = {path!r}
from support.tiny_vlm import join
from transformers.utils import logging
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    join(seed=1).save_pretrained({folder!r})
except OSError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="limits on the size of a file are set as on Unix")
def test_a_full_disk_leaves_what_was_there(tmp_path):
    folder = tmp_path / "model"
    join().save_pretrained(folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    code = LIMITED.format(path=[str(Path(__file__).parent), *sys.path], folder=str(folder))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (
        done.stdout.startswith(f"{folder} cannot be written (") and "make room; it is as it was before" in done.stdout
    )
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert list(tmp_path.iterdir()) == [folder]


KILLED = """
import os, signal, sys
sys.path[:0] = {path!r}
from pathlib import Path
from vlm_vision.files import whole
steps = iter(range(100))
def counted(call):
    def made(*arguments, **options):
        if next(steps) == {at}:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*arguments, **options)
    return made
with whole(Path({folder!r})) as staging:
    for name in ("config.json", "a.json", "model.safetensors", "vlm_vision_manifest.json"):
        (staging / name).write_text("new")
    os.replace, os.unlink = counted(os.replace), counted(os.unlink)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="kills as on Unix")
@pytest.mark.parametrize("at", range(6))
def test_a_kill_while_files_move_leaves_no_folder_that_is_half_new(tmp_path, at):
    folder = tmp_path / "model"
    with whole(folder) as staging:
        for name in ("config.json", "a.json", "model.safetensors", MANIFEST):
            (staging / name).write_text("old")
    code = KILLED.format(path=sys.path, folder=str(folder), at=at)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == (-signal.SIGKILL if at < 5 else 0), done.stderr
    content = {path.name: path.read_text() for path in folder.iterdir()}
    if "config.json" in content:
        del content[MANIFEST]  # the last: `verify` tells
        assert len(set(content.values())) == 1
    assert os.path.isdir(folder)


def test_errors_are_one_short_line():
    assert one_line("a\nb") == "a b" and shown("short") == "'short'"
    long = one_line("the value is " + "x" * 10_000 + ": expected a number; download it again")
    assert len(long) <= 400 and long.startswith("the value is xxx") and long.endswith("download it again")
    assert len(shown(list(range(100_000)))) <= 80
    with pytest.raises(ValueError, match=r"mean is \[0, 1, .* expected 3 finite numbers") as error:
        vv.Preprocess(
            resize="squash", resize_to=(8, 8), resample="bicubic", crop=None, rescale=1, mean=list(range(10**5)), std=(1,) * 3
        )  # fmt: skip
    assert len(str(error.value)) < 400
