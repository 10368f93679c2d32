"""A recipe on the command line: typed settings from YAML files and flags, errors in one sentence."""

import logging
import os
import sys
from argparse import ArgumentError
from collections.abc import Callable
from typing import TypeVar

from jsonargparse import ArgumentParser

from vlm_vision.train.layers import check_keys, read_layers, replace_choices
from vlm_vision.train.settings import RENAMED

log = logging.getLogger(__name__)

S = TypeVar("S")


def parse_config(kind: type[S], name: str, about: str | None, arguments: list[str] | None = None) -> S:
    """Typed settings from --config FILE.yaml and --key value.

    Raises:
        ValueError: a key or a value that does not fit.
    """
    layers = read_layers(sys.argv[1:] if arguments is None else arguments)
    for layer in layers:
        check_keys(layer, kind, RENAMED)
    notes = replace_choices(layers, getattr(kind, "REPLACES", {}))
    parser = ArgumentParser(prog=f"python -m {name}", description=about, exit_on_error=False)
    parser.add_argument("--config", action="config", help="YAML file; later arguments override it")
    parser.add_class_arguments(kind, as_positional=False)
    try:
        settings = parser.instantiate(parser.parse_args([argument for layer in layers for argument in layer.arguments]))
    except ArgumentError as error:
        raise ValueError(" ".join(str(error).split())) from None
    if os.environ.get("RANK", "0") == "0":
        for note in notes:
            log.info(note)
    return kind(**{key: value for key, value in settings.items() if key != "config"})


def run_cli(name: str, job: Callable[[], object]) -> None:
    """Do the job of a script; what the user can put right is said in one sentence, with exit code 2."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        job()
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"{name}: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
