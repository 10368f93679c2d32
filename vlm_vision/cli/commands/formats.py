"""`vlm-vision formats`."""

import argparse

from vlm_vision.cli.stored import show


def add_to(parser: argparse.ArgumentParser) -> None:
    """It has no arguments."""


def run(options: argparse.Namespace) -> None:
    show("formats")
