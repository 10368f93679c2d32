"""Supervised training: its average, distillation from a teacher, fine-tuning, and what it saves for transformers."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from support.recipe_records.recipe import COLORS
from support.recipe_records.supervised import DISTILLED, FIELDS, PLAIN, RECIPE
from transformers import AutoModelForImageClassification, DeiTForImageClassificationWithTeacher

import vlm_vision as vv
from vlm_vision.data.images.views import normalize_views
from vlm_vision.new_models import new_encoder
from vlm_vision.preprocess.spec import IMAGENET
from vlm_vision.train.tasks.supervised import ClassifierWithLoss, DistillLossSettings, classifier, renormalize

train = RECIPE.train


@pytest.fixture(scope="module")
def folder(bench) -> Path:
    return bench("supervised").folder


@pytest.fixture(scope="module")
def teacher(folder) -> Path:
    """A classifier that has learned the left color."""
    return folder / "teacher" / "model"


def test_the_average_is_that_of_the_weights_after_each_step(folder, tmp_path):
    train(folder, tmp_path / "none", "--steps", "1", "--ema", "0.5", "--base_lr", "0")
    train(folder, tmp_path / "one", "--steps", "1", "--ema", "0.5")
    start, last = (vv.load(tmp_path / name / "model").state_dict() for name in ("none", "one"))
    average = vv.load(tmp_path / "one" / "average").state_dict()
    for name, value in average.items():
        torch.testing.assert_close(value, (start[name] + last[name]) / 2)
    assert any(not torch.equal(start[name], last[name]) for name in start)


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_a_student_learns_its_teacher_where_labels_tell_nothing(folder, teacher, tmp_path, kind):
    useless = ["--data.train", f"{folder}/useless.csv", "--teacher", str(teacher), "--distill.kind", kind]
    changes = ["--distill.alpha", "1", "--steps", "80", "--student.fields", json.dumps(DISTILLED), "--flip", "0"]
    train(folder, tmp_path / "run", *useless, *changes, *PLAIN)
    student, right = vv.load(tmp_path / "run" / "model"), vv.load(teacher)
    images = sorted(folder.glob("*.png"))
    with torch.no_grad():
        seen = student(student.preprocess(images))
        told = right(right.preprocess(images)).logits.argmax(dim=1)
        follows = student.model.head_dist(seen.register_tokens[:, 0]).argmax(dim=1)
    assert torch.equal(follows, told) and len(told.unique()) == 4


def test_a_distilled_student_learns_labels_and_teacher_each_by_its_own_head():
    model = ClassifierWithLoss(classifier(new_encoder(DISTILLED), 4, {}), DistillLossSettings(alpha=0.25)).eval()
    pixels, targets, told = torch.randn(5, 3, 16, 16), torch.rand(5, 4).softmax(dim=1), torch.randn(5, 4)
    out, vit = model.encoder(pixels), model.encoder.model
    labels = -(targets * vit.head(out.cls_token).log_softmax(dim=1)).sum(dim=1).mean()
    follows = vit.head_dist(out.register_tokens[:, 0]).log_softmax(dim=1)
    follow = -follows[torch.arange(5), told.argmax(dim=1)].mean()
    torch.testing.assert_close(model(pixels, targets, told), 0.75 * labels + 0.25 * follow)
    averaged = -(targets * out.logits.log_softmax(dim=1)).sum(dim=1).mean()
    torch.testing.assert_close(model(pixels, targets), averaged)


def test_a_teacher_sees_what_its_own_preprocessing_makes(folder, teacher):
    one, other = vv.load(teacher).preprocess, new_encoder(FIELDS)
    assert one.mean == IMAGENET[0] and other.preprocess.mean != one.mean
    views = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    found = renormalize(other, normalize_views(views, one), one)
    torch.testing.assert_close(found, normalize_views(views, other.preprocess), rtol=1e-5, atol=1e-5)
    assert renormalize(new_encoder(FIELDS | {"image_size": 24}), found, one).shape == (2, 3, 24, 24)


@pytest.mark.parametrize(
    ("fields", "reader"),
    [(FIELDS, AutoModelForImageClassification), (DISTILLED, DeiTForImageClassificationWithTeacher)],
    ids=["vit", "deit"],
)
def test_transformers_reads_the_result(folder, tmp_path, fields, reader):
    train(folder, tmp_path / "run", "--student.fields", json.dumps(fields), "--steps", "3")
    for kept in ("model", "average"):
        ours, pixels = vv.load(tmp_path / "run" / kept), torch.randn(3, 3, 16, 16)
        theirs, info = reader.from_pretrained(tmp_path / "run" / kept, output_loading_info=True)
        assert not any(info[wrong] for wrong in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        torch.testing.assert_close(theirs(pixels).logits, ours(pixels).logits)
        assert theirs.config.id2label == dict(enumerate(sorted(COLORS)))
        assert theirs.config.label2id["red"] == sorted(COLORS).index("red")


def test_a_loaded_encoder_is_tuned_and_its_lower_layers_move_less(folder, teacher, tmp_path):
    changes = ["--student.source", str(teacher), "--steps", "2", "--layer_decay", "0.01", *PLAIN, "--base_lr", "0.001"]
    train(folder, tmp_path / "run", *changes, "--student.fields", "{}")
    before, after = vv.load(teacher).state_dict(), vv.load(tmp_path / "run" / "model").state_dict()
    moved = {name: (after[name] - value).abs().max().item() for name, value in before.items()}
    assert moved["model.head.weight"] > 20 * moved["model.blocks.1.attn.qkv.weight"] > 0
    assert moved["model.blocks.1.attn.qkv.weight"] > 5 * moved["model.patch_embed.weight"]


def test_a_head_for_other_classes_is_new_and_the_rest_is_kept(teacher):
    loaded = vv.load(teacher)
    tuned = classifier(loaded, 7, {"drop_path": 0.1})
    assert tuned.config.num_classes == 7 and tuned.config.drop_path == 0.1
    kept = loaded.state_dict()
    assert {name for name, value in tuned.state_dict().items() if not torch.equal(kept[name][:1], value[:1])} == {
        "model.head.weight",
        "model.head.bias",
    }


FAMILIES = ["ViTMAE", "ViT", "DeiT", "Dinov2", "SiglipVision"]


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_an_encoder_of_any_family_becomes_a_classifier_that_transformers_reads(tmp_path, name):
    sizes = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=8)
    sizes |= {"mlp_ratio": 2} if name == "Dinov2" else {"intermediate_size": 64}
    config = getattr(transformers, f"{name}Config")(**sizes)
    getattr(transformers, f"{name}Model")(config).save_pretrained(tmp_path / "tower")
    ours = classifier(vv.load(tmp_path / "tower"), 5, {"drop_path": 0.1}).eval()
    ours.save_pretrained(tmp_path / "saved")
    theirs, info = AutoModelForImageClassification.from_pretrained(tmp_path / "saved", output_loading_info=True)
    assert not any(info[wrong] for wrong in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    pixels = torch.randn(3, 3, 16, 16)
    torch.testing.assert_close(theirs(pixels).logits, ours(pixels).logits)
