"""The command line of a recipe: typed settings from configs and flags, a help text for each, errors of one sentence."""

import argparse
import difflib
import logging
import os
import sys
from argparse import ArgumentError
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from jsonargparse import ArgumentParser, DefaultHelpFormatter, set_parsing_settings

from vlm_vision.files import one_line
from vlm_vision.train.layers import check_keys, read_layers, replace_choices
from vlm_vision.train.settings import RENAMED

log = logging.getLogger(__name__)

S = TypeVar("S")


class _Help(argparse.RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """The docstring of a recipe as it is written: its commands stay on lines of their own."""


def parse_config(kind: type[S], name: str, about: str | None, arguments: list[str] | None = None) -> S:
    """Typed settings from --config NAME_OR_FILE and --key value.

    Args:
        kind: dataclass of the settings; the strings under its fields are the help texts.
        name: module of the recipe, as recipes.mae; its configs have names.
        about: what the recipe does.
        arguments: those of the command line if None.

    Raises:
        ValueError: a config that does not exist, a key or a value that does not fit.
    """
    configs = Path(getattr(sys.modules[kind.__module__], "__file__", None) or "").parent / "configs"
    layers = read_layers(with_config_files(sys.argv[1:] if arguments is None else arguments, configs))
    for layer in layers:
        check_keys(layer, kind, RENAMED)
    notes = replace_choices(layers, getattr(kind, "REPLACES", {}))
    parser = settings_parser(kind, name.removeprefix("recipes."), about)
    try:
        settings = parser.instantiate(parser.parse_args([argument for layer in layers for argument in layer.arguments]))
    except ArgumentError as error:
        text = " ".join(str(error).split())
        raise ValueError(
            text.replace("Expected a <class 'dict'>", 'expected a map such as {"NAME": "VALUE"}')
        ) from None
    if os.environ.get("RANK", "0") == "0":
        for note in notes:
            log.info(note)
    return kind(**{key: value for key, value in settings.items() if key != "config"})


def settings_parser(kind: type, name: str, about: str | None) -> ArgumentParser:
    """A parser of --config and of a flag for each setting; arguments as `parse_config`."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(
        prog=f"vlm-vision train {name}", description=about, formatter_class=_Help, exit_on_error=False
    )
    parser.add_argument(
        "--config",
        action="config",
        metavar="NAME_OR_FILE",
        help="Name of a config of the recipes, or a YAML file; later arguments override it.",
    )
    parser.add_class_arguments(kind, as_positional=False)
    return parser


def with_config_files(arguments: Sequence[str], configs: Path) -> list[str]:
    """The arguments, with the file of each config that is given by its name.

    Args:
        configs: folder of the configs that have names.

    Raises:
        ValueError: neither a file nor a config of that name.
    """
    words, is_config = [], False
    for word in arguments:
        if is_config:
            word = _file(word, configs)
        elif word.startswith("--config="):
            word = f"--config={_file(word.removeprefix('--config='), configs)}"
        is_config = word == "--config"
        words.append(word)
    return words


def _file(name: str, configs: Path) -> str:
    choices = (Path(name), configs / name, configs / f"{name}.yaml")
    file = next((file for file in choices if file.is_file()), None)
    if file is None:
        known = sorted(file.stem for file in configs.glob("*.yaml"))
        near = difflib.get_close_matches(Path(name).stem, known, n=1)
        what = f"did you mean {near[0]}?" if near else f"give a file, or one of {', '.join(known)}"
        raise ValueError(f"there is no config {name}: {what}")
    return str(file)


def run_cli(name: str, job: Callable[[], object]) -> None:
    """Run a script; an error that the user can correct is printed as one sentence, with exit code 2."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        job()
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"{name}: {one_line(error)}", file=sys.stderr)
        sys.exit(2)
