"""`vlm-vision emoji`."""

import argparse
from pathlib import Path


def add_to(parser: argparse.ArgumentParser) -> None:
    """Its arguments."""
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="folder to write")
    parser.add_argument("--size", type=int, default=64, help="side of the images in pixels (default: %(default)s)")
    parser.add_argument(
        "--packages",
        type=Path,
        metavar="FOLDER",
        help="folder with the three .tgz files (default: download by npm pack)",
    )


def run(options: argparse.Namespace) -> None:
    from contextlib import ExitStack
    from tempfile import TemporaryDirectory

    from vlm_vision.cli.whole_model import at_least_one
    from vlm_vision.data import emoji

    at_least_one("--size", options.size)
    with ExitStack() as stack:
        packages = options.packages
        if packages is None and not emoji.is_complete(options.out, options.size):
            packages = emoji.fetch(Path(stack.enter_context(TemporaryDirectory())))
        for name, count in emoji.build(options.out, packages or Path(), size=options.size).items():
            print(f"{name:14} {count:5}")
