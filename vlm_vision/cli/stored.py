"""Tables as text files of this folder, which need no torch. `python -m vlm_vision.cli.tables` writes them again."""

import os
import sys


def path(name: str) -> str:
    """Path of a stored table."""
    return os.path.join(os.path.dirname(__file__), f"{name}.txt")


def show(name: str) -> None:
    """Print a table."""
    with open(path(name), encoding="utf-8") as file:
        sys.stdout.write(file.read())
