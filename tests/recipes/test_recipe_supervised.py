"""Supervised training: one process and several, any cut of a batch, stopped and not, after a teacher, for transformers."""

import csv
import json
from pathlib import Path

import pytest
import torch
import transformers
from PIL import Image
from support.two_processes import launch
from transformers import AutoModelForImageClassification, DeiTForImageClassificationWithTeacher

import vlm_vision as vv
from recipes import supervised
from vlm_vision.data.images.views import normalize_views
from vlm_vision.new_models import new_encoder
from vlm_vision.preprocess.spec import IMAGENET
from vlm_vision.train.command import run_cli
from vlm_vision.train.loop.step import Step
from vlm_vision.train.tasks.supervised import ClassifierWithLoss, DistillLossSettings, classifier, renormalize

COLORS = {"red": (220, 30, 30), "green": (20, 180, 40), "blue": (30, 40, 230), "yellow": (240, 220, 20)}
FIELDS = dict(image_size=16, patch_size=8, embed_dim=32, depth=2, num_heads=2, mlp_dim=64, position_prefix=1)
DISTILLED = FIELDS | dict(position_prefix=2, num_registers=1, pool="cls_dist", class_input="distilled")
TINY = f"""
student: {{fields: {json.dumps(FIELDS)}, crop_ratio: 1.0}}
crop_scale: [0.5, 1.0]
mix: {{probability: 0}}
steps: 12
batch_size: 8
micro_batch_size: 8
base_lr: 0.1
betas: [0.9, 0.99]
warmup_steps: 2
ema: 0.7
tracker: none
"""
PLAIN = ["--crop_scale", "[1.0, 1.0]", "--randaugment.number", "0", "--erase.probability", "0"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Sixteen images of two colors, whose left one is the class; and the same where labels tell nothing."""
    folder = tmp_path_factory.mktemp("classes")
    rows = []
    for left, value in COLORS.items():
        for right, other in COLORS.items():
            image = Image.new("RGB", (20, 20), value)
            image.paste(other, (12, 0, 20, 20))
            image.save(folder / f"{left}-{right}.png")
            rows.append({"picture": f"{left}-{right}.png", "label": left})
    write(folder / "classes.csv", rows)
    write(folder / "useless.csv", [row | {"label": list(COLORS)[i % 4]} for i, row in enumerate(rows)])
    (folder / "tiny.yaml").write_text(TINY)
    return folder


def write(file: Path, rows: list[dict]) -> None:
    with file.open("w", newline="") as lines:
        writer = csv.DictWriter(lines, ["picture", "label"])
        writer.writeheader()
        writer.writerows(rows)


def arguments(folder: Path, out: Path | str, *changes: str) -> list[str]:
    data = ["--data.train", f"{folder}/classes.csv", "--data.test", f"{folder}/classes.csv"]
    return ["--config", f"{folder}/tiny.yaml", *data, "--out", str(folder / out), *changes]


def trained(folder: Path, out: Path | str, *changes: str) -> dict:
    return supervised.main(supervised.parse(arguments(folder, out, *changes)))


@pytest.fixture(scope="module")
def teacher(folder) -> Path:
    """A classifier that has learned the left color."""
    found = trained(folder, "teacher", "--steps", "80", *PLAIN, "--flip", "0")
    assert found["test"]["last"]["top1"] == 1
    return folder / "teacher" / "model"


TEACHER = ["--teacher", "TEACHER", "--student.fields", json.dumps(DISTILLED)]
SHARED = {
    "copies": ["--repeats", "2"],
    "parts": ["--sharding", "fsdp2", "--layer_decay", "0.7", "--eval_every", "5", "--checkpoint_every", "8"],
    "copies of a distilled one": TEACHER,
    "parts of a distilled one": [*TEACHER, "--sharding", "fsdp2", "--distill.kind", "soft"],
}
"""What two processes do, each with half of every batch, in micro-batches of two."""


def shared(name: str, teacher: Path) -> list[str]:
    return [str(teacher) if option == "TEACHER" else option for option in SHARED[name]]


@pytest.fixture(scope="module")
def together(folder, teacher) -> dict[str, dict]:
    runs = {
        name: arguments(folder, f"two {name}", "--micro_batch_size", "2", *shared(name, teacher)) for name in SHARED
    }
    runs["parts, once more"] = runs["parts"]  # goes on from its last checkpoint
    half = ["--mixed_precision", "bf16", "--sharding", "fsdp2", "--micro_batch_size", "2"]
    runs["half parts"] = arguments(folder, "two half parts", *half)
    done = launch(folder, "two", [{"recipe": "supervised", "arguments": given} for given in runs.values()])
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(zip(runs, json.loads((folder / "two.out.json").read_text()), strict=True))


def test_parts_in_half_precision_stay_near(folder, together):
    one = trained(folder, "one whole")
    torch.testing.assert_close(together["half parts"]["losses"], one["losses"], rtol=0.02, atol=0.02)


@pytest.mark.parametrize("name", SHARED)
def test_two_processes_equal_one(folder, teacher, together, name):
    alone = [option for option in shared(name, teacher) if option not in ("--sharding", "fsdp2")]
    one = trained(folder, f"one {name}", *alone)
    assert together[name]["processes"] == 2 and one["processes"] == 1
    torch.testing.assert_close(together[name]["losses"], one["losses"], rtol=1e-4, atol=1e-5)
    told = json.loads((folder / f"two {name}" / "metrics.json").read_text())
    assert told["test"] == one["test"]
    for kept in ("model", "average"):
        ours, theirs = (vv.load(folder / f"{kind} {name}" / kept).state_dict() for kind in ("two", "one"))
        for key, value in theirs.items():
            torch.testing.assert_close(
                ours[key], value, rtol=1e-2, atol=2e-3, msg=lambda text, key=key: f"{key}: {text}"
            )


def test_a_run_in_parts_goes_on_as_if_it_was_not_stopped(together):
    """Its model and average, written again, are those that the test above compares."""
    first, again = together["parts"], together["parts, once more"]
    assert (first["first_step"], again["first_step"]) == (0, 8) and again["losses"] == first["losses"][8:]


def test_losses_do_not_depend_on_the_micro_batch(folder, tmp_path):
    whole, *cut = [
        trained(folder, tmp_path / size, "--micro_batch_size", size, "--repeats", "3")["losses"] for size in "841"
    ]
    for losses in cut:
        torch.testing.assert_close(losses, whole, rtol=1e-4, atol=1e-5)


def test_a_run_that_was_stopped_goes_on_as_if_it_was_not(folder, tmp_path, monkeypatch):
    changes = ["--checkpoint_every", "4", "--mix.probability", "1", "--micro_batch_size", "4", "--student.fields"]
    changes += [json.dumps(FIELDS | {"drop_path": 0.2})]
    whole = trained(folder, tmp_path / "whole", *changes)
    taken = Step.__call__

    def stopped(self, index, micro_batches):
        if index == 6:
            raise KeyboardInterrupt
        return taken(self, index, micro_batches)

    monkeypatch.setattr(Step, "__call__", stopped)
    with pytest.raises(KeyboardInterrupt):
        trained(folder, tmp_path / "stopped", *changes)
    monkeypatch.undo()
    rest = trained(folder, tmp_path / "stopped", *changes)
    assert rest["first_step"] == 4 and rest["losses"] == whole["losses"][4:]
    for kept in ("model", "average"):
        ours, theirs = (vv.load(tmp_path / run_ / kept).state_dict() for run_ in ("stopped", "whole"))
        assert all(torch.equal(ours[name], value) for name, value in theirs.items())


def test_the_average_is_that_of_the_weights_after_each_step(folder, tmp_path):
    trained(folder, tmp_path / "none", "--steps", "1", "--ema", "0.5", "--base_lr", "0")
    trained(folder, tmp_path / "one", "--steps", "1", "--ema", "0.5")
    start, last = (vv.load(tmp_path / name / "model").state_dict() for name in ("none", "one"))
    average = vv.load(tmp_path / "one" / "average").state_dict()
    for name, value in average.items():
        torch.testing.assert_close(value, (start[name] + last[name]) / 2)
    assert any(not torch.equal(start[name], last[name]) for name in start)


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_a_student_learns_its_teacher_where_labels_tell_nothing(folder, teacher, tmp_path, kind):
    useless = ["--data.train", f"{folder}/useless.csv", "--teacher", str(teacher), "--distill.kind", kind]
    changes = ["--distill.alpha", "1", "--steps", "80", "--student.fields", json.dumps(DISTILLED), "--flip", "0"]
    trained(folder, tmp_path / "run", *useless, *changes, *PLAIN)
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
    trained(folder, tmp_path / "run", "--student.fields", json.dumps(fields), "--steps", "3")
    for kept in ("model", "average"):
        ours, pixels = vv.load(tmp_path / "run" / kept), torch.randn(3, 3, 16, 16)
        theirs, info = reader.from_pretrained(tmp_path / "run" / kept, output_loading_info=True)
        assert not any(info[wrong] for wrong in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        torch.testing.assert_close(theirs(pixels).logits, ours(pixels).logits)
        assert theirs.config.id2label == dict(enumerate(sorted(COLORS)))
        assert theirs.config.label2id["red"] == sorted(COLORS).index("red")


def test_a_loaded_encoder_is_tuned_and_its_lower_layers_move_less(folder, teacher, tmp_path):
    changes = ["--student.source", str(teacher), "--steps", "2", "--layer_decay", "0.01", *PLAIN, "--base_lr", "0.001"]
    trained(folder, tmp_path / "run", *changes, "--student.fields", "{}")
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


def test_bad_samples_are_counted_and_the_run_goes_on(folder, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no image")
    rows = (folder / "classes.csv").read_text() + "red-red.png,\n" + f"{tmp_path}/bad.png,red\n"
    (tmp_path / "classes.csv").write_text(rows)
    both = [f"--data.{split}={tmp_path}/classes.csv" for split in ("train", "test")]
    found = trained(folder, tmp_path / "run", *both, "--data.images", str(folder), "--batch_size", "9",
                    "--micro_batch_size", "9")  # fmt: skip
    assert found["skipped"] > 0 and len(found["losses"]) == 12 and found["test"]["last"]["skipped"] == 2 + 1


WRONG = [
    (["--student.fields", "{}"], "there is no student: give student.source, or student.fields"),
    (["--student.fields", '{"width": 3}'], "--student.fields.width, which is no field of student.fields"),
    (["--student.crop_ratio", "2"], "student.crop_ratio is 2.0: expected a part above 0"),
    (["--student.source", "TEACHER"], "of a loaded encoder need other weights, as registers"),
    (["--student.fields", json.dumps(FIELDS | {"pool": "mean"})], "transformers cannot express this architecture"),
    (["--teacher", "TEACHER", "--data.train", "FIVE"], "has 4 classes: expected one classifier for the 5 classes"),
    (["--ema", "1"], "ema is 1.0: expected at least 0 and below 1"),
    (["--distill.alpha", "2"], "expected alpha between 0 and 1"),
    (["--mix.mixup", "-1"], "expected alphas of at least 0"),
    (["--repeats", "0"], "repeats is 0: it must be at least 1"),
    (["--layer_decay", "2"], "decay is 2.0, expected a factor"),
    (["--batch_size", "40", "--micro_batch_size", "40"], "batch_size 40 is larger than the data set of 16 records"),
    (["--data.train", "UNLABELLED"], "has no labels: expected class folders, a table with a column label"),
]


@pytest.mark.parametrize(("change", "says"), WRONG)
def test_wrong_settings_are_one_sentence(folder, teacher, tmp_path, capsys, change, says):
    (tmp_path / "five.csv").write_text((folder / "classes.csv").read_text() + "red-red.png,violet\n")
    (tmp_path / "unlabelled.csv").write_text("picture\nred-red.png\n")
    given = {"TEACHER": teacher, "FIVE": tmp_path / "five.csv", "UNLABELLED": tmp_path / "unlabelled.csv"}
    change = [str(given.get(option, option)) for option in change]
    if "--student.source" in change:
        change += ["--student.fields", json.dumps({"num_registers": 1})]
    capsys.readouterr()
    with pytest.raises(SystemExit, match="2"):
        run_cli("recipes.supervised", lambda: trained(folder, tmp_path / "run", *change))
    told = capsys.readouterr().err.strip()
    assert says in told and "\n" not in told
    assert not (tmp_path / "run" / "model").exists()
