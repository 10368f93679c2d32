"""Contrastive training on sixteen images of two colors and what they show."""

import json
from pathlib import Path

from torch import Tensor

import vlm_vision as vv

from .recipe import Laws, Recipe, Shared, Stopped, write_halves, write_table

IMAGE = dict(image_size=16, patch_size=8, embed_dim=32, depth=2, num_heads=2, mlp_dim=64)
TEXT = dict(embed_dim=32, depth=1, num_heads=2, mlp_dim=64, context_length=12)
TINY = f"""
towers: {{image: {json.dumps(IMAGE)}, text: {json.dumps(TEXT)}, vocab_size: 300, logit_bias: batch}}
steps: 12
batch_size: 8
micro_batch_size: 8
lr: 0.003
warmup_steps: 2
tracker: none
"""
CLIP = ("--towers.kind", "clip", "--contrast.loss", "clip")


def write(folder: Path) -> None:
    write_table(folder / "pairs.csv", write_halves(folder, 16, 20, 10), "image", "caption")


RECIPE = Recipe("contrastive", write, TINY, ("--data.train", "FOLDER/pairs.csv"))


def state(out: Path) -> dict[str, Tensor]:
    return vv.load_pair(out / "model").state_dict()


def bad(folder: Path, new: Path) -> list[str]:
    (new / "bad.png").write_bytes(b"no image")
    rows = (folder / "pairs.csv").read_text() + "red-red.png,\n" + f"{new}/bad.png,an image\n"
    (new / "pairs.csv").write_text(rows)
    data = ["--data.train", f"{new}/pairs.csv", "--data.images", str(folder)]
    return [*data, "--batch_size", "9", "--micro_batch_size", "9"]


HALF = ("--micro_batch_size", "4", "--data.test", "FOLDER/pairs.csv")
"""Each process has half of the batch, whole: pairs of a micro-batch are not compared with those of another."""
PARTS = (*HALF, "--sharding", "fsdp2")
LAWS = Laws(
    RECIPE,
    steps=12,
    state=state,
    shared={
        "siglip": Shared(("--contrast.chunk_size", "3"), HALF),
        "siglip, gathered": Shared(("--contrast.exchange", "gather"), HALF),
        "clip": Shared(CLIP, HALF),
        "siglip in parts": Shared((), (*PARTS, "--gradient_checkpointing", "true")),
        "clip in parts": Shared(CLIP, (*PARTS, "--eval_every", "6", "--checkpoint_every", "8"), resumes=8),
    },
    stopped={"siglip": Stopped(("--flip", "0.5"), every=4, at=6)},
    bad=bad,
    wrong=[
        (["--micro_batch_size", "4"], "batch_size 8 is cut into pieces of 4, but the loss compares all pairs"),
        (["--towers.kind", "clip"], "the siglip loss needs a pair with a logit_bias"),
        (["--towers.text", "{}"], "there is no text tower: set start or towers.text"),
        (["--lock_image", "true"], "lock_image needs a trained image tower: set start or towers.image_source"),
        (["--crop_scale", "[0.5, 1.5]"], "scale of Crop is"),
        (["--towers.text", '{"width": 3}'], "--towers.text.width, which is not a field of towers.text"),
        (["--batch_size", "40", "--micro_batch_size", "40"], "batch_size 40 is larger than the data set of 16 records"),
    ],
)
