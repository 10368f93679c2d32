"""What OpenVLA's evaluation does to a camera's image: ours beside TensorFlow's own operations, and Pillow's beside both.

    python -m venv tf && tf/bin/pip install tensorflow-cpu
    python -m benchmarks.openvla_preprocess_parity --tensorflow tf/bin/python --images FOLDER

Counts the 8-bit values that differ. `--golden FILE.npz` writes the small case that the tests read instead (tests/openvla_camera.npz).
"""

import argparse
import io
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from vlm_vision.preprocess.images import load_image
from vlm_vision.preprocess.jpeg import round_trip
from vlm_vision.preprocess.openvla import EVALUATIONS, OPENVLA_CROP
from vlm_vision.preprocess.tf_image import center_crop, lanczos3

STEPS = ("jpeg", "resized", "cropped")
GOLDEN_SIDE = 16


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.openvla_preprocess_parity", description=__doc__)
    parser.add_argument("--tensorflow", required=True, help="a python that has tensorflow")
    parser.add_argument("--images", type=Path, help="folder of photos, each taken as it is, at 256 x 256 and 640 x 480")
    parser.add_argument("--noise", type=int, default=10, help="images of noise beside them")
    parser.add_argument("--golden", type=Path, help="write this file and stop")
    options = parser.parse_args()
    if options.golden:
        images = small()
        theirs = by_tensorflow(options.tensorflow, images, GOLDEN_SIDE)
        del theirs["seconds"]
        np.savez_compressed(options.golden, **images, **theirs)  # type: ignore[arg-type]
        return 0
    images = dict(photos(options.images)) | {f"noise {i}": noise(i, 256, 256) for i in range(options.noise)}
    side = EVALUATIONS["openvla"].side
    theirs = by_tensorflow(options.tensorflow, images, side)
    print(f"{len(images)} images, tensorflow {theirs['version']}\n")
    print(
        "| way | step | values | unequal | largest difference of 255 | ms for an image, all steps |\n|---|---|---|---|---|---|"
    )
    wrong, total = 0, 0
    for way, steps in (("vlm_vision", ours), ("Pillow", by_pillow)):
        seconds, differences = 0.0, {step: [] for step in STEPS}
        for name, pixels in images.items():
            start = time.perf_counter()
            made = steps(pixels, side)
            seconds += time.perf_counter() - start
            for step, one in zip(STEPS, made, strict=True):
                differences[step].append(np.abs(one.astype(int) - theirs[f"{name}.{step}"]).ravel())
        for step, parts in differences.items():
            found = np.concatenate(parts)
            if steps is ours:
                wrong, total = wrong + int((found > 0).sum()), total + found.size
            cost = f"{1000 * seconds / len(images):.1f}" if step == STEPS[-1] else ""
            print(f"| {way} | {step} | {found.size} | {(found > 0).sum()} | {found.max()} | {cost} |")
    print(f"| TensorFlow | all | | | | {1000 * float(theirs['seconds']):.1f} |")
    return int(wrong > total / 100_000)


def ours(pixels: np.ndarray, side: int) -> list[np.ndarray]:
    jpeg = round_trip(pixels)
    resized = lanczos3(jpeg, side, side)
    return [jpeg, resized, center_crop(resized, OPENVLA_CROP, side, side)]


def by_pillow(pixels: np.ndarray, side: int) -> list[np.ndarray]:
    """The same steps as one would write them with Pillow alone."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=95)
    jpeg = Image.open(file).convert("RGB")
    resized = jpeg.resize((side, side), Image.Resampling.LANCZOS)
    edge = side * OPENVLA_CROP**0.5
    box = ((side - edge) / 2, (side - edge) / 2, (side + edge) / 2, (side + edge) / 2)
    cropped = resized.resize((side, side), Image.Resampling.BILINEAR, box=box)
    return [np.asarray(one) for one in (jpeg, resized, cropped)]


def by_tensorflow(python: str, images: dict[str, np.ndarray], side: int) -> dict[str, np.ndarray]:
    script = Path(__file__).with_name("openvla_preprocess_tf.py")
    with tempfile.TemporaryDirectory() as folder:
        source, target = f"{folder}/in.npz", f"{folder}/out.npz"
        np.savez(source, **images)  # type: ignore[arg-type]
        done = subprocess.run([python, script, source, target, str(side)], capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"TensorFlow's side failed:\n{done.stderr[-2000:]}")
        with np.load(target) as found:
            return dict(found)


def photos(folder: Path | None):
    """(name, pixels) of every image in the folder, three times."""
    for path in sorted(folder.iterdir()) if folder else []:
        image = load_image(path)
        yield path.name, np.asarray(image)
        for size in ((256, 256), (640, 480)):
            yield f"{path.name} {size[0]}", np.asarray(image.resize(size))


def noise(seed: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def small() -> dict[str, np.ndarray]:
    """Images of a few pixels: odd sides, whole blocks, the very size, larger and smaller; half waves, half noise."""
    sizes = {"odd": (17, 23), "blocks": (16, 32), "sized": (GOLDEN_SIDE, GOLDEN_SIDE), "narrow": (19, 3)}
    found = {}
    for seed, (name, (height, width)) in enumerate(sizes.items()):
        rows, columns = np.mgrid[:height, :width]
        waves = np.stack([rows * (5 - i) + columns * (3 + 2 * i) for i in range(3)], axis=-1) % 256
        found[name] = ((waves + noise(seed, height, width) // 2) // 2 + 30).astype(np.uint8)
    return found


if __name__ == "__main__":
    raise SystemExit(main())
