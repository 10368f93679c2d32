"""Self-distillation on sixteen images of two colors."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

import vlm_vision as vv
from vlm_vision.data.images.batches import ImageDataset, collate
from vlm_vision.data.images.samples import read_samples
from vlm_vision.train.tasks.self_distill import SelfDistillation, tensors

from .recipe import Laws, Recipe, Shared, Stopped, write_halves, write_table

FIELDS = dict(image_size=16, patch_size=4, embed_dim=32, depth=2, num_heads=2, mlp_dim=128, layer_scale=1.0)
TINY = f"""
student: {{fields: {json.dumps(FIELDS)}, crop_ratio: 1.0}}
crops: {{small: 2, small_size: 8}}
heads: {{prototypes: 24, hidden_dim: 32, bottleneck_dim: 16}}
temperature_steps: 4
momentum: [0.8, 1.0]
steps: 8
batch_size: 8
micro_batch_size: 8
base_lr: 0.05
warmup_steps: 2
frozen_steps: 2
eval_neighbors: 12
log_every: 3
tracker: none
"""
OWN = ("--patch_heads", json.dumps({"prototypes": 20, "hidden_dim": 16, "bottleneck_dim": 8}))
CENTER = ("--teacher", "center", *OWN)
DINO = ("--weights", '{"dino": 1.0, "ibot": 0.0, "koleo": 0.0}')
LARGER = json.dumps(FIELDS | {"image_size": 24})


def write(folder: Path) -> None:
    write_table(folder / "train.csv", write_halves(folder, 20, 24, 14), "image", "label")


RECIPE = Recipe("self_distill", write, TINY, ("--data.train", "FOLDER/train.csv", "--data.test", "FOLDER/train.csv"))
FINISHED = {"sinkhorn": (), "center": CENTER}
"""Runs by how the teacher's logits are sharpened; others start from them, in the folders `done NAME`."""


def state(out: Path) -> dict[str, Tensor]:
    networks = {f"networks/{name}": value for name, value in load_file(out / "networks.safetensors").items()}
    assert not any("earlier" in name for name in networks)  # which comes from gram.teacher
    return vv.load(out / "model").state_dict() | networks


def finish(folder: Path) -> None:
    for name, changes in FINISHED.items():
        RECIPE.train(folder, f"done {name}", *changes)


def model_and_batch(folder: Path, *changes: str) -> tuple[SelfDistillation, dict]:
    """A model whose teacher differs from the student, and a batch of all images."""
    config = RECIPE.module.parse(RECIPE.arguments(folder, "none", *changes))
    torch.manual_seed(0)
    model = RECIPE.module.model_of(config)
    for weight in model.student.parameters():
        weight.data += 0.05 * torch.randn_like(weight)
    images = ImageDataset(read_samples(config.data.train), RECIPE.module.views_of(config, model.student.encoder))
    drawn = collate([images[row] for row in range(16)])
    return model, tensors(drawn, model.student.encoder, 0.05, config.masks)


def bad(folder: Path, new: Path) -> list[str]:
    (new / "bad.png").write_bytes(b"no image")
    (new / "train.csv").write_text((folder / "train.csv").read_text() + f"{new}/bad.png,red\n")
    return ["--data.train", f"{new}/train.csv", "--data.images", str(folder)]


def changed(**fields) -> list[str]:
    return ["--student.fields", json.dumps(FIELDS | fields)]


START = ("--start", "FOLDER/done sinkhorn")
GRAM = ("--weights.gram", "2", "--gram.teacher", "FOLDER/done sinkhorn/model")
PHASE = (*GRAM, *START, "--gram.image_size", "32", "--crops.pack_crops", "true")
HALF, PARTS = ("--micro_batch_size", "4"), ("--micro_batch_size", "4", "--sharding", "fsdp2")
STOPPED = ("--micro_batch_size", "4", "--frozen_steps", "5")
LAWS = Laws(
    RECIPE,
    steps=8,
    state=state,
    first=finish,
    shared={
        "copies": Shared((), HALF),
        "parts": Shared((), (*PARTS, "--checkpoint_every", "3", "--eval_every", "3"), resumes=6),
        "parts by center": Shared(
            CENTER, (*PARTS, "--gradient_checkpointing", "true", "--checkpoint_every", "3"), resumes=6
        ),
        "copies in a later phase": Shared((*PHASE, "--gram.refresh", "3", "--lr_end", "0.5"), HALF),
        "parts in a later phase": Shared(
            (*PHASE, "--gram.refresh", "3", "--lr_end", "0.5"), (*PARTS, "--checkpoint_every", "4"), resumes=4
        ),
    },
    half=((), (*PARTS, "--mixed_precision", "bf16", "--eval_every", "4")),
    half_tolerance={"rel": 0.03, "abs": 0.03},
    stopped={
        "sinkhorn": Stopped(STOPPED, every=3, at=5, then=("--eval_every", "2")),
        "center": Stopped((*CENTER, *STOPPED), every=3, at=5, then=("--eval_every", "2")),
        "in a later phase": Stopped((*PHASE, "--gram.refresh", "2", "--gram.refreshes", "1"), every=3, at=5),
    },
    bad=bad,
    wrong=[
        (["--student.fields", "{}"], "there is no student: set student.fields"),
        (changed(width=3), "which is not a field of student.fields; did you mean 'head_width'?"),
        (changed(class_token=False, position_prefix=0, pool="mean"), "turn off the class token or the mask token"),
        (changed(pre_norm=True), "this layout cannot express the architecture"),
        (changed(image_size=18), "crops of 18 pixels are not a whole number of patches of 4: choose 16 or 20"),
        (["--crops.small_size", "6"], "crops of 6 pixels are not a whole number of patches of 4: choose 4 or 8"),
        (["--crops.small", "-1"], "crops.small is -1: expected at least 0"),
        (["--weights.ibot", "-1"], "expected weights of at least 0"),
        (["--masks.share", "2"], "expected shares from 0 to 1"),
        (["--heads.prototypes", "0"], "expected whole numbers of at least 1"),
        (["--temperature", "[0, 0.1]"], "expected two positive numbers"),
        (["--momentum", "[0.9, 2]"], "expected two numbers from 0 to 1"),
        (["--weights.gram", "1"], "weights.gram and gram.teacher belong together"),
        (["--layer_decay", "2"], "decay is 2.0, expected a factor"),
        (["--batch_size", "40", "--micro_batch_size", "40"], "batch_size 40 is larger than the data set of 16 records"),
        (["--start", "FOLDER"], "has no networks.safetensors: pass the folder of a finished run"),
        ([*START, "--teacher", "center"], "the run lacks centers.crops.center"),
        ([*START, *OWN], "the run lacks student.patch_head"),
        ([*START, "--heads.prototypes", "20"], "student.head.last_layer"),
        ([*START, *changed(depth=1)], "only the run has student.encoder"),
        ([*START, *changed(patch_size=8)], "is (32, 3, 4, 4) there"),
        ([*GRAM, "--gram.refresh", "-1"], "refreshes of at least 0"),
        (["--gram.refresh", "2"], "gram has settings but no teacher"),
        (["--lr_end", "2"], "lr_end is 2.0: expected a part from 0 to 1"),
        (
            [*GRAM, "--gram.refresh", "2", "--student.fields", LARGER, "--gram.image_size", "16"],
            "differ at position.table: gram.refresh needs the student's architecture",
        ),
        (
            [*GRAM, "--student.fields", LARGER],
            "has (4, 4) patches and the student (6, 6): expected equal grids; set gram.image_size",
        ),
        ([*GRAM, "--gram.image_size", "18"], "crops of 18 pixels"),
    ],
)
