"""Pretraining steps beside open_clip (CLIP, SigLIP) and lightly (MAE, DINO): losses, time and peak memory.

    peers/bin/python -m benchmarks.pretraining_peers
    peers/bin/python -m benchmarks.pretraining_peers --data emoji/train.csv --objectives clip siglip
    peers/bin/python -m benchmarks.pretraining_peers --device cuda --dtype bfloat16 --side 224 --patch 16 --width 768 \
        --heads 12 --depth 12 --batch 64

Both sides begin with the same weights and take the same steps: the same batches, AdamW, decay, clipping, schedule. First
the losses of `--steps` steps are compared, then steps are timed in turns. Memory is what a process's peak grows by from
before the model is read to after four steps, each side in a process of its own: weights, gradients, AdamW's averages and
the largest step.

The mathematics is equal in float32. lightly takes DINO's crops one by one; the last row is the same with crops of one size
in one forward, as the authors of DINO do it. In bfloat16 the peers compute their losses under autocast and ours are in
float32, and so are the averages of our teacher.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import count, islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import AutoTokenizer

from benchmarks.peers import import_peer
from benchmarks.pretraining_models import CONTEXT, OBJECTIVES, PARTS, TEMPERATURE, VOCABULARY, Batch, Take
from benchmarks.timing import interleaved, machine
from vlm_vision.data.images.batches import ImageDataset, collate
from vlm_vision.data.images.samples import read_samples
from vlm_vision.data.images.views import Crop, View, dino_views
from vlm_vision.new_models import learn_tokenizer
from vlm_vision.train.tasks.mae import seeded_noise

KEPT = 4
"""Batches that are repeated while steps are timed, and steps whose memory is measured."""


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.pretraining_peers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--objectives", nargs="+", default=list(OBJECTIVES), choices=OBJECTIVES)
    parser.add_argument("--data", default="", help="images with captions: what read_samples takes; default: noise")
    parser.add_argument("--side", type=int, default=64, help="pixels; DINO's small crops have half of it")
    parser.add_argument("--patch", type=int, default=8)
    parser.add_argument("--width", type=int, default=192)
    parser.add_argument("--heads", type=int, default=3)
    parser.add_argument("--depth", type=int, default=6, help="of each tower")
    parser.add_argument("--small", type=int, default=6, help="small crops")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=10, help="whose losses are compared")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--measure", choices=["ours", "theirs"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(peak(options))
        return
    peers = [f"{name} {import_peer(name).__version__}" for name in ("open_clip", "lightly", "timm")]
    told = {key: value for key, value in vars(options).items() if key not in ("objectives", "measure", "folder")}
    print(f"{machine(options.device)}; {', '.join(peers)}; {told}\n")
    print(
        "| objective | peer | losses, first to last | difference | ours ms | peer ms | peer / ours | ours MiB | peer MiB |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for name in options.objectives:
        print(row(name, options), flush=True)


def row(name: str, options: argparse.Namespace) -> str:
    """One objective."""
    objective = OBJECTIVES[name]
    with tempfile.TemporaryDirectory() as path:
        folder = Path(path)
        torch.manual_seed(0)
        objective.write(folder, options)
        seen = images(name, options, folder) if options.data else noise(name, options)
        batches = list(islice(seen, max(options.steps, KEPT)))
        torch.save(batches[:KEPT], folder / "batches.bin")
        memory = {who: alone(name, who, options, folder) for who in ("ours", "theirs")}
        sides = {"ours": objective.ours(folder, options), "theirs": objective.theirs(folder, options)}
        losses = {who: torch.stack([take(batch) for batch in batches[: options.steps]]) for who, take in sides.items()}
        took = interleaved(
            {who: partial(cycle, take, batches[:KEPT]) for who, take in sides.items()},
            rounds=options.rounds,
            device=options.device,
        )
    ours, theirs = losses["ours"].double(), losses["theirs"].double()
    cells = [name, objective.peer, f"{ours[0]:.4f} to {ours[-1]:.4f}", f"{((ours - theirs) / theirs).abs().max():.0e}"]
    cells += [f"{took[who] * 1e3 / KEPT:.1f}" for who in sides] + [f"{took['theirs'] / took['ours']:.2f}"]
    return f"| {' | '.join(cells + [f'{memory[who]:.0f}' for who in sides])} |"


def cycle(take: Take, batches: Sequence[Batch]) -> None:
    """One step on each batch."""
    for batch in batches:
        take(batch)


def noise(name: str, options: argparse.Namespace) -> Iterator[Batch]:
    """Normal pixels, uniform ids; seeded."""
    draw = torch.Generator().manual_seed(0)
    shape, small = (options.batch, 3, options.side, options.side), options.side // 2
    for step in count():
        if name.startswith("dino"):
            shapes = (2, *shape), (options.small, options.batch, 3, small, small)
            yield dino_batch(*(torch.randn(shape, generator=draw) for shape in shapes))
        elif name == "mae":
            yield mae_batch(
                torch.randn(shape, generator=draw), range(step * options.batch, (step + 1) * options.batch), options
            )
        else:
            ids = torch.randint(1, VOCABULARY - 1, (options.batch, CONTEXT), generator=draw)
            ids[:, -1] = VOCABULARY - 1  # the end, where CLIP reads
            yield {"pixels": torch.randn(shape, generator=draw), "ids": ids}


def images(name: str, options: argparse.Namespace, folder: Path) -> Iterator[Batch]:
    """Random views of images, and their captions by a tokenizer that is learned from them."""
    samples, size = read_samples(options.data), options.side
    crops = dino_views(size=size, local_size=size // 2, num_local=options.small)
    views = crops if name.startswith("dino") else [View(crop=Crop(size, (0.5, 1.0)))]
    learn_tokenizer((one.caption for one in samples), folder / "words", kind="siglip", vocab_size=VOCABULARY)
    words: Any = AutoTokenizer.from_pretrained(folder / "words")
    order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(0)).tolist()
    drawn = ImageDataset(samples, views, needs=("caption",))
    for batch in DataLoader(drawn, options.batch, sampler=order, collate_fn=collate, drop_last=True):
        seen = [view / 127.5 - 1 for view in batch.views]
        if name.startswith("dino"):
            yield dino_batch(torch.stack(seen[:2]), torch.stack(seen[2:]))
        elif name == "mae":
            yield mae_batch(seen[0], batch.seeds, options)
        else:
            read = words(batch.captions, padding="max_length", truncation=True, max_length=CONTEXT)
            yield {"pixels": seen[0], "ids": torch.tensor(read["input_ids"])}


def mae_batch(pixels: Tensor, seeds: Sequence[int], options: argparse.Namespace) -> Batch:
    return {"pixels": pixels, "noise": seeded_noise(seeds, (options.side // options.patch) ** 2)}


def dino_batch(large: Tensor, small: Tensor) -> Batch:
    return {"large": large, "small": small, "temperature": torch.tensor(TEMPERATURE, dtype=torch.float64)}


def peak(options: argparse.Namespace) -> float:
    """MiB that reading the model and four steps add to this process's peak."""
    (name,), folder = options.objectives, options.folder
    objective = OBJECTIVES[name]
    make = objective.ours if options.measure == "ours" else objective.theirs
    for part in PARTS:
        import_peer(part)  # on both sides: libraries are not what is measured
    batches: list[Batch] = torch.load(folder / "batches.bin")
    before = resident("VmRSS")
    cycle(make(folder, options), batches)
    if options.device.startswith("cuda"):
        return torch.cuda.max_memory_allocated() / 2**20
    return resident("VmHWM") - before


def resident(field: str) -> float:
    """MiB of this process in memory: VmRSS now, VmHWM at its peak."""
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 2**10


def alone(name: str, who: str, options: argparse.Namespace, folder: Path) -> float:
    """`peak` of one side, in a process of its own."""
    given = vars(options) | {"objectives": name, "measure": who, "folder": folder}
    arguments = [word for key, value in given.items() for word in (f"--{key}", str(value))]
    command = [sys.executable, "-m", "benchmarks.pretraining_peers", *arguments]
    return float(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.split()[-1])


if __name__ == "__main__":
    main()
