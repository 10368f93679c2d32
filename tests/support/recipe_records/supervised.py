"""Supervised training on sixteen images of two colors, of which the left one is the class."""

import json
from pathlib import Path

from torch import Tensor

import vlm_vision as vv

from .recipe import COLORS, Laws, Recipe, Shared, Stopped, write_halves, write_table

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
PLAIN = ("--crop_scale", "[1.0, 1.0]", "--randaugment.number", "0", "--erase.probability", "0")


def write(folder: Path) -> None:
    """The images and their classes; labels that say nothing, labels of a fifth class, and no labels."""
    rows = write_halves(folder, 20, 20, 12)
    write_table(folder / "classes.csv", rows, "image", "label")
    useless = [row | {"label": list(COLORS)[i % 4]} for i, row in enumerate(rows)]
    write_table(folder / "useless.csv", useless, "image", "label")
    write_table(folder / "five.csv", [*rows, rows[0] | {"label": "violet"}], "image", "label")
    write_table(folder / "unlabelled.csv", rows[:1], "image")


RECIPE = Recipe("supervised", write, TINY, ("--data.train", "FOLDER/classes.csv", "--data.test", "FOLDER/classes.csv"))


def train_teacher(folder: Path) -> None:
    """A classifier that has learned the left color, in `teacher/model`."""
    metrics = RECIPE.train(folder, "teacher", "--steps", "80", *PLAIN, "--flip", "0")
    assert metrics["test"]["last"]["top1"] == 1


def state(out: Path) -> dict[str, Tensor]:
    kept = {name: vv.load(out / name).state_dict() for name in ("model", "average")}
    return {f"{name}/{key}": value for name, tensors in kept.items() for key, value in tensors.items()}


def bad(folder: Path, new: Path) -> list[str]:
    (new / "bad.png").write_bytes(b"no image")
    rows = (folder / "classes.csv").read_text() + "red-red.png,\n" + f"{new}/bad.png,red\n"
    (new / "classes.csv").write_text(rows)
    both = [f"--data.{split}={new}/classes.csv" for split in ("train", "test")]
    return [*both, "--data.images", str(folder), "--batch_size", "9", "--micro_batch_size", "9"]


TWO, PARTS = ("--micro_batch_size", "2"), ("--micro_batch_size", "2", "--sharding", "fsdp2")
TEACHER = ("--teacher", "FOLDER/teacher/model", "--student.fields", json.dumps(DISTILLED))
LAWS = Laws(
    RECIPE,
    steps=12,
    state=state,
    first=train_teacher,
    figures=("test",),
    figures_count=2 * 4,
    figures_tolerance={"rel": 0, "abs": 0},
    shared={
        "copies": Shared(("--repeats", "2"), TWO),
        "parts": Shared(("--layer_decay", "0.7", "--eval_every", "5"), (*PARTS, "--checkpoint_every", "8"), resumes=8),
        "copies of a distilled one": Shared(TEACHER, TWO),
        "parts of a distilled one": Shared((*TEACHER, "--distill.kind", "soft"), PARTS),
    },
    half=((), (*PARTS, "--mixed_precision", "bf16")),
    half_tolerance={"rel": 0.02, "abs": 0.02},
    cut={"repeated": (("--repeats", "3"), (4, 1))},
    stopped={
        "mixed, with drop path": Stopped(
            ("--mix.probability", "1", "--micro_batch_size", "4", "--student.fields")
            + (json.dumps(FIELDS | {"drop_path": 0.2}),),
            every=4,
            at=6,
        )
    },
    bad=bad,
    bad_metrics=lambda metrics: metrics["test"]["last"]["skipped"] == 2 + 1,
    wrong=[
        (["--student.fields", "{}"], "there is no student: set student.source, or student.fields"),
        (["--student.fields", '{"width": 3}'], "which is not a field of student.fields; did you mean 'head_width'?"),
        (["--student.crop_ratio", "2"], "student.crop_ratio is 2.0: expected a part above 0"),
        (
            ["--student.source", "FOLDER/teacher/model", "--student.fields", '{"num_registers": 1}'],
            "of a loaded encoder need new weights such as registers",
        ),
        (
            ["--student.fields", json.dumps(FIELDS | {"pool": "mean"})],
            "transformers cannot express this architecture",
        ),
        (
            ["--teacher", "FOLDER/teacher/model", "--data.train", "FOLDER/five.csv"],
            "has 4 classes: expected one classifier for the 5 classes",
        ),
        (["--ema", "1"], "ema is 1.0: expected at least 0 and below 1"),
        (["--distill.alpha", "2"], "expected alpha between 0 and 1"),
        (["--mix.mixup", "-1"], "expected alphas of at least 0"),
        (["--repeats", "0"], "repeats is 0: it must be at least 1"),
        (["--layer_decay", "2"], "decay is 2.0, expected a factor"),
        (["--batch_size", "40", "--micro_batch_size", "40"], "batch_size 40 is larger than the data set of 16 records"),
        (
            ["--data.train", "FOLDER/unlabelled.csv"],
            "has no labels: expected class folders, a table with a column label",
        ),
    ],
)
