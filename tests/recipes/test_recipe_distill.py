"""Distillation of features: its loss and its statistics, and a student that gives its teachers' features."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from support.models import make_image
from support.recipe_records.distill import RECIPE, STUDENT
from transformers import AutoModel

import vlm_vision as vv
from vlm_vision.data.images.batches import ImageBatch
from vlm_vision.data.images.views import Plain
from vlm_vision.new_models import new_encoder
from vlm_vision.preprocess.images import load_image
from vlm_vision.train.tasks.distill import (
    AS_DRAWN,
    StudentWithLoss,
    center_crop_preprocess,
    standardize,
    teacher_features,
    teacher_outputs,
)
from vlm_vision.train.tasks.distill_student import (
    AgglomerativeStudent,
    TeacherFeatures,
    TeacherHeads,
    on_grid,
    summary_vector,
)
from vlm_vision.train.tasks.supervised import renormalize

train = RECIPE.train


@pytest.fixture(scope="module")
def folder(bench) -> Path:
    return bench("distill").folder


@pytest.fixture(scope="module")
def alone(bench) -> tuple[dict, Path]:
    """Metrics and folder of a run."""
    return bench("distill").alone()


def spoken(teacher: vv.Encoder, name: str = "one") -> tuple[AgglomerativeStudent, torch.Tensor]:
    """A student that is the teacher, with heads for it, standardized by the pixels that come along."""
    student = AgglomerativeStudent(teacher, [teacher_features(name, teacher)])
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
    near = heads.cosine_sums(told, told)
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
    best = heads.cosine_sums(student.encode(encoder.preprocess([make_image(i) for i in range(3)])), told)
    best = best["eval_constant/one/patches"].norm().item() / 3
    tokens = told.patch_tokens.flatten(0, 1)
    found = [F.cosine_similarity(tokens, way, dim=-1).mean() for way in (tokens.mean(0), *torch.randn(9, 32))]
    direction = F.normalize(tokens, dim=-1).mean(0)
    assert max(found).item() <= best + 1e-6
    assert F.cosine_similarity(tokens, direction, dim=-1).mean().item() == pytest.approx(best, abs=1e-5)


@torch.no_grad()
def test_the_loss_of_several_teachers_is_the_weighted_sum_of_each_alone(folder):
    towers = [vv.load(folder / "wide"), vv.load(folder / "map")]
    student = AgglomerativeStudent(
        new_encoder(STUDENT), [teacher_features(str(i), tower) for i, tower in enumerate(towers)]
    )
    pixels, told = torch.randn(3, 3, 16, 16), teacher_outputs(towers, torch.rand(3, 3, 24, 24) * 255)
    both = StudentWithLoss(student, [0.5, 3.0])(pixels, told)
    seen = student.encode(pixels)
    first, second = (heads.loss(seen, one) for heads, one in zip(student.each(), told, strict=True))
    assert both.item() == pytest.approx((0.5 * first + 3 * second).item(), rel=1e-6)
    assert first != second


@torch.no_grad()
def test_the_loss_of_a_batch_is_the_mean_of_its_images(folder):
    tower = vv.load(folder / "wide")
    student = AgglomerativeStudent(new_encoder(STUDENT), [teacher_features("one", tower)])
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
        (out,), space = teacher_outputs([tower], torch.zeros(1, 3, 24, 24)), teacher_features(name, tower)
        assert space.width == out.patch_tokens.shape[-1]
        assert bool(space.summary) == (out.pooled is not None or out.cls_token is not None)
        assert not space.summary or space.summary == summary_vector(out).shape[-1]


def test_the_student_comes_nearer_than_any_constant(folder, tmp_path):
    wide = ["--teachers", json.dumps([{"source": f"{folder}/wide"}]), "--data.test", f"{folder}/train.csv"]
    changes = [*wide, "--crop_scale", "[0.9, 1.0]", "--flip", "0", "--eval_neighbors", "12"]
    found = train(folder, tmp_path, *changes, "--steps", "150", "--batch_size", "16", "--micro_batch_size", "16")
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
    metrics, out = alone
    student = AgglomerativeStudent.load(out / "model")
    tower = vv.load(folder / "map", image_size=20)
    cosines = []
    for i in range(0, 16, 3):
        views = Plain(center_crop_preprocess(24))(load_image(folder / f"{i}.png"), 0)[None]
        (told,), said = teacher_outputs([tower], views), student(renormalize(student.encoder, views, AS_DRAWN))
        pooling = said["pooling"]
        assert pooling.grid == (4, 4) and pooling.patch_tokens.shape == (1, 16, 40)
        ours = on_grid(pooling.patch_tokens, pooling.grid, told.grid)
        cosines.append(F.cosine_similarity(ours, told.patch_tokens, dim=-1).mean().item())
    assert sum(cosines) / len(cosines) == pytest.approx(metrics["eval_cosine/pooling/patches"], rel=1e-4)


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
    with pytest.raises(ValueError, match="do not fit its heads.json: save the student again"):
        AgglomerativeStudent.load(tmp_path / "student")


@torch.no_grad()
def test_transformers_loads_the_student(alone):
    out = alone[1]
    theirs, info = AutoModel.from_pretrained(out / "model", output_loading_info=True, add_pooling_layer=False)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    ours, pixels = vv.load(out / "model"), torch.randn(2, 3, 16, 16)
    tokens = theirs.eval()(pixels).last_hidden_state
    torch.testing.assert_close(ours(pixels).patch_tokens, tokens[:, 1:], rtol=1e-4, atol=1e-5)


def test_a_run_starts_from_a_saved_student(folder, alone, tmp_path):
    start = ["--student.source", f"{alone[1]}/model", "--student.fields", "{}", "--steps", "1", "--lr", "0"]
    train(folder, tmp_path, *start, "--weight_decay", "0")
    ours, theirs = (vv.load(path / "model").state_dict() for path in (tmp_path, alone[1]))
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())


def test_a_teacher_without_summary_has_no_head_for_it():
    heads = TeacherHeads(32, TeacherFeatures("one", 24, 0))
    assert heads.summary is None and list(heads.each()) == ["patches"]
