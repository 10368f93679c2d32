"""Peak memory of token extraction by the number of images: it must not grow.

    python -m benchmarks.token_memory
    python -m benchmarks.token_memory --counts 200 1000

Images are 32 x 32 px JPEG files, encoded by mini in a process of its own for each count.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.timing import machine

_CHILD = """
import resource, sys
import vlm_vision as vv
from vlm_vision.tokens.extraction.extract import extract
from vlm_vision.tokens.sources.choose import SourceOptions, open_sources
from vlm_vision.tokens.wanted import Wanted

photos, store, images = sys.argv[1], sys.argv[2], int(sys.argv[3])
extract(open_sources([photos], SourceOptions()), vv.load("mini"), store, wanted=Wanted(shard_images=images), workers=2)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def peak_memory(folder: Path, count: int, shard_images: int) -> int:
    """Bytes at most in memory while `count` small images become a store, in a new process."""
    photos = folder / f"images-{count}"
    write_small_images(photos, count)
    command = [sys.executable, "-c", _CHILD, str(photos), str(folder / f"store-{count}"), str(shard_images)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(done.stdout) * (1 if sys.platform == "darwin" else 1024)


def write_small_images(folder: Path, count: int) -> None:
    """JPEG files of noise, in folders of a thousand."""
    draw = np.random.default_rng(0)
    for i in range(count):
        path = folder / f"{i // 1000:04d}" / f"{i:07d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.token_memory",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--counts", type=int, nargs="+", default=[1000, 20000], help="numbers of images")
    parser.add_argument("--shard-images", type=int, default=0, help="images of a shard (default: as extract chooses)")
    options = parser.parse_args()
    print(f"{machine('cpu')}; {options.shard_images or 'as many as extract chooses'} images in a shard\n")
    print("| images | peak MB | beside the first |\n|---|---|---|")
    first = 0
    for count in options.counts:
        with tempfile.TemporaryDirectory() as folder:
            peak = peak_memory(Path(folder), count, options.shard_images)
        first = first or peak
        print(f"| {count:,} | {peak / 1e6:.0f} | {peak / first:.2f} |", flush=True)


if __name__ == "__main__":
    main()
