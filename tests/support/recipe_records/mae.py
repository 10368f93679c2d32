"""Masked autoencoding of sixteen images of two colors."""

import json
from pathlib import Path

from torch import Tensor

from vlm_vision.mae import load_mae

from .recipe import Laws, Recipe, Shared, Stopped, write_halves, write_table

ENCODER = dict(image_size=16, patch_size=4, embed_dim=32, depth=2, num_heads=2, mlp_dim=64)
TINY = f"""
model:
  encoder: {json.dumps(ENCODER)}
  decoder: {{embed_dim: 16, depth: 1, num_heads: 2, mlp_dim: 32}}
  mean: [0.5, 0.4, 0.6]
  std: [0.2, 0.3, 0.25]
steps: 8
batch_size: 8
micro_batch_size: 8
blr: 0.1
warmup_steps: 2
tracker: none
"""


def write(folder: Path) -> None:
    rows = write_halves(folder, 16, 20, 10)
    write_table(folder / "train.csv", rows, "image", "label")
    write_table(folder / "test.csv", rows[1::3], "image")


RECIPE = Recipe("mae", write, TINY, ("--data.train", "FOLDER/train.csv", "--data.test", "FOLDER/test.csv"))


def state(out: Path) -> dict[str, Tensor]:
    return load_mae(out / "model").state_dict()


def bad(folder: Path, new: Path) -> list[str]:
    (new / "bad.png").write_bytes(b"no image")
    for name in ("train", "test"):
        (new / f"{name}.csv").write_text((folder / "train.csv").read_text() + f"{new}/bad.png,red\n")
    data = [f"--data.{name}={new}/{name}.csv" for name in ("train", "test")]
    return [*data, "--data.images", str(folder), "--eval_limit", "9"]


def changed(**fields) -> list[str]:
    return ["--model.encoder", json.dumps(ENCODER | fields)]


PARTS = ("--micro_batch_size", "4", "--sharding", "fsdp2")
OFTEN = ("--gradient_checkpointing", "true", "--eval_every", "3", "--checkpoint_every", "3")
LAWS = Laws(
    RECIPE,
    steps=8,
    state=state,
    figures=("eval_loss",),
    figures_count=2,
    shared={
        "copies": Shared((), ("--micro_batch_size", "2")),
        "parts": Shared((), (*PARTS, *OFTEN), resumes=6),
    },
    half=((), (*PARTS, "--mixed_precision", "bf16")),
    half_figures=("eval_loss",),
    cut={"whole": ((), (4, 1))},
    stopped={"whole": Stopped(("--micro_batch_size", "4"), every=3, at=5, then=("--eval_every", "2"))},
    bad=bad,
    bad_metrics=lambda metrics: metrics["neighbors"],
    wrong=[
        (
            changed(image_size=18),
            "crops of 18 pixels are not a whole number of patches of 4: choose image_size 16 or 20",
        ),
        (changed(pre_norm=True), "this layout cannot express the architecture"),
        (changed(width=3), "width, which is not a field of model.encoder"),
        (["--mask_ratio", "1.5"], "mask_ratio is 1.5: expected a share above 0 and below 1"),
        (["--model.encoder", "{}"], "there is nothing to train: set start or model.encoder"),
        (["--model.decoder.num_heads", "3"], "num_heads 3 does not divide embed_dim 16"),
        (["--crop_scale", "[0.5, 1.5]"], "scale of Crop is"),
        (["--batch_size", "40"], "batch_size 40 is larger than the data set of 16 records"),
        (["--micro_batch_size", "3"], "batch_size 8 is no multiple of micro_batch_size 3"),
    ],
)
