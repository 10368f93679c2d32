"""Folders for the Hub: `trust_remote_code=True` finds the classes of the installed package, and nothing is a copy."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import HfApi, ModelCard
from huggingface_hub.errors import EntryNotFoundError
from support.tiny_vlm import join
from transformers import AutoProcessor

import vlm_vision as vv
from vlm_vision.vlm.config import VisionLanguageConfig
from vlm_vision.vlm.image_processor import VisionLanguageImageProcessor
from vlm_vision.vlm.processor import VisionLanguageProcessor
from vlm_vision.vlm.remote_code import CODE, MODULE, RemoteCodeMixin

OURS = {
    "AutoConfig": VisionLanguageConfig,
    "AutoModelForImageTextToText": vv.VisionLanguageModel,
    "AutoProcessor": VisionLanguageProcessor,
    "AutoImageProcessor": VisionLanguageImageProcessor,
}
FILES = {
    "README.md",
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vlm_vision_manifest.json",
}


@pytest.fixture
def registered(monkeypatch) -> None:
    """All four classes, for one test."""
    for name, kind in OURS.items():
        monkeypatch.setattr(kind, "_auto_entry", {})
        kind.register_for_auto_class(name)


def elsewhere(code: str, tmp_path: Path, **environment: str) -> subprocess.CompletedProcess:
    """Run code in a process of its own, with empty caches and no network."""
    offline = {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HOME": str(tmp_path / "home")}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | offline | environment
    )


def test_unless_registered_a_folder_names_no_code(tmp_path):
    join().save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == FILES
    assert "auto_map" not in (tmp_path / "config.json").read_text() + (tmp_path / "processor_config.json").read_text()


def test_a_registered_folder_names_the_installed_classes(registered, tmp_path):
    join().save_pretrained(tmp_path / "model")
    assert {path.name for path in (tmp_path / "model").iterdir()} == FILES | {f"{MODULE}.py"}
    assert (tmp_path / "model" / f"{MODULE}.py").read_text() == CODE
    config, processor = (
        json.loads((tmp_path / "model" / name).read_text()) for name in ("config.json", "processor_config.json")
    )
    found = config["auto_map"] | processor["auto_map"] | processor["image_processor"]["auto_map"]
    assert found == {name: f"{MODULE}.{kind.__name__}" for name, kind in OURS.items()}
    code = f"""
import sys, transformers
made = {{}}
for name in {list(OURS)}:
    assert "vlm_vision" not in sys.modules or made
    made[name] = type(getattr(transformers, name).from_pretrained({str(tmp_path / "model")!r}, trust_remote_code=True))
import vlm_vision.vlm.config, vlm_vision.vlm.image_processor, vlm_vision.vlm.processor
for name, kind in made.items():
    assert kind is getattr(sys.modules[kind.__module__], kind.__name__) and kind.__module__.startswith("vlm_vision.vlm.")
    print(name, kind.__name__)
"""
    done = elsewhere(code, tmp_path)
    assert done.stdout.split("\n")[:-1] == [f"{name} {kind.__name__}" for name, kind in OURS.items()], done.stderr


def test_each_part_saved_alone_brings_the_code(registered, tmp_path):
    vlm = join()
    vlm.config.save_pretrained(tmp_path / "config")
    vlm.processor.save_pretrained(tmp_path / "processor")
    vlm.processor.image_processor.save_pretrained(tmp_path / "image")
    for folder in tmp_path.iterdir():
        assert (folder / f"{MODULE}.py").read_text() == CODE


def test_a_loaded_folder_keeps_its_code_when_saved_again(registered, tmp_path, monkeypatch):
    join().save_pretrained(tmp_path / "a")
    for kind in OURS.values():
        monkeypatch.setattr(kind, "_auto_entry", {})
    vv.VisionLanguageModel.from_pretrained(tmp_path / "a").save_pretrained(tmp_path / "b")
    AutoProcessor.from_pretrained(tmp_path / "a").save_pretrained(tmp_path / "c")
    for folder in ("b", "c"):
        assert (tmp_path / folder / f"{MODULE}.py").read_text() == CODE


def test_without_the_package_the_code_says_what_to_install(tmp_path):
    (tmp_path / f"{MODULE}.py").write_text(CODE)
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); sys.modules['vlm_vision'] = None; import {MODULE}"
    done = elsewhere(code, tmp_path)
    assert (
        "ImportError: this model needs the package vlm-vision" in done.stderr
        and "pip install vlm-vision" in done.stderr
    )


def test_a_class_of_the_user_is_saved_as_transformers_does_it(monkeypatch):
    class Mine(VisionLanguageConfig):
        pass

    Mine.register_for_auto_class()
    assert Mine._auto_class == "AutoConfig" and Mine._auto_entry == {} and issubclass(Mine, RemoteCodeMixin)
    with pytest.raises(ValueError, match="AutoNothing is not a valid auto class"):
        Mine.register_for_auto_class("AutoNothing")


@pytest.mark.parametrize("how", ["push_to_hub", "save_pretrained"])
def test_the_hub_gets_all_that_a_folder_gets(registered, tmp_path, monkeypatch, how):
    class Repo(str):
        repo_id = property(str)

    def no_card(repo_id, **_):
        raise EntryNotFoundError("none")

    commits = []
    monkeypatch.setattr(HfApi, "create_repo", lambda self, repo_id, **_: Repo(repo_id))
    monkeypatch.setattr(HfApi, "create_commit", lambda self, **options: commits.append(options))
    monkeypatch.setattr(ModelCard, "load", no_card)
    vlm = join()
    if how == "push_to_hub":
        vlm.push_to_hub("me/tiny", commit_message="first", max_shard_size="1GB")
    else:
        vlm.save_pretrained(tmp_path / "tiny", push_to_hub=True, repo_id="me/tiny", commit_message="first")
        assert {path.name for path in (tmp_path / "tiny").iterdir()} == FILES | {f"{MODULE}.py"}
    (commit,) = commits
    assert (commit["repo_id"], commit["commit_message"]) == ("me/tiny", "first")
    assert {operation.path_in_repo for operation in commit["operations"]} == FILES | {f"{MODULE}.py"}
