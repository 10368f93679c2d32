"""Distillation of features: its laws, however a batch is cut, stopped and not, and a student that gives its teachers' features."""

import csv
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from support.models import make_image
from support.two_processes import launch
from transformers import AutoModel

import vlm_vision as vv
from recipes import distill
from vlm_vision.data.images.batches import ImageBatch
from vlm_vision.data.images.views import Plain
from vlm_vision.new_models import new_encoder
from vlm_vision.preprocess.images import load_image
from vlm_vision.train.command import run_cli
from vlm_vision.train.loop.step import Step
from vlm_vision.train.tasks.distill import (
    AS_DRAWN,
    StudentWithLoss,
    center_crop_preprocess,
    space_of,
    standardize,
    teacher_outputs,
)
from vlm_vision.train.tasks.distill_student import (
    AgglomerativeStudent,
    TeacherFeatures,
    TeacherHeads,
    on_grid,
    summary_of,
)
from vlm_vision.train.tasks.supervised import renormalize

STUDENT = dict(image_size=16, patch_size=4, embed_dim=32, depth=2, num_heads=2, mlp_dim=64, position_prefix=1)
TINY = f"""
teachers:
  - {{source: FOLDER/wide, weight: 0.5}}
  - {{source: FOLDER/map, name: pooling, image_size: 20, tap_layer: -1}}
student:
  fields: {json.dumps(STUDENT)}
steps: 8
batch_size: 8
micro_batch_size: 8
statistics_steps: 2
lr: 0.003
warmup_steps: 2
eval_neighbors: 0
tracker: none
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Sixteen images of two labels, and two teachers: one of CLS on a finer grid, one that pools without CLS."""
    folder = tmp_path_factory.mktemp("distill")
    rows = []
    for i in range(16):
        make_image(i, 24, 20 + i).resize((20 + i, 24)).save(folder / f"{i}.png")
        rows.append({"picture": f"{i}.png", "label": ["even", "odd"][i % 2]})
    with (folder / "train.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["picture", "label"])
        writer.writeheader()
        writer.writerows(rows)
    (folder / "test.csv").write_text("picture,label\n" + "".join(f"{i}.png,odd\n" for i in range(0, 16, 3)))
    (folder / "tiny.yaml").write_text(TINY.replace("FOLDER", str(folder)))
    torch.manual_seed(7)
    shape = dict(depth=2, num_heads=2, mlp_dim=48, patch_size=4)
    new_encoder(dict(image_size=24, embed_dim=24, position_prefix=1, **shape)).save_pretrained(folder / "wide")
    plain = dict(image_size=16, embed_dim=40, class_token=False, pool="map", **shape)
    siglip = new_encoder(plain | {"num_heads": 4})
    siglip.origin = type(siglip.origin)("siglip_vision_model", "transformers")
    siglip.save_pretrained(folder / "map")
    return folder


def arguments(folder: Path, out: Path | str, *changes: str) -> list[str]:
    given = ["--config", f"{folder}/tiny.yaml", "--data.train", f"{folder}/train.csv", "--out", str(folder / out)]
    return [*given, "--data.test", f"{folder}/test.csv", *changes]


def trained(folder: Path, out: Path | str, *changes: str) -> dict:
    return distill.main(distill.parse(arguments(folder, out, *changes)))


@pytest.fixture(scope="module")
def alone(folder) -> dict:
    """What one process finds, a batch at a time."""
    return trained(folder, "one")


def looks(found: dict) -> dict[str, float]:
    """What was measured on test images."""
    return {key: value for key, value in found.items() if key.startswith("eval_")}


def check_same(folder: Path, found: dict, name: str, wanted: dict) -> None:
    """Losses, what is measured and what is saved are those of the run `one`."""
    assert len(found["losses"]) == 8 and len(looks(wanted)) == 3 * 4
    assert found["losses"] == pytest.approx(wanted["losses"], rel=1e-4)
    assert looks(found) == pytest.approx(looks(wanted), rel=2e-3, abs=2e-4)
    ours, theirs = (AgglomerativeStudent.load(folder / one / "model").state_dict() for one in (name, "one"))
    for key, value in theirs.items():
        torch.testing.assert_close(ours[key], value, rtol=1e-2, atol=2e-3, msg=lambda text, key=key: f"{key}: {text}")


PARTS = ["--micro_batch_size", "4", "--sharding", "fsdp2"]
SHARED = {
    "copies": ["--micro_batch_size", "2"],
    "parts": [*PARTS, "--gradient_checkpointing", "true", "--eval_every", "3", "--checkpoint_every", "3"],
    "half parts": [*PARTS, "--mixed_precision", "bf16"],
}
"""What two processes do."""


@pytest.fixture(scope="module")
def together(folder) -> dict[str, dict]:
    names = [*SHARED, "parts"]  # whose second run goes on from the last checkpoint of the first
    runs = [{"recipe": "distill", "arguments": arguments(folder, name, *SHARED[name])} for name in names]
    done = launch(folder, "two", runs)
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(zip([*SHARED, "parts, again"], json.loads((folder / "two.out.json").read_text()), strict=True))


@pytest.mark.parametrize("name", ["copies", "parts"])
def test_two_processes_equal_one(folder, together, alone, name):
    assert together[name]["processes"] == 2 and alone["processes"] == 1
    check_same(folder, together[name], name, alone)


def test_teachers_stay_out_of_what_is_sharded(together):
    assert together["parts"]["sharded_modules"] == 1 + 2  # the model and the student's blocks


def test_a_run_in_parts_goes_on_from_its_checkpoint(together):
    whole, rest = together["parts"], together["parts, again"]
    assert rest["first_step"] == 6 and rest["losses"] == whole["losses"][6:]
    assert looks(rest) == looks(whole)


def test_half_precision_follows_the_same_curve(together, alone):
    half = together["half parts"]
    assert half["losses"] != alone["losses"]
    assert half["losses"] == pytest.approx(alone["losses"], rel=0.03)


@pytest.mark.parametrize("size", ["1", "4"])
def test_micro_batches_of_any_size_give_the_same(folder, alone, size):
    found = trained(folder, f"by {size}", "--micro_batch_size", size)
    check_same(folder, found, f"by {size}", alone)


def test_a_run_that_was_stopped_goes_on_as_if_it_was_not(folder, tmp_path, monkeypatch):
    changes = ["--checkpoint_every", "3", "--micro_batch_size", "4"]
    whole = trained(folder, tmp_path / "whole", *changes)
    taken = Step.__call__

    def stopped(self, index, micro_batches):
        if index == 5:
            raise KeyboardInterrupt
        return taken(self, index, micro_batches)

    monkeypatch.setattr(Step, "__call__", stopped)
    with pytest.raises(KeyboardInterrupt):
        trained(folder, tmp_path / "stopped", *changes)
    monkeypatch.undo()
    rest = trained(folder, tmp_path / "stopped", *changes, "--eval_every", "2")
    assert rest["first_step"] == 3 and rest["losses"] == whole["losses"][3:]
    assert looks(rest) == looks(whole)


def spoken(teacher: vv.Encoder, name: str = "one") -> tuple[AgglomerativeStudent, torch.Tensor]:
    """A student that is the teacher, with heads for it, standardized by the pixels that come along."""
    student = AgglomerativeStudent(teacher, [space_of(name, teacher)])
    views = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    standardize(Accelerator(), student, [teacher], [ImageBatch((views,), [], torch.zeros(3), [], [])])
    return student, views


@torch.no_grad()
def test_the_teacher_itself_with_heads_that_change_nothing_has_no_loss(encoder):
    student, views = spoken(encoder)
    (heads,), (told,) = student.each(), teacher_outputs([encoder], views)
    for head in heads.each().values():
        head.forward = head.standardized
    assert heads.loss(told, told).item() == pytest.approx(0, abs=1e-6)
    said = heads(told)
    torch.testing.assert_close(said.patch_tokens, told.patch_tokens)
    torch.testing.assert_close(said.pooled, told.pooled)
    near = heads.nearness(told, told)
    assert near["eval_cosine/one/patches"].item() == pytest.approx(3) and near["eval_cosine/one/summary"] > 2.999


@torch.no_grad()
def test_statistics_make_every_channel_of_a_teacher_alike(encoder):
    student, views = spoken(encoder)
    (heads,), (told,) = student.each(), teacher_outputs([encoder], views)
    standard = heads.patches.standardized(told.patch_tokens).flatten(0, 1)
    torch.testing.assert_close(standard.mean(dim=0), torch.zeros(32), rtol=0, atol=1e-4)
    torch.testing.assert_close(standard.std(dim=0, correction=0), torch.ones(32), rtol=1e-4, atol=0)


@torch.no_grad()
def test_no_constant_is_nearer_than_the_best(encoder):
    student, views = spoken(encoder)
    (heads,), (told,) = student.each(), teacher_outputs([encoder], views)
    best = heads.nearness(student.encode(encoder.preprocess([make_image(i) for i in range(3)])), told)
    best = best["eval_constant/one/patches"].norm().item() / 3
    tokens = told.patch_tokens.flatten(0, 1)
    found = [F.cosine_similarity(tokens, way, dim=-1).mean() for way in (tokens.mean(0), *torch.randn(9, 32))]
    direction = F.normalize(tokens, dim=-1).mean(0)
    assert max(found).item() <= best + 1e-6
    assert F.cosine_similarity(tokens, direction, dim=-1).mean().item() == pytest.approx(best, abs=1e-5)


@torch.no_grad()
def test_the_loss_of_several_teachers_is_the_weighted_sum_of_each_alone(folder):
    towers = [vv.load(folder / "wide"), vv.load(folder / "map")]
    student = AgglomerativeStudent(new_encoder(STUDENT), [space_of(str(i), tower) for i, tower in enumerate(towers)])
    pixels, told = torch.randn(3, 3, 16, 16), teacher_outputs(towers, torch.rand(3, 3, 24, 24) * 255)
    both = StudentWithLoss(student, [0.5, 3.0])(pixels, told)
    seen = student.encode(pixels)
    first, second = (heads.loss(seen, one) for heads, one in zip(student.each(), told, strict=True))
    assert both.item() == pytest.approx((0.5 * first + 3 * second).item(), rel=1e-6)
    assert first != second


@torch.no_grad()
def test_the_loss_of_a_batch_is_the_mean_of_its_images(folder):
    tower = vv.load(folder / "wide")
    student = AgglomerativeStudent(new_encoder(STUDENT), [space_of("one", tower)])
    pixels, views = torch.randn(3, 3, 16, 16), torch.rand(3, 3, 24, 24) * 255
    model = StudentWithLoss(student, [1.0])
    alone = [model(pixels[i : i + 1], teacher_outputs([tower], views[i : i + 1])) for i in range(3)]
    assert model(pixels, teacher_outputs([tower], views)).item() == pytest.approx(
        torch.stack(alone).mean().item(), rel=1e-5
    )


def test_tokens_keep_a_slope_on_another_grid():
    rows = torch.arange(4.0).view(4, 1).expand(4, 6).reshape(1, 24, 1)
    wanted = torch.tensor([0.5, 2.5]).view(2, 1).expand(2, 3).reshape(1, 6, 1)
    assert torch.equal(on_grid(rows, (4, 6), (4, 6)), rows)
    inner = on_grid(rows, (4, 6), (8, 6)).view(8, 6)[1:-1]
    torch.testing.assert_close(inner, torch.arange(0.25, 3, 0.5).view(6, 1).expand(6, 6))
    torch.testing.assert_close(on_grid(rows, (4, 6), (2, 3)).mean(), wanted.mean())


@torch.no_grad()
@pytest.mark.parametrize("tap", [vv.Tap(), vv.Tap(-2)])
def test_widths_are_those_of_what_a_teacher_gives(folder, tap):
    for name in ("wide", "map"):
        tower = vv.load(folder / name, tap=tap)
        (out,), space = teacher_outputs([tower], torch.zeros(1, 3, 24, 24)), space_of(name, tower)
        assert space.width == out.patch_tokens.shape[-1]
        assert bool(space.summary) == (out.pooled is not None or out.cls_token is not None)
        assert not space.summary or space.summary == summary_of(out).shape[-1]


def test_the_student_comes_nearer_than_any_constant(folder, tmp_path):
    wide = ["--teachers", json.dumps([{"source": f"{folder}/wide"}]), "--data.test", f"{folder}/train.csv"]
    changes = [*wide, "--crop_scale", "[0.9, 1.0]", "--flip", "0", "--eval_neighbors", "12"]
    found = trained(folder, tmp_path, *changes, "--steps", "150", "--batch_size", "16", "--micro_batch_size", "16")
    assert found["losses"][-1] < 0.7 * found["losses"][0]
    for part in ("patches", "summary"):
        near, constant, untrained = (found[f"eval_{what}/wide/{part}"] for what in ("cosine", "constant", "untrained"))
        assert near > max(constant, untrained), part
    told = json.loads((tmp_path / "metrics.json").read_text())
    assert told == {name: value for name, value in found.items() if name != "losses"}
    who = {"student", "teacher wide", "random weights", "pixels", "most frequent class"}
    assert set(told["neighbors"]) == who


@torch.no_grad()
def test_saved_heads_give_the_features_that_were_measured(folder, alone):
    student = AgglomerativeStudent.load(folder / "one" / "model")
    tower = vv.load(folder / "map", image_size=20)
    cosines = []
    for i in range(0, 16, 3):
        views = Plain(center_crop_preprocess(24))(load_image(folder / f"{i}.png"), 0)[None]
        (told,), said = teacher_outputs([tower], views), student(renormalize(student.encoder, views, AS_DRAWN))
        out = said["pooling"]
        assert out.grid == (4, 4) and out.patch_tokens.shape == (1, 16, 40)
        ours = on_grid(out.patch_tokens, out.grid, told.grid)
        cosines.append(F.cosine_similarity(ours, told.patch_tokens, dim=-1).mean().item())
    assert sum(cosines) / len(cosines) == pytest.approx(alone["eval_cosine/pooling/patches"], rel=1e-4)


@torch.no_grad()
def test_saving_and_loading_changes_no_feature(tmp_path):
    student = AgglomerativeStudent(
        new_encoder(STUDENT), [TeacherFeatures("a", 24, 0), TeacherFeatures("b.c", 8, 12)]
    ).eval()
    for heads in student.each():
        for head in heads.each().values():
            head.mean.normal_()
            head.std.uniform_(1, 2)
    student.save(tmp_path / "student")
    again, pixels = AgglomerativeStudent.load(tmp_path / "student"), torch.randn(2, 3, 16, 16)
    ours, theirs = student(pixels), again(pixels)
    assert list(theirs) == ["a", "b.c"] and theirs["a"].pooled is None
    for name, out in ours.items():
        assert torch.equal(out.patch_tokens, theirs[name].patch_tokens) and out.grid == theirs[name].grid
    assert torch.equal(ours["b.c"].pooled, theirs["b.c"].pooled)
    (tmp_path / "student/heads.json").write_text('{"teachers": [{"name": "a", "width": 24, "summary": 0}]}')
    with pytest.raises(ValueError, match="are not those of its heads.json: save the student again"):
        AgglomerativeStudent.load(tmp_path / "student")


@torch.no_grad()
def test_transformers_loads_the_student(folder, alone):
    theirs, info = AutoModel.from_pretrained(
        folder / "one" / "model", output_loading_info=True, add_pooling_layer=False
    )
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    ours, pixels = vv.load(folder / "one" / "model"), torch.randn(2, 3, 16, 16)
    tokens = theirs.eval()(pixels).last_hidden_state
    torch.testing.assert_close(ours(pixels).patch_tokens, tokens[:, 1:], rtol=1e-4, atol=1e-5)


def test_a_run_starts_from_a_saved_student(folder, alone, tmp_path):
    start = ["--student.source", f"{folder}/one/model", "--student.fields", "{}", "--steps", "1", "--lr", "0"]
    trained(folder, tmp_path, *start, "--weight_decay", "0")
    ours, theirs = (vv.load(path / "model").state_dict() for path in (tmp_path, folder / "one"))
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())


def test_bad_images_are_counted_and_the_run_goes_on(folder, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no image")
    for name in ("train", "test"):
        (tmp_path / f"{name}.csv").write_text((folder / "train.csv").read_text() + f"{tmp_path}/bad.png,odd\n")
    data = [f"--data.{name}={tmp_path}/{name}.csv" for name in ("train", "test")]
    changes = ["--data.images", str(folder), "--eval_limit", "9", "--eval_neighbors", "40"]
    found = trained(folder, tmp_path / "run", *data, *changes)
    assert found["skipped"] > 0 and len(found["losses"]) == 8 and found["neighbors"]


def taught(*teachers: dict) -> list[str]:
    return ["--teachers", json.dumps(teachers)]


WRONG = [
    (taught(), "there is no teacher: give teachers"),
    (
        taught({"source": "a/x", "name": "x"}, {"source": "b/x", "name": "x"}),
        "several teachers are called x: give each a name of its own",
    ),
    (taught({"source": "FOLDER/wide", "weight": 0}), "it must be positive, or leave it out"),
    (taught({"source": "FOLDER/wide + FOLDER/wide"}), "is several towers: give each of them its own entry in teachers"),
    (taught({"source": "FOLDER/nothing"}), "there is no folder"),
    (taught({"source": "FOLDER/wide", "tap_layer": 7}), "outside this encoder of 2 blocks"),
    (["--student.fields", "{}"], "expected one student: give student.source, or student.fields"),
    (["--student.fields", json.dumps(STUDENT | {"pre_norm": True})], "this layout cannot express the architecture"),
    (["--student.fields", json.dumps(STUDENT | {"width": 3})], "width, which is no field of student.fields"),
    (["--statistics_steps", "0"], "statistics_steps is 0: it must be at least 1"),
    (["--batch_size", "40"], "batch_size 40 is larger than the data set of 16 records"),
]


@pytest.mark.parametrize(("change", "says"), WRONG)
def test_wrong_settings_are_one_sentence(folder, tmp_path, capsys, change, says):
    change = [text.replace("FOLDER", str(folder)) for text in change]
    with pytest.raises(SystemExit, match="2"):
        run_cli("recipes.distill", lambda: trained(folder, tmp_path / "run", *change))
    told = capsys.readouterr().err.strip()
    assert says in told and "\n" not in told
    assert not (tmp_path / "run" / "model").exists()


def test_a_teacher_without_summary_has_no_head_for_it():
    heads = TeacherHeads(32, TeacherFeatures("one", 24, 0))
    assert heads.summary is None and list(heads.each()) == ["patches"]
