"""All figures that need a GPU, by one command and within eight minutes.

    python -m benchmarks.gpu
    python -m benchmarks.gpu --rows "token extraction"

Without CUDA each row is "not yet measured". A row that would begin after the eight minutes is left out, and says so.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

import vlm_vision as vv
from benchmarks.photos import write_photos
from benchmarks.timing import interleaved, machine
from vlm_vision import presets
from vlm_vision.encoder import Encoder
from vlm_vision.new_models import new_encoder
from vlm_vision.tokens.extraction.extract import extract, prepare
from vlm_vision.tokens.sources.choose import SourceOptions, open_sources
from vlm_vision.tokens.wanted import Wanted

MINUTES, SIDE = 8, 224
MISSING = "not yet measured"


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    measure: Callable[[], str]
    """Result in words, with units; called with CUDA alone."""

    def result(self, seconds_left: float) -> str:
        """What the table says."""
        if not torch.cuda.is_available():
            return MISSING
        if seconds_left <= 0:
            return f"left out: the {MINUTES} minutes are over; run it alone by --rows"
        start = time.perf_counter()
        return f"{self.measure()} ({time.perf_counter() - start:.0f} s)"


def token_extraction(model: str = "dinov2_large", images: int = 512, batch: int = 64, device: str = "cuda") -> str:
    """JPEG files of 1 to 2 megapixels to a store in bfloat16, and the share of the time in which the GPU waits."""
    encoder = new_encoder(asdict(presets.config(model)) | dict(image_size=SIDE)).eval().to(device)
    wanted = Wanted(
        parts=("patch_tokens",), precision="bfloat16", dtype="bfloat16", batch_size=batch, shard_images=images
    )
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_photos(folder / "photos", images)
        source = open_sources([str(folder / "photos")], SourceOptions())
        extract(source, encoder, folder / "warm", wanted=wanted)
        start = time.perf_counter()
        extract(source, encoder, folder / "store", wanted=wanted)
        rate = images / (time.perf_counter() - start)
        assert len(vv.TokenStore(folder / "store")) == images
    forward = _forward_rate(encoder, wanted)
    return f"{model} at {SIDE} px: {rate:.0f} images/s, the forward alone {forward:.0f}; the GPU is idle {1 - rate / forward:.0%}"


@torch.inference_mode()
def _forward_rate(encoder: Encoder, wanted: Wanted) -> float:
    """Images per second of the forward alone, with pixels on the device."""
    tokens = prepare(encoder, wanted, None)
    pixels = [torch.randn(3, SIDE, SIDE, device=encoder.device) for _ in range(wanted.batch_size)]
    seconds = interleaved({"forward": lambda: tokens.outputs(pixels)}, rounds=10, device=encoder.device.type)
    return wanted.batch_size / seconds["forward"]


ROWS = (Row("token extraction", token_extraction),)


def print_table(rows: tuple[Row, ...]) -> None:
    """Measure one row after the other."""
    print("| row | result |\n|---|---|")
    end = time.perf_counter() + 60 * MINUTES
    for row in rows:
        print(f"| {row.name} | {row.result(end - time.perf_counter())} |", flush=True)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [row.name for row in ROWS]
    parser.add_argument("--rows", nargs="+", default=names, choices=names, help="names of the rows (default: all)")
    options = parser.parse_args(arguments)
    print(machine("cuda" if torch.cuda.is_available() else "cpu") + "\n")
    print_table(tuple(row for row in ROWS if row.name in options.rows))


if __name__ == "__main__":
    main()
