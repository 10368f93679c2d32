"""Distillation of features on sixteen images of noise, from a teacher with CLS on a finer grid and one that pools without."""

import json
from pathlib import Path

import torch
from torch import Tensor

from support.models import make_image
from vlm_vision.new_models import new_encoder
from vlm_vision.train.tasks.distill_student import AgglomerativeStudent

from .recipe import Laws, Recipe, Shared, Stopped, write_table

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


def write(folder: Path) -> None:
    rows = []
    for i in range(16):
        make_image(i, 24, 20 + i).save(folder / f"{i}.png")
        rows.append({"image": f"{i}.png", "label": ["even", "odd"][i % 2]})
    write_table(folder / "train.csv", rows, "image", "label")
    write_table(folder / "test.csv", [row | {"label": "odd"} for row in rows[::3]], "image", "label")
    torch.manual_seed(7)
    shape = dict(depth=2, num_heads=2, mlp_dim=48, patch_size=4)
    new_encoder(dict(image_size=24, embed_dim=24, position_prefix=1, **shape)).save_pretrained(folder / "wide")
    plain = dict(image_size=16, embed_dim=40, class_token=False, pool="map", **shape)
    siglip = new_encoder(plain | {"num_heads": 4})
    siglip.origin = type(siglip.origin)("siglip_vision_model", "transformers")
    siglip.save_pretrained(folder / "map")


RECIPE = Recipe("distill", write, TINY, ("--data.train", "FOLDER/train.csv", "--data.test", "FOLDER/test.csv"))


def state(out: Path) -> dict[str, Tensor]:
    return AgglomerativeStudent.load(out / "model").state_dict()


def bad(folder: Path, new: Path) -> list[str]:
    (new / "bad.png").write_bytes(b"no image")
    for name in ("train", "test"):
        (new / f"{name}.csv").write_text((folder / "train.csv").read_text() + f"{new}/bad.png,odd\n")
    data = [f"--data.{name}={new}/{name}.csv" for name in ("train", "test")]
    return [*data, "--data.images", str(folder), "--eval_limit", "9", "--eval_neighbors", "40"]


def taught(*teachers: dict) -> list[str]:
    return ["--teachers", json.dumps(teachers)]


def fields(**changes) -> list[str]:
    return ["--student.fields", json.dumps(STUDENT | changes)]


PARTS = ("--micro_batch_size", "4", "--sharding", "fsdp2")
OFTEN = ("--gradient_checkpointing", "true", "--eval_every", "3", "--checkpoint_every", "3")
LAWS = Laws(
    RECIPE,
    steps=8,
    state=state,
    figures=("eval_",),
    figures_count=3 * 4,
    figures_tolerance={"rel": 2e-3, "abs": 2e-4},
    shared={
        "copies": Shared((), ("--micro_batch_size", "2")),
        # The model and the student's two blocks: teachers stay out of it.
        "parts": Shared((), (*PARTS, *OFTEN), resumes=6, sharded_modules=1 + 2),
    },
    half=((), (*PARTS, "--mixed_precision", "bf16")),
    cut={"whole": ((), (4, 1))},
    stopped={"whole": Stopped(("--micro_batch_size", "4"), every=3, at=5, then=("--eval_every", "2"))},
    bad=bad,
    bad_metrics=lambda metrics: metrics["neighbors"],
    wrong=[
        (taught(), "there is no teacher: set teachers"),
        (
            taught({"source": "a/x", "name": "x"}, {"source": "b/x", "name": "x"}),
            "several teachers are called x: give each a different name",
        ),
        (taught({"source": "FOLDER/wide", "weight": 0}), "it must be positive; remove the teacher"),
        (
            taught({"source": "FOLDER/wide + FOLDER/wide"}),
            "has several towers: write an entry in teachers for each of them",
        ),
        (taught({"source": "FOLDER/nothing"}), "there is no folder"),
        (taught({"source": "FOLDER/wide", "tap_layer": 7}), "outside this encoder of 2 blocks"),
        (["--student.fields", "{}"], "expected one student: set student.source, or student.fields"),
        (fields(pre_norm=True), "this layout cannot express the architecture"),
        (fields(width=3), "width, which is not a field of student.fields"),
        (["--statistics_steps", "0"], "statistics_steps is 0: it must be at least 1"),
        (["--batch_size", "40"], "batch_size 40 is larger than the data set of 16 records"),
    ],
)
