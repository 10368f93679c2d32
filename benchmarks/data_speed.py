"""Images a second that one worker reads and changes, beside a training step's forward and backward on the same core.

    python -m benchmarks.data_speed
    python -m benchmarks.data_speed --data imagenet --split train --number 256
    python -m benchmarks.data_speed --device cuda --dtype bfloat16 --batch 128  # workers that one GPU wants

Reading is what the recipes do: a WebDataset shard of JPEGs, decoded, then the views of each recipe. The last column is the
number of workers that keep one device busy. Without --data the images are --number photo-like JPEGs of --side pixels.
"""

import argparse
import io
import math
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.timing import interleaved, machine
from vlm_vision import presets
from vlm_vision.data.images.augment import RandAugment
from vlm_vision.data.images.batches import Draw, ImageDataset
from vlm_vision.data.images.samples import read_samples
from vlm_vision.data.images.views import Crop, View, dino_views

VIEWS: dict[str, Sequence[View]] = {
    "contrastive": [View(crop=Crop(224, (0.9, 1.0)), flip=0.0)],
    "mae": [View(crop=Crop(224, (0.2, 1.0)))],
    "supervised (DeiT)": [View(crop=Crop(224), randaugment=RandAugment())],
    "self_distill (DINOv2, ten crops)": dino_views(),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.data_speed",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", default="", help="images, as read_samples takes them")
    parser.add_argument("--split", default="train")
    parser.add_argument("--number", type=int, default=64)
    parser.add_argument("--side", type=int, default=500, help="pixels, about ImageNet's")
    parser.add_argument("--model", default="vit_base_patch16_224")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{machine(args.device)}; {vars(args)}\n")
    with tempfile.TemporaryDirectory() as folder:
        samples = read_samples(args.data or str(shard(Path(folder), args.number, args.side)), args.split)
        number = min(args.number, len(samples))
        seconds = {
            name: per_image(ImageDataset(samples, views, needs=(), seed=0), number) for name, views in VIEWS.items()
        }
    step = training_step(args)
    took = interleaved({"step": step}, rounds=5, device=args.device)["step"] / args.batch
    print("| views of | pictures/s of one worker | pictures/s of forward and backward | workers for one device |")
    print("|---|---|---|---|")
    for name, own in seconds.items():
        wanted = took if "ten crops" not in name else took * (2 + 8 * 96**2 / 224**2)
        print(f"| {name} | {1 / own:.1f} | {1 / wanted:.1f} | {math.ceil(own / wanted)} |")


def shard(folder: Path, number: int, side: int) -> Path:
    """A WebDataset shard of smooth noise, which compresses as photos do."""
    path, draw = folder / "00000.tar", np.random.default_rng(0)
    with tarfile.open(path, "w") as tar:
        for i in range(number):
            image = Image.fromarray(smooth_noise(draw, side))
            held = io.BytesIO()
            image.save(held, "JPEG", quality=90)
            info = tarfile.TarInfo(f"{i:08d}.jpg")
            info.size = held.tell()
            held.seek(0)
            tar.addfile(info, held)
    return path


def smooth_noise(draw: np.random.Generator, side: int) -> np.ndarray:
    """(side, side, 3), uint8, which compresses as photos do."""
    layers = [draw.normal(size=(size, size, 3)) * 400 / size for size in (8, 32, 128, 512)]
    whole = sum(np.stack([_enlarged(layer[..., c], side) for c in range(3)], axis=-1) for layer in layers)
    return np.clip(128 + whole, 0, 255).astype(np.uint8)


def _enlarged(values: np.ndarray, side: int) -> np.ndarray:
    return np.asarray(Image.fromarray(values.astype(np.float32)).resize((side, side), Image.Resampling.BICUBIC))


def per_image(images: ImageDataset, number: int) -> float:
    """Seconds; the best of three passes, since a worker alone decides it."""
    passes = []
    for step in range(3):
        start = time.perf_counter()
        for row in range(number):
            images[Draw(row, step)]
        passes.append((time.perf_counter() - start) / number)
    return min(passes)


def training_step(args: argparse.Namespace) -> Callable[[], object]:
    """Forward and backward of the model on a batch of 224 px."""
    dtype = getattr(torch, args.dtype)
    model = presets.create(args.model).to(args.device, dtype)
    pixels = torch.randn(args.batch, 3, 224, 224, device=args.device, dtype=dtype)

    def step() -> Tensor:
        model.zero_grad()
        loss = model(pixels).patch_tokens.float().square().mean()
        loss.backward()
        return loss

    return step


if __name__ == "__main__":
    main()
