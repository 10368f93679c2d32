"""What an earlier version saved: it loads, gives the same numbers, and stopped runs go on. tests/data/saved_0_0/README.md"""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

import vlm_vision as vv
from vlm_vision.mae import load_mae
from vlm_vision.robot.observation import Observation
from vlm_vision.train import settings
from vlm_vision.train.adapters import load_adapter, merge
from vlm_vision.train.tasks.distill_student import AgglomerativeStudent
from vlm_vision.vla import load_policy

SAVED = Path(__file__).parent / "data" / "saved_0_0"
EXPECTED = load_file(SAVED / "expected.safetensors")
LOSSES = json.loads((SAVED / "losses.json").read_text())
IMAGES = ("red-green.png", "blue-red.png", "green-blue.png")
TEXTS = ["<image> what color is this ?", "is it red ?", "<image> the left <image>"]
CONFIGS = sorted((SAVED / "configs").glob("*/*.yaml"))

RENAMED: dict[str, str] = settings.RENAMED
"""Old key of a recipe's YAML -> its key today, both with dots: {"lr_hands": "lr_action"}. "vla:lr_hands" is of one recipe."""
RENAMED_VALUES: dict[str, dict[Any, Any]] = {}
"""Old key -> {old value, or item of a list: today's}: {"teacher": {"centre": "center"}}."""


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A copy of all that was saved, archives unpacked."""
    root = tmp_path_factory.mktemp("saved") / "root"
    shutil.copytree(SAVED, root)
    for archive in (root / "data/robot.zip", *(root / "recipe_runs").glob("*.zip")):
        with zipfile.ZipFile(archive) as packed:
            packed.extractall(archive.with_suffix(""))
    return root


def images(root: Path) -> list[str]:
    return [str(root / "data" / name) for name in IMAGES]


def check(name: str, value: torch.Tensor) -> None:
    """Today's value is the one that was saved."""
    torch.testing.assert_close(value, EXPECTED[name], rtol=1e-6, atol=1e-6, msg=lambda text: f"{name}: {text}")


# Models


@pytest.mark.parametrize("name", ["encoder_hf", "encoder_timm", "encoder_fused"])
@torch.no_grad()
def test_an_encoder_gives_the_same_patch_tokens(root, name):
    encoder = vv.load(root / "models" / name)
    pixels = encoder.preprocess(images(root))
    if name != "encoder_fused":
        check(f"{name}.pixels", pixels)
    check(f"{name}.patch_tokens", encoder(pixels).patch_tokens)


@pytest.mark.parametrize("layout", ["whole", "native", "anyres"])
@torch.no_grad()
def test_a_vision_language_model_gives_the_same_logits(root, layout):
    model = vv.VisionLanguageModel.from_pretrained(root / "models" / f"vlm_{layout}")
    batch = model.processor(text=TEXTS, images=images(root), return_tensors="pt")
    assert torch.equal(batch["input_ids"], EXPECTED[f"vlm_{layout}.input_ids"])
    check(f"vlm_{layout}.logits", model(**batch).logits[:, -4:])


def test_a_folder_with_remote_code_loads_where_the_package_was_not_imported(root, tmp_path):
    code = f"""
import sys, torch
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageTextToText, AutoProcessor
assert "vlm_vision" not in sys.modules
folder = {str(root / "models/vlm_anyres")!r}
kinds = [AutoConfig, AutoImageProcessor, AutoProcessor, AutoModelForImageTextToText]
*_, processor, model = [kind.from_pretrained(folder, trust_remote_code=True) for kind in kinds]
batch = processor(text={TEXTS!r}, images={images(root)!r}, return_tensors="pt")
torch.save(model(**batch).logits[:, -4:].detach(), {str(tmp_path / "logits.pt")!r})
"""
    offline = {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HOME": str(tmp_path / "home")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | offline)
    assert done.returncode == 0, done.stderr[-2000:]
    check("vlm_anyres.logits", torch.load(tmp_path / "logits.pt", weights_only=True))


@torch.no_grad()
def test_an_adapter_goes_on_its_base_and_merges(root):
    model = vv.VisionLanguageModel.from_pretrained(root / "models/vlm_whole")
    batch = model.processor(text=TEXTS, images=images(root), return_tensors="pt")
    wrapped = load_adapter(model, root / "models/adapter")
    check("adapter.logits", wrapped(**batch).logits[:, -4:])
    check("adapter.merged", merge(wrapped, batch)(**batch).logits[:, -4:])


def test_the_class_that_an_adapter_names_is_where_it_says(root):
    """peft's AutoPeftModel imports it from there."""
    named = json.loads((root / "models/adapter/adapter_config.json").read_text())["auto_mapping"]
    assert named == {"base_model_class": "VisionLanguageModel", "parent_library": "vlm_vision.vlm.model"}
    assert getattr(import_module(named["parent_library"]), named["base_model_class"]) is vv.VisionLanguageModel


@pytest.mark.parametrize("head", ["parallel", "flow", "tokens"])
def test_a_policy_gives_the_same_actions(root, head):
    policy = load_policy(root / "models" / f"policy_{head}", statistics="mine")
    top, wrist, _ = images(root)
    seen = Observation({"top": top, "wrist": wrist}, "push a red block", np.array([0.7]))
    check(f"policy_{head}.actions", torch.from_numpy(policy.act([seen]).values))


# Runs


@torch.no_grad()
def check_run(root: Path, name: str, out: Path) -> None:
    """What a finished run left in `out` loads and gives the numbers of the run that was not stopped."""
    shown = images(root)
    if name in ("supervised", "distill", "self_distill"):
        encoder = vv.load(out / "model")
        check(f"{name}.patch_tokens", encoder(encoder.preprocess(shown)).patch_tokens)
    if name == "supervised":
        encoder = vv.load(out / "model")
        check("supervised.logits", encoder(encoder.preprocess(shown)).logits)
        encoder = vv.load(out / "average")
        check("supervised.average", encoder(encoder.preprocess(shown)).logits)
    elif name == "distill":
        heads = AgglomerativeStudent.load(out / "model").heads.state_dict()
        check("distill.heads", torch.cat([value.flatten() for value in heads.values()]))
    elif name == "contrastive":
        pair = vv.load_pair(out / "model")
        check("contrastive.similarity", pair.similarity(shown, ["red left, green right", "blue left"]))
    elif name == "mae":
        model = load_mae(out / "model")
        noise = torch.linspace(0, 1, 48).reshape(16, 3).T.contiguous()
        predicted, mask = model(model.encoder.preprocess(shown), noise)
        check("mae.predicted", predicted)
        check("mae.mask", mask)
    elif name in ("align", "vqa"):
        model = vv.VisionLanguageModel.from_pretrained(out / "model")
        batch = model.processor(text=["<image> what color is left ?"], images=shown[:1], return_tensors="pt")
        check(f"{name}.logits", model(**batch).logits[:, -4:])
    elif name == "vla":
        seen = Observation({"top": shown[0]}, "push a red block", np.array([0.7]))
        check("vla.actions", torch.from_numpy(load_policy(out / "model").act([seen]).values))


@pytest.mark.parametrize("name", LOSSES)
def test_what_a_run_left_loads(root, name):
    check_run(root, name, root / "recipe_runs" / name / "finished")


@pytest.mark.parametrize("name", LOSSES)
def test_a_stopped_run_goes_on_to_the_same_end(root, name, tmp_path, monkeypatch):
    monkeypatch.chdir(root)  # where its data lies
    out = tmp_path / "stopped"
    shutil.copytree(root / "recipe_runs" / name / "stopped", out)
    (tmp_path / "run.yaml").write_text(translated(name, out / "config.yaml"))
    recipe = import_module(f"recipes.{name}")
    arguments = ["--config", str(tmp_path / "run.yaml"), "--out", str(out)]
    if name == "vla":
        with pytest.raises(ValueError, match="statistics"):
            recipe.main(recipe.parse(arguments))
        arguments += ["--data.statistics", "stored"]
    found = recipe.main(recipe.parse(arguments))
    assert found["first_step"] == 2
    assert found["losses"] == pytest.approx(LOSSES[name][2:], rel=1e-5)
    check_run(root, name, out)


def test_a_run_begins_from_the_networks_of_another(root, tmp_path, monkeypatch):
    monkeypatch.chdir(root)
    (tmp_path / "run.yaml").write_text(
        translated("self_distill", root / "recipe_runs/self_distill/stopped/config.yaml")
    )
    recipe = import_module("recipes.self_distill")
    changes = ["--out", str(tmp_path / "out"), "--start", "recipe_runs/self_distill/finished", "--base_lr", "0"]
    recipe.main(recipe.parse(["--config", str(tmp_path / "run.yaml"), *changes, "--steps", "1"]))
    ours, theirs = (load_file(path / "networks.safetensors") for path in (tmp_path / "out", root / changes[3]))
    assert ours.keys() == theirs.keys() and any(name.startswith("student.") for name in ours)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours if name.startswith("student."))


# Configurations


def leaves(value: Any, path: str = "") -> dict[str, Any]:
    """Key with dots -> value, of nested maps; a list is a value."""
    if isinstance(value, dict) and value:
        parts = [leaves(inner, f"{path}.{key}" if path else str(key)) for key, inner in value.items()]
        return {key: inner for part in parts for key, inner in part.items()}
    return {path: value}


def renamed(recipe: str, old: dict[str, Any]) -> dict[str, Any]:
    """Keys and values as they are called today."""
    found = {}
    for path, value in old.items():
        new = path
        for key in (path[: len(path) - len(rest)] for rest in rests(path)):
            if target := RENAMED.get(f"{recipe}:{key}", RENAMED.get(key)):
                new = target + path[len(key) :]
                break
        values = RENAMED_VALUES.get(path, {})
        if isinstance(value, list):
            found[new] = [one if isinstance(one, list | dict) else values.get(one, one) for one in value]
        else:
            found[new] = value if isinstance(value, dict) else values.get(value, value)
    return found


def rests(path: str) -> list[str]:
    """What follows each key that `path` lies under, the longest key first: "a.b" -> "", ".b"."""
    parts = path.split(".")
    return ["".join(f".{part}" for part in parts[end:]) for end in range(len(parts), 0, -1)]


def translated(recipe: str, file: Path) -> str:
    """An old YAML with today's keys."""
    nested: dict[str, Any] = {}
    for path, value in renamed(recipe, leaves(yaml.safe_load(file.read_text()))).items():
        *parents, last = path.split(".")
        place = nested
        for part in parents:
            place = place.setdefault(part, {})
        place[last] = value
    return yaml.safe_dump(nested, sort_keys=False)


def plain(value: Any) -> Any:
    return json.loads(json.dumps(value))


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_a_configuration_is_read_or_its_new_keys_are_named(file, tmp_path, capsys):
    name = file.parent.name
    recipe = import_module(f"recipes.{name}")
    old = leaves(yaml.safe_load(file.read_text()))
    new = renamed(name, old)
    try:
        config = recipe.parse(["--config", str(file)])
    except (SystemExit, ValueError) as error:
        told = f"{error} {capsys.readouterr().err}".split("error:")[-1]  # the usage before it has every key
        changed = [key for key in new if key not in old]
        assert changed or new != old, f"{file.name} is refused, and RENAMED says nothing of it: {told}"
        assert any(key.split(".")[-1] in told for key in changed) or not changed, f"no new key is named: {told}"
        (tmp_path / file.name).write_text(translated(name, file))
        config = recipe.parse(["--config", str(tmp_path / file.name)])
    read = plain(asdict(config))
    for path, value in new.items():
        place = read
        for part in path.split("."):
            place = place[int(part)] if isinstance(place, list) else place[part]
        if not (isinstance(value, list) and value and isinstance(value[0], dict)):
            assert place == plain(value), path
        else:
            assert [{key: one[key] for key in told} for one, told in zip(place, value, strict=True)] == plain(value)


def test_renamed_keys_and_values_are_replaced(monkeypatch):
    monkeypatch.setitem(RENAMED, "lr_hands", "lr_action")
    monkeypatch.setitem(RENAMED, "mae:model", "autoencoder")
    monkeypatch.setitem(RENAMED_VALUES, "teacher", {"centre": "center"})
    monkeypatch.setitem(RENAMED_VALUES, "controls", {"right": "same"})
    old = {
        "lr_hands": 1,
        "model.encoder.depth": 2,
        "model_size": 3,
        "teacher": "centre",
        "controls": ["right", "blank"],
    }
    assert renamed("mae", old) == {
        "lr_action": 1,
        "autoencoder.encoder.depth": 2,
        "model_size": 3,
        "teacher": "center",
        "controls": ["same", "blank"],
    }
    assert renamed("vla", old)["model.encoder.depth"] == 2
