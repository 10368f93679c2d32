"""Images per second from JPEG files to patch tokens, beside transformers and beside the parts alone.

    python -m benchmarks.token_extraction
    python -m benchmarks.token_extraction --encoders mini --number 64 --rounds 1

All read the same files and use the same weights, on all cores that the process has:

- ours: `extract`, which also writes the store to disk;
- pipeline: transformers' image-feature-extraction, one image at a time as it does by default, and in batches of 16;
- loop: a DataLoader with a worker for each core, transformers' image processor in its workers, its model on batches of 16;
- decode, preprocess, forward: our parts alone, in as many threads as `extract` has, and their sum.

CPU ms is the processor time of an image, workers included, which depends less on what else the machine does.

dinotool is no contestant: it gets DINOv2 by torch.hub alone, and takes no weights of a folder.
"""

import argparse
import os
import shutil
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from transformers import AutoImageProcessor, AutoModel, pipeline

import vlm_vision as vv
from benchmarks.photos import write_photos
from benchmarks.timing import interleaved, machine
from vlm_vision.preprocess.images import load_pixels
from vlm_vision.preprocess.jpeg_file import decoder
from vlm_vision.tokens.extraction.encode import TokenEncoder
from vlm_vision.tokens.extraction.extract import extract, prepare
from vlm_vision.tokens.extraction.work import default_workers, one_thread_each, single_threads
from vlm_vision.tokens.sources.choose import SourceOptions, open_sources
from vlm_vision.tokens.wanted import Wanted

BATCH = 16


class Files(Dataset[Tensor]):
    """Pixels of image files by transformers."""

    def __init__(self, paths: list[str], processor: Any):
        self.paths, self.processor = paths, processor

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, at: int) -> Tensor:
        image = Image.open(self.paths[at]).convert("RGB")
        return self.processor(image, return_tensors="pt")["pixel_values"][0]


class Contest:
    """One encoder in one precision, on the same files."""

    def __init__(self, source: str, precision: str, folder: Path, workers: int):
        self.folder, self.workers = folder, workers
        self.paths = sorted(str(path) for path in (folder / "photos").glob("*.jpg"))
        self.dtype: torch.dtype = getattr(torch, precision)
        self.wanted = Wanted(
            parts=("patch_tokens",), precision=precision, dtype=precision, batch_size=BATCH, shard_images=4096  # type: ignore[arg-type]
        )  # fmt: skip
        encoder = vv.load(source)
        assert isinstance(encoder, vv.Encoder)
        self.encoder = encoder
        self.processor = AutoImageProcessor.from_pretrained(source)
        model = AutoModel.from_pretrained(source, dtype=self.dtype)
        self.model = getattr(model, "vision_model", model).eval()
        self.pipes = {
            size: pipeline(
                "image-feature-extraction",
                model=self.model,
                image_processor=self.processor,
                device="cpu",
                batch_size=size,
            )
            for size in (1, BATCH)
        }

    def ours(self) -> None:
        """To a store on disk."""
        store = self.folder / "store"
        shutil.rmtree(store, ignore_errors=True)
        source = open_sources([str(self.folder / "photos")], SourceOptions())
        extract(source, self.encoder, store, wanted=self.wanted, workers=self.workers)

    def pipeline(self, batch: int) -> list[Tensor]:
        """Tokens of the files."""
        return self.pipes[batch](self.paths, return_tensors=True)  # type: ignore[return-value]

    @torch.inference_mode()
    def loop(self) -> list[Tensor]:
        """Tokens of the files, in batches."""
        files = Files(self.paths, self.processor)
        batches = DataLoader(files, batch_size=BATCH, num_workers=self.workers)
        return [self.model(pixels.to(self.dtype)).last_hidden_state for pixels in batches]

    def difference(self) -> float:
        """Largest one between our tokens and those of the loop, as a share of the largest value."""
        self.ours()
        store = vv.TokenStore(self.folder / "store")
        theirs = torch.cat(self.loop()).float()[:, -store.token_counts()[0] :]
        ours = store.patch_tokens(range(len(store))).float()
        return ((ours - theirs).abs().max() / theirs.abs().max()).item()

    def parts(self) -> dict[str, Callable[[], object]]:
        """Decoding, preprocessing and the forward alone, each in all threads."""
        tokens = prepare(self.encoder, self.wanted, None)
        images = [load_pixels(path) for path in self.paths[: 4 * BATCH]]
        pixels = [tokens.pixels(image) for image in images[:BATCH]]
        rounds = range(len(self.paths) // BATCH)

        def in_threads(work: Callable[[int], object]) -> Callable[[], object]:
            def run() -> None:
                with one_thread_each(), single_threads(self.workers) as pool:
                    list(pool.map(work, rounds))

            return run

        def rows(at: int) -> range:
            return range(at * BATCH, (at + 1) * BATCH)

        return {
            "decode": in_threads(lambda at: [load_pixels(self.paths[i]) for i in rows(at)]),
            "preprocess": in_threads(lambda at: [tokens.pixels(images[i % len(images)]) for i in rows(at)]),
            "forward": in_threads(lambda at: _forward(tokens, pixels)),
        }


@torch.inference_mode()
def _forward(tokens: TokenEncoder, pixels: list[Tensor]) -> object:
    return tokens.outputs(pixels)


def new_small(folder: Path) -> str:
    """A folder with a DINOv2 ViT-S/14 of random weights."""
    from transformers import BitImageProcessorPil, Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    Dinov2Model(Dinov2Config(hidden_size=384, num_attention_heads=6, image_size=518, patch_size=14)).save_pretrained(
        folder
    )
    BitImageProcessorPil(
        size={"shortest_edge": 256}, crop_size={"height": 224, "width": 224}, resample=3, do_convert_rgb=True
    ).save_pretrained(folder)
    return str(folder)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.token_extraction",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--encoders", nargs="+", default=["mini", "small"], help="mini; small: a ViT-S/14 at 224 px; folders"
    )
    parser.add_argument("--precisions", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--number", type=int, default=128, help="images")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--small", help="folder of the ViT-S/14 (default: random weights)")
    options = parser.parse_args()
    workers = default_workers()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        made = write_photos(folder / "photos", options.number)
        decoded = "Pillow" if decoder is None else f"simplejpeg {decoder.__version__}"
        print(f"{machine('cpu')}; {workers} cores; decoder {decoded}; {made}; {options.rounds} rounds\n")
        print("| encoder | precision | " + " | ".join(_COLUMNS) + " |\n|" + "---|" * (2 + len(_COLUMNS)))
        for name in options.encoders:
            source = (options.small or new_small(folder / "small")) if name == "small" else name
            for precision in options.precisions:
                contest = Contest(_mini() if source == "mini" else source, precision, folder, workers)
                print(f"| {name} | {precision} | {_row(contest, options)} |", flush=True)


_COLUMNS = (
    "ours images/s", "pipeline", "pipeline, batches", "loop", "ours / pipeline", "ours / faster pipeline", "ours / loop", "decode", "preprocess",
    "forward", "sum of the parts", "ours / sum", "CPU ms: ours, pipeline, batches, loop", "difference", "load",
)  # fmt: skip


def _row(contest: Contest, options: argparse.Namespace) -> str:
    difference = contest.difference()
    parts = contest.parts()
    contestants: dict[str, Callable[[], object]] = {
        "ours": contest.ours,
        "pipeline": lambda: contest.pipeline(1),
        "batches": lambda: contest.pipeline(BATCH),
        "loop": contest.loop,
    }
    loads = [os.getloadavg()[0]]
    clocks = {name: _Clock(run) for name, run in contestants.items()}
    seconds = interleaved(clocks | parts, rounds=options.rounds, device="cpu")
    loads.append(os.getloadavg()[0])
    rate = {name: options.number / value for name, value in seconds.items()}
    for name in parts:
        rate[name] = options.number // BATCH * BATCH / seconds[name]
    whole = 1 / sum(1 / rate[name] for name in parts)
    best = max(rate["pipeline"], rate["batches"])
    cells = [f"{rate[name]:.1f}" for name in ("ours", "pipeline", "batches", "loop")]
    cells += [f"{rate['ours'] / other:.2f}" for other in (rate["pipeline"], best, rate["loop"])]
    cells += [f"{rate[name]:.1f}" for name in parts] + [f"{whole:.1f}", f"{rate['ours'] / whole:.2f}"]
    cells.append(
        ", ".join(
            f"{clocks[name].median() / options.number * 1e3:.1f}" for name in ("ours", "pipeline", "batches", "loop")
        )
    )
    return " | ".join([*cells, f"{difference:.0e}", f"{loads[0]:.1f} to {loads[1]:.1f}"])


class _Clock:
    """A contestant, and the seconds of processor time of each of its runs."""

    def __init__(self, run: Callable[[], object]):
        self.run, self.seconds = run, list[float]()

    def __call__(self) -> None:
        start = sum(os.times()[:4])
        self.run()
        self.seconds.append(sum(os.times()[:4]) - start)

    def median(self) -> float:
        return statistics.median(self.seconds)


def _mini() -> str:
    return str(Path(vv.__file__).parent / "mini")


if __name__ == "__main__":
    main()
