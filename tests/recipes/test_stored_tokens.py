"""Recipes on a token store: the losses are those of the live encoder, which is loaded only to be saved."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.models import make_image
from support.recipe_records.conversations import ALIGN, VQA
from support.recipe_records.distill import RECIPE as DISTILL
from support.recipe_records.recipe import Recipe
from support.recipe_records.vla import HEADS, actions
from support.recipe_records.vla import RECIPE as VLA

import vlm_vision as vv
from recipes import probe
from vlm_vision import load_encoder
from vlm_vision.new_models import new_encoder
from vlm_vision.probe import features
from vlm_vision.probe.stored import StoredProbe
from vlm_vision.tokens.extraction.extract import extract
from vlm_vision.tokens.sources.choose import open_sources
from vlm_vision.tokens.sources.options import SourceOptions
from vlm_vision.tokens.training.keys import find_keys
from vlm_vision.tokens.wanted import Wanted
from vlm_vision.train import stored_tokens
from vlm_vision.train.tasks.distill_stored import stored_view

SHAPE = dict(image_size=16, patch_size=8, embed_dim=16, depth=2, num_heads=2, mlp_dim=32, position_prefix=1)
FROZEN = ("--train_vision", "frozen", "--train_language", "lora", "--lora_rank", "2", "--feature_dtype", "float32")
TALK = {"align": (ALIGN, ()), "vqa": (VQA, FROZEN)}


def save_tower(folder: Path, **change) -> vv.Encoder:
    torch.manual_seed(3)
    tower = new_encoder(SHAPE | change).eval()
    tower.save_pretrained(folder)
    return tower


def store(folder: Path, source: str | Path, tower: str | Path, **wanted) -> str:
    extract(open_sources([str(source)]), vv.load(tower), folder, wanted=Wanted(**wanted))
    return str(folder)


@pytest.fixture(scope="module", params=TALK)
def talk(request, tmp_path_factory) -> tuple[Recipe, Path, Sequence[str]]:
    """A recipe on conversations, its folder with tower, store and a run with the live tower, and that run's arguments."""
    recipe, changes = TALK[request.param]
    folder = recipe.prepare(tmp_path_factory.mktemp(recipe.name))
    save_tower(folder / "tower")
    store(folder / "store", folder / "*.png", folder / "tower")
    changes = ("--encoder.source", str(folder / "tower"), *changes)
    (folder / "losses.json").write_text(json.dumps(recipe.train(folder, "live", *changes, "--cache_features", "false")))
    return recipe, folder, changes


@pytest.fixture
def tower_only_to_save(monkeypatch) -> None:
    """No weight of a tower is read, and no encoder called, before the tower is loaded to be saved."""

    def fails(*given, **named):
        pytest.fail("the tower was loaded, or called")

    take = stored_tokens.load_tower

    def allowed(settings):
        monkeypatch.undo()
        return take(settings)

    monkeypatch.setattr(stored_tokens, "load_tower", allowed)
    monkeypatch.setattr(load_encoder, "build", fails)
    monkeypatch.setattr("vlm_vision.train.vlm.WeightFiles", fails)
    monkeypatch.setattr(vv.Encoder, "forward", fails)


def test_losses_are_those_of_the_live_tower_which_is_loaded_only_to_be_saved(talk, tmp_path, tower_only_to_save):
    recipe, folder, changes = talk
    live = json.loads((folder / "losses.json").read_text())
    stored = recipe.train(folder, tmp_path / "stored", *changes, "--data.tokens", str(folder / "store"))
    assert stored["losses"] == pytest.approx(live["losses"], rel=1e-5)
    for name in {"eval_loss/right", "eval_loss/shuffled", "accuracy", "shuffled"} & live.keys():
        assert stored[name] == pytest.approx(live[name], rel=1e-4)
    assert "eval_loss/blank" not in stored
    one, other = (
        vv.VisionLanguageModel.from_pretrained(run / "model") for run in (folder / "live", tmp_path / "stored")
    )
    ours, theirs = dict(one.named_parameters()), dict(other.named_parameters())
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        if name.startswith("encoder."):
            assert torch.equal(value, theirs[name])
        torch.testing.assert_close(value, theirs[name], rtol=1e-3, atol=1e-4)


def test_a_tower_with_other_weights_stops_the_end_alone_and_the_run_resumes(talk, tmp_path):
    recipe, folder, _ = talk
    tower = tmp_path / "tower"
    shutil.copytree(folder / "tower", tower)
    changed = vv.load(tower)
    with torch.no_grad():
        changed.model.norm.weight[0] += 1
    changed.save_pretrained(tower)
    changes = ("--encoder.source", str(tower), *TALK[recipe.name][1], "--data.tokens", str(folder / "store"))
    with pytest.raises(
        ValueError, match=r"the encoder's weights \(fingerprint\) are .* in .*/store and .* in .*/tower: put"
    ):
        recipe.train(folder, tmp_path / "run", *changes)
    assert not (tmp_path / "run/model").exists()
    shutil.copytree(folder / "tower", tower, dirs_exist_ok=True)
    rest = recipe.train(folder, tmp_path / "run", *changes)
    assert rest["first_step"] == 4 and rest["losses"] == []
    one, other = (vv.VisionLanguageModel.from_pretrained(run / "model") for run in (folder / "live", tmp_path / "run"))
    for (name, value), theirs in zip(one.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(value, theirs, rtol=1e-3, atol=1e-4, msg=name)


def test_a_saved_model_to_start_from_is_read_without_its_tower(talk, tmp_path, tower_only_to_save, monkeypatch):
    recipe, folder, _ = talk
    changes = ("--encoder.new", "{}", "--language.new", "{}", "--start", str(folder / "live/model"))
    changes += (*TALK[recipe.name][1], "--data.tokens", str(folder / "store"))
    stored = recipe.train(folder, tmp_path / "stored", *changes)
    live = recipe.train(folder, tmp_path / "live", *changes, "--data.tokens", "", "--cache_features", "false")
    assert stored["losses"] == pytest.approx(live["losses"], rel=1e-5)
    one, other = (vv.VisionLanguageModel.from_pretrained(tmp_path / run / "model") for run in ("live", "stored"))
    for (name, value), theirs in zip(one.encoder.named_parameters(), other.encoder.parameters(), strict=True):
        assert torch.equal(value, theirs), name


WRONG = {
    "tiles": (
        ["--layout", '{"name": "anyres", "pinpoints": [[16, 32], [32, 16]]}'],
        "the layout here is 'anyres' with images of several canvases or sizes",
    ),
    "new tower": ([], "encoder.new is another: set encoder.source"),
    "image size": (["--encoder.image_size", "32"], "was made by another encoder: encoder preprocess resize_to"),
    "layer": (["--encoder.tap_layer", "0"], "holds the layers -1 and this run reads 0 (tap layer)"),
    "norm": (["--encoder.tap_layer", "-1", "--encoder.tap_norm", "false"], "this run reads them without it (tap norm)"),
    "no store": (["--data.tokens", "FOLDER"], "has no store.json: expected a token store"),
    "other images": (
        ["--data.images", "FOLDER/other"],
        "has no tokens of the image FOLDER/other/new.png; its keys are",
    ),
}


def test_a_tower_that_trains_excludes_stored_tokens(talk):
    recipe, folder, changes = talk
    for how in ("lora", "full") if recipe is VQA else ():
        wrong = [*changes, "--data.tokens", str(folder / "store"), "--train_vision", how]
        with pytest.raises(ValueError, match="without augmentation: set train_vision frozen, or leave data.tokens out"):
            recipe.train(folder, "wrong", *wrong)


@pytest.mark.parametrize("name", WRONG)
def test_what_stored_tokens_exclude_is_refused_with_one_sentence(talk, tmp_path, name):
    recipe, folder, changes = talk
    (folder / "other").mkdir(exist_ok=True)
    make_image(99, 16, 16).save(folder / "other/new.png")
    wrong, says = WRONG[name]
    changes = changes[2 * (name == "new tower") :]
    if name == "other images":
        records = json.loads((folder / "captions.json").read_text())[:1] * 4
        for record in records:
            record["image"] = "new.png"
        (folder / "other.json").write_text(json.dumps(records))
        wrong = [*wrong, "--data.train", str(folder / "other.json"), "--data.test", ""]
    with pytest.raises(ValueError) as error:
        recipe.train(folder, tmp_path / "run", *changes, "--data.tokens", str(folder / "store"), *wrong)
    assert says.replace("FOLDER", str(folder)) in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "run/model").exists()


# Robot data


@pytest.fixture(scope="module", params=["parallel", "flow"])
def robot(request, tmp_path_factory) -> tuple[Path, Sequence[str]]:
    """The folder of robot data, tower, store and a run with the live tower, and that run's arguments."""
    folder = VLA.prepare(tmp_path_factory.mktemp("robot"))
    save_tower(folder / "tower")
    store(folder / "store", folder / "data", folder / "tower")
    changes = (*HEADS[request.param], "--encoder.source", str(folder / "tower"), *STILL)
    (folder / "live.json").write_text(json.dumps(VLA.train(folder, "live", *changes)))
    return folder, changes


STILL = ("--train_vision", "frozen", "--area", "1", "--color", "false", "--train_language", "lora", "--lora_rank", "2")


def test_a_policy_learns_from_stored_frames_as_from_images(robot, tmp_path, tower_only_to_save, monkeypatch):
    folder, changes = robot
    monkeypatch.setattr(
        "vlm_vision.data.lerobot.reader.RobotDataset._image", lambda *a: pytest.fail("an image was read")
    )
    stored = VLA.train(folder, tmp_path / "stored", *changes, "--data.tokens", str(folder / "store"))
    live = json.loads((folder / "live.json").read_text())
    assert stored["losses"] == pytest.approx(live["losses"], rel=1e-5)
    for name in ("right", "shuffled"):
        assert stored[f"action_error/{name}"] == pytest.approx(live[f"action_error/{name}"], rel=1e-3)
    assert "action_error/blank" not in stored
    torch.testing.assert_close(
        actions(tmp_path / "stored", folder), actions(folder / "live", folder), rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (
            ["--area", "0.9", "--color", "true"],
            "without augmentation: set area 1 and color false, or leave data.tokens out",
        ),
        (["--train_vision", "lora"], "without augmentation: set train_vision frozen, or leave"),
        (["--train_vision", "lora", "--film", "true"], "set train_vision frozen and film false, or leave"),
        (["--data.train", '{"one": "FOLDER/data", "two": "FOLDER/data"}'], "which the data sets one, two share"),
        (["--data.tokens", "FOLDER/sparse"], "has no tokens of the image 0/1/top; its keys are like '0/0/top'"),
    ],
)
def test_what_stored_frames_exclude_is_refused_with_one_sentence(robot, tmp_path, wrong, says):
    folder, changes = robot
    if not (folder / "sparse").exists():
        source = open_sources([str(folder / "data")], SourceOptions(every=2))
        extract(source, vv.load(folder / "tower"), folder / "sparse")
    wrong = [word.replace("FOLDER", str(folder)) for word in wrong]
    with pytest.raises(ValueError) as error:
        VLA.train(folder, tmp_path / "run", *changes, "--data.tokens", str(folder / "store"), *wrong)
    assert says in str(error.value) and "\n" not in str(error.value)


def test_cameras_of_a_policy_are_found_by_their_names_in_the_data(robot, tmp_path):
    folder, changes = robot
    renamed = (*changes, "--data.cameras", '{"front": "top"}', "--steps", "2")
    stored = VLA.train(folder, tmp_path / "stored", *renamed, "--data.tokens", str(folder / "store"))
    assert stored["losses"] == pytest.approx(VLA.train(folder, tmp_path / "live", *renamed)["losses"], rel=1e-5)


# Distillation

TEACHERS = '[{"source": "FOLDER/wide"}, {"source": "FOLDER/map", "name": "pooling", "image_size": 24}]'
WHOLE = ("--teachers", TEACHERS, "--crop_scale", "[1, 1]", "--flip", "0", "--eval_neighbors", "6")
BOTH = ("--data.tokens", "FOLDER/wide store + FOLDER/map store")


@pytest.fixture(scope="module")
def taught(tmp_path_factory) -> tuple[Path, dict]:
    """The folder of square images, two teachers and their stores, and metrics of a run with live teachers."""
    folder = DISTILL.prepare(tmp_path_factory.mktemp("distill"))
    for i in range(16):
        make_image(i, 24, 24).save(folder / f"{i}.png")
    store(folder / "wide store", folder / "*.png", folder / "wide")
    source = open_sources([str(folder / "*.png")])
    extract(source, vv.load(folder / "map", image_size=24), folder / "map store")
    return folder, DISTILL.train(folder, "live", *WHOLE)


@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_student_learns_from_stored_teachers_as_from_live_ones(taught, tmp_path, monkeypatch, workers):
    folder, live = taught
    monkeypatch.setattr("vlm_vision.train.tasks.distill.load", lambda *a, **k: pytest.fail("a teacher was loaded"))
    stored = DISTILL.train(folder, tmp_path / "stored", *WHOLE, *BOTH, "--workers", workers)
    assert stored["losses"] == pytest.approx(live["losses"], rel=1e-5)
    for name in ("teacher wide", "teacher pooling"):
        assert stored["neighbors"][name] == live["neighbors"][name]
    assert sum(name.startswith("eval_cosine") for name in stored) == 4


def test_a_bad_image_of_store_and_data_is_skipped(taught, tmp_path):
    folder, _ = taught
    (folder / "bad.png").write_bytes(b"no image")
    (folder / "bad.csv").write_text((folder / "train.csv").read_text() + "bad.png,odd\n")
    store(tmp_path / "store", folder / "*.png", folder / "wide")
    changes = (*WHOLE, "--teachers", '[{"source": "FOLDER/wide"}]', "--data.train", "FOLDER/bad.csv")
    found = DISTILL.train(folder, tmp_path / "run", *changes, "--data.tokens", str(tmp_path / "store"))
    assert found["skipped"] > 0 and len(found["losses"]) == 8
    (folder / "bad.png").unlink()


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (["--flip", "0.5"], "without augmentation: set flip 0, or leave data.tokens out"),
        (["--crop_scale", "[0.4, 1]"], "without augmentation: set crop_scale [1, 1], or leave"),
        (["--data.tokens", "FOLDER/wide store"], "data.tokens names 1 stores for 2 teachers"),
        (["--data.tokens", "FOLDER/map store + FOLDER/wide store"], "was made by another encoder: encoder "),
    ],
)
def test_what_stored_teachers_exclude_is_refused_with_one_sentence(taught, tmp_path, wrong, says):
    folder, _ = taught
    with pytest.raises(ValueError) as error:
        DISTILL.train(folder, tmp_path / "run", *WHOLE, *BOTH, *wrong)
    assert says in str(error.value) and "\n" not in str(error.value)


def test_teachers_that_show_different_parts_have_no_common_view(taught):
    folder, _ = taught
    one, other = vv.load(folder / "wide"), vv.load(folder / "wide")
    other.preprocess = replace(other.preprocess, resize="shortest_edge", resize_to=(28, 28), crop=(24, 24))
    with pytest.raises(ValueError, match="teachers one and other shows different parts of an image"):
        stored_view(["one", "other"], [one, other], 24)


# Probes

PROBES = '["knn", "logistic", "linear", "attentive"]'


@pytest.fixture(scope="module")
def asked(tmp_path_factory) -> tuple[Path, list[str]]:
    """The folder of images of two classes, an encoder and its store, and arguments of a run."""
    folder = tmp_path_factory.mktemp("probe")
    for i in range(24):
        for split in ("train", "test"):
            at = folder / "images" / split / ["even", "odd"][i % 2] / f"{i}.png"
            at.parent.mkdir(parents=True, exist_ok=True)
            make_image(i + 50 * (split == "test"), 20, 18 + i % 3).save(at)
    save_tower(folder / "tower", depth=5)
    store(folder / "store", folder / "images", folder / "tower", layers=(-1, -2, -3, -4))
    arguments = [
        "--encoder",
        str(folder / "tower"),
        "--probes",
        PROBES,
        "--neighbors",
        "[1, 3]",
        "--test",
        f"{folder}/images/test",
    ]
    return folder, [*arguments, "--train", f"{folder}/images/train", "--out", str(folder / "out")]


@pytest.mark.parametrize(
    "changes", [(), ("--tap_layer", "-2", "--features", "mean", "--probes", '["knn", "attentive"]')]
)
def test_probes_of_stored_tokens_find_what_they_find_of_the_encoder(asked, monkeypatch, changes):
    folder, arguments = asked
    live = probe.main(probe.parse([*arguments, *changes]))["found"]
    monkeypatch.setattr(load_encoder, "build", lambda *a, **k: pytest.fail("the encoder was loaded"))
    stored = probe.main(probe.parse([*arguments, *changes, "--data.tokens", str(folder / "store")]))["found"]
    assert stored.keys() == live.keys()
    for name, figures in live.items():
        assert stored[name] == pytest.approx(figures, abs=1e-5), name


def test_features_out_of_a_store_are_those_of_the_encoder(asked):
    folder, _ = asked
    images = sorted(map(str, (folder / "images/train").rglob("*.png")))[:5]
    encoder, tokens = vv.load(folder / "tower"), vv.TokenStore(folder / "store")
    stored = StoredProbe(tokens, encoder, find_keys(tokens, images))
    for kind in ("cls", "mean", "cls+mean", "pooled"):
        close(stored.image_features(images, kind=kind), features.image_features(encoder, images, kind=kind))
    close(stored.block_features(images), features.block_features(encoder, images))
    close(stored.patch_features(images), features.patch_features(encoder, images))


def close(one: torch.Tensor, other: torch.Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (["--probes", '["correspondence"]'], "leave correspondence out of probes"),
        (["--tap_norm", "false"], "this run reads them without it (tap norm)"),
        (["--image_size", "32"], "was made by another encoder: encoder preprocess"),
        (["--test", "FOLDER/more"], "has no tokens of the image FOLDER/more/even/new.png"),
        (["--data.tokens", "FOLDER/last"], "last holds the layers -1 and this run reads -4 (tap layer)"),
    ],
)
def test_what_stored_tokens_exclude_of_probes_is_refused_with_one_sentence(asked, wrong, says):
    folder, arguments = asked
    if not (folder / "more").exists():
        for name in ("even", "odd"):
            (folder / "more" / name).mkdir(parents=True)
            make_image(0).save(folder / "more" / name / "new.png")
        store(folder / "last", folder / "images", folder / "tower")
    wrong = [word.replace("FOLDER", str(folder)) for word in wrong]
    with pytest.raises(ValueError) as error:
        probe.main(probe.parse([*arguments, "--data.tokens", str(folder / "store"), *wrong]))
    assert says.replace("FOLDER", str(folder)) in str(error.value) and "\n" not in str(error.value)
