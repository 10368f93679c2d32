"""The images and captions that `vv.load("mini")` was trained on.

    python -m benchmarks.mini_data --out mini_data

Needs what `vlm-vision emoji` needs, and `pip install easy-vqa`. Writes emoji/ as `vlm-vision emoji` makes it, shapes/ with
the 4000 training images of easy-VQA, and train.csv with the columns picture and caption: the training emoji of Noto
and Twemoji, and the shapes. Emoji of the test split, all of OpenMoji's drawings and easy-VQA's test images stay unseen.

A shape's caption says its size, color, form and place ("a small blue circle at the top left"), measured in the image.
"""

import argparse
import csv
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from vlm_vision.data import emoji
from vlm_vision.data.conversations.easy_vqa import captioned_images
from vlm_vision.files import whole
from vlm_vision.train.command import run_cli

STYLES = ("noto", "twemoji")


def build(out: Path, packages: Path) -> int:
    """Make the folder; it appears whole or not at all. Returns the number of training images."""
    with whole(out) as staging:
        emoji.build(staging / "emoji", packages)
        with (staging / "emoji" / "train.csv").open(newline="", encoding="utf-8") as file:
            records = [one for one in csv.DictReader(file) if one["style"] in STYLES]
        rows = [(f"emoji/{one['picture']}", one["caption"]) for one in records]
        (staging / "shapes").mkdir()
        rows += _shapes(staging)
        with (staging / "train.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("picture", "caption"), *rows])
    return len(rows)


def _shapes(staging: Path) -> Iterator[tuple[str, str]]:
    """Copy easy-VQA's training images; rows of train.csv."""
    for path, caption, _ in captioned_images("train"):
        name = f"shapes/{Path(path).name}"
        shutil.copyfile(path, staging / name)
        yield name, caption


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to make")
    parser.add_argument("--packages", type=Path, help="folder with the three .tgz files; default: fetched by npm pack")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        print(f"{build(options.out, options.packages or emoji.fetch(Path(folder)))} images in {options.out}")


if __name__ == "__main__":
    run_cli("benchmarks.mini_data", main)
