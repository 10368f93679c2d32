"""Robot data both ways: what the lerobot library wrote, read here; what is written here, read by it. Every feature of every moment,
and chunks of actions with their padding, against lerobot's own reader.

    python3.11 -m venv lerobot && lerobot/bin/pip install lerobot==0.4.4  # 8 GB; it cannot share an environment with transformers 5
    python -m benchmarks.lerobot_parity --lerobot lerobot/bin/python

lerobot decodes videos by torchcodec, which wants the shared libraries of FFmpeg 4 to 8 (`apt-get install ffmpeg`), or by
`--decoder pyav`. `--fixture tests/data/lerobot_v3.zip` writes the case of tests/test_lerobot_parity.py anew.
"""

import argparse
import importlib
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

CHUNK = 4
FPS = 20
LENGTHS = (5, 9, 7)
TASKS = ("push the block", "open the drawer", "push the block")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.lerobot_parity", description=__doc__)
    parser.add_argument("--lerobot", required=True, metavar="PYTHON", help="the interpreter that has lerobot")
    parser.add_argument("--decoder", default="torchcodec", choices=["torchcodec", "pyav"], help="lerobot's, of videos")
    parser.add_argument(
        "--fixture", metavar="ZIP", help="write lerobot's small data set and what it reads from it here"
    )
    options = parser.parse_args()
    if options.fixture:
        write_fixture(Path(options.fixture), options.lerobot, options.decoder)
        return 0
    failed = 0
    print("| written by | feature | moments | largest difference |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        written = {
            "lerobot, one file each": Path(folder, "theirs"),
            "lerobot, many files": Path(folder, "theirs_rolled"),
        }
        for path, size in zip(written.values(), ("100", "0.001"), strict=True):
            in_lerobot(options.lerobot, "write", str(path), size, "96")
        written |= write_here(Path(folder))
        for name, path in written.items():
            in_lerobot(options.lerobot, "read", str(path), str(path) + ".npz", options.decoder)
            with np.load(str(path) + ".npz") as theirs:
                for feature, difference in compare(path, dict(theirs)).items():
                    failed += difference > (2 if feature.startswith("observation.images") else 0)
                    print(f"| {name} | {feature} | {len(theirs['index'])} | {difference:g} |")
    return int(failed > 0)


def in_lerobot(python: str, *arguments: str) -> None:
    """Run this file in lerobot's environment, without the folder of this file in its path."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "SVT_LOG": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([python, "-P", __file__, *arguments], env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{python} {' '.join(arguments)} failed:\n{done.stderr[-3000:]}")


def compare(folder: Path, theirs: dict[str, np.ndarray]) -> dict[str, float]:
    """Feature -> largest difference between what lerobot and this library read; images in 0..255."""
    from vlm_vision.data.lerobot import read_dataset
    from vlm_vision.data.lerobot.layout import camera_key

    dataset = read_dataset(folder)
    frames = [dataset.frame(i) for i in range(len(dataset))]
    windows = [dataset.window(i, chunk=CHUNK) for i in range(len(dataset))]
    ours = {name: dataset.column(name) for name in dataset.features if dataset.features[name].is_table}
    for camera in dataset.cameras:
        ours[camera_key(camera)] = np.stack([np.asarray(frame.observation.images[camera]) for frame in frames])
    ours["action chunks"] = np.stack([window.actions for window in windows])
    ours["action_is_pad"] = np.stack([window.padded for window in windows])
    ours["task"] = np.array([frame.observation.instruction for frame in frames])
    if set(ours) != set(theirs):
        raise SystemExit(f"{folder}: lerobot reads {sorted(theirs)}, this library {sorted(ours)}")
    found = {}
    for name, values in ours.items():
        if "images" in name:
            step = values.shape[1] // theirs[name].shape[1]  # the fixture keeps every eighth pixel
            values = values[:, ::step, ::step]
        wanted = theirs[name].reshape(values.shape)  # lerobot drops the last axis of one number
        if values.dtype.kind in "UO":
            found[name] = float((values.astype(str) != wanted.astype(str)).sum())
        else:
            found[name] = float(np.abs(values.astype(np.float64) - wanted.astype(np.float64)).max())
    return found


def write_here(folder: Path) -> dict[str, Path]:
    """Data sets written by this library."""
    from vlm_vision.data.lerobot import write_dataset
    from vlm_vision.robot.episode import Episode

    rng = np.random.default_rng(0)
    episodes = [
        Episode(
            task,
            {"top": moving(96, length, number), "wrist": moving(64, length, number + 3)},
            rng.normal(size=(length, 4)),
            rng.normal(size=(length, 3)),
            success=number % 2 == 0,
        )
        for number, (task, length) in enumerate(zip(TASKS, LENGTHS, strict=True))
    ]
    rolled: dict[str, Any] = dict(chunks_size=1, data_files_size_in_mb=0.001, video_files_size_in_mb=0.001)
    kinds: dict[str, dict[str, Any]] = {
        "us, PNG": dict(video=False),
        "us, AV1": {},
        "us, H.264": dict(codec="h264"),
        "us, AV1, many files": rolled,
        "us, PNG, many files": rolled | dict(video=False),
    }
    written = {}
    for i, (name, options) in enumerate(kinds.items()):
        written[name] = folder / f"ours_{i}"
        write_dataset(
            written[name], episodes, fps=FPS, robot_type="toy", action_names=("x", "y", "z", "grip"), **options
        )
    return written


def moving(side: int, length: int, number: int) -> np.ndarray:
    """Ramps that move, uint8 (T, side, side, 3): no two moments are alike."""
    rows, columns = np.mgrid[:side, :side]
    steps = np.arange(length)[:, None, None]
    red = (columns + 8 * steps) * 255 // (side + 8 * length)
    green = np.broadcast_to((rows * 2 + number * 40) % 256, red.shape)
    blue = np.broadcast_to(steps * 20 % 256, red.shape)
    return np.stack([red, green, blue], axis=-1).astype(np.uint8)


def write_fixture(path: Path, python: str, decoder: str) -> None:
    """lerobot's data set of tiny images, and what lerobot reads from it, zipped; of images every eighth pixel."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder, "lerobot_v3")
        in_lerobot(python, "write", str(root), "100", "64")
        in_lerobot(python, "read", str(root), str(root / "expected.npz"), decoder)
        with np.load(root / "expected.npz") as read:
            kept = {name: values[:, ::8, ::8] if "images" in name else values for name, values in read.items()}
        np.savez(root / "expected.npz", **kept)
        path.parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as file:
            for item in sorted(root.rglob("*")):
                if item.is_file():
                    file.write(item, item.relative_to(root))
    print(f"{path}: {path.stat().st_size} bytes")


def write_by_lerobot(folder: str, megabytes: str, side: str) -> None:
    """Runs in lerobot's environment: a data set with one feature of each kind."""
    create = importlib.import_module("lerobot.datasets.lerobot_dataset").LeRobotDataset.create
    top, wrist = int(side), 16
    axes = ["height", "width", "channels"]
    features = {
        "observation.images.top": {"dtype": "video", "shape": (top, top, 3), "names": axes},
        "observation.images.wrist": {"dtype": "image", "shape": (wrist, wrist, 3), "names": axes},
        "observation.state": {"dtype": "float32", "shape": (3,), "names": ["x", "y", "z"]},
        "observation.grid": {"dtype": "float32", "shape": (2, 2), "names": None},
        "next.reward": {"dtype": "float32", "shape": (1,), "names": None},
        "next.done": {"dtype": "bool", "shape": (1,), "names": None},
        "action": {"dtype": "float32", "shape": (4,), "names": {"motors": ["a", "b", "c", "d"]}},
    }
    dataset = create("local/parity", FPS, features, root=folder, robot_type="toy", use_videos=True)
    dataset.meta.update_chunk_settings(data_files_size_in_mb=float(megabytes), video_files_size_in_mb=float(megabytes))
    rng = np.random.default_rng(0)
    for number, (task, length) in enumerate(zip(TASKS, LENGTHS, strict=True)):
        seen = {"top": moving(top, length, number), "wrist": moving(wrist, length, number + 3)}
        for step in range(length):
            dataset.add_frame(
                {f"observation.images.{camera}": images[step] for camera, images in seen.items()}
                | {
                    "observation.state": rng.normal(size=3).astype(np.float32),
                    "observation.grid": rng.normal(size=(2, 2)).astype(np.float32),
                    "next.reward": rng.normal(size=1).astype(np.float32),
                    "next.done": np.array([step == length - 1]),
                    "action": rng.normal(size=4).astype(np.float32),
                    "task": task,
                }
            )
        dataset.save_episode()
    dataset.finalize()


def read_by_lerobot(folder: str, target: str, decoder: str) -> None:
    """Runs in lerobot's environment: all that its reader gives, as arrays of one row for each moment."""
    make = importlib.import_module("lerobot.datasets.lerobot_dataset").LeRobotDataset
    ahead = {"action": [i / FPS for i in range(CHUNK)]}
    plain = make("local/parity", root=folder, video_backend=decoder)
    chunked = make("local/parity", root=folder, video_backend=decoder, delta_timestamps=ahead)
    rows = [plain[i] for i in range(len(plain))]
    found = {}
    for name, first in rows[0].items():
        if name == "task":
            found[name] = np.array([row[name] for row in rows])
        elif name.startswith("observation.images."):
            stacked = np.stack([row[name].numpy() for row in rows])
            found[name] = (stacked * 255).round().astype(np.uint8).transpose(0, 2, 3, 1)
        else:
            found[name] = np.stack([row[name].numpy() for row in rows]).reshape(len(rows), *first.shape)
    windows = [chunked[i] for i in range(len(chunked))]
    found["action chunks"] = np.stack([window["action"].numpy() for window in windows])
    found["action_is_pad"] = np.stack([window["action_is_pad"].numpy() for window in windows])
    np.savez_compressed(target, **found)


if __name__ == "__main__":
    INSIDE = {"write": write_by_lerobot, "read": read_by_lerobot}
    if len(sys.argv) > 1 and sys.argv[1] in INSIDE:
        INSIDE[sys.argv[1]](*sys.argv[2:])
        raise SystemExit(0)
    raise SystemExit(main())
