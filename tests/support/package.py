"""Which package the tests run against: this checkout, or an installed one beside the checkout's tests."""

import atexit
import os
import shutil
import sys
import tempfile
from pathlib import Path

import vlm_vision

CHECKOUT = Path(__file__).resolve().parents[2]


def prepare() -> None:
    """Make `recipes` and `benchmarks` importable, here and in every process that a test starts, from the place that
    `vlm_vision` is imported from. An installed package has its recipes inside; a folder of links calls them `recipes`."""
    folder = _links() if _recipes().is_dir() else Path(vlm_vision.__file__).parents[1]
    sys.path.insert(0, str(folder))
    places = [str(folder), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    os.environ["PYTHONPATH"] = os.pathsep.join(place for place in places if place)


def _recipes() -> Path:
    return Path(vlm_vision.__file__).parent / "recipes"


def _links() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="vlm_vision_tests"))
    atexit.register(shutil.rmtree, folder)
    (folder / "recipes").symlink_to(_recipes())
    (folder / "benchmarks").symlink_to(CHECKOUT / "benchmarks")
    return folder
