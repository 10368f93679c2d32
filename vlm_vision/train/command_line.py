"""The command line of a recipe: a help text for every flag, configs by name, and one line for what is wrong."""

import argparse
import difflib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

from jsonargparse import ArgumentParser, DefaultHelpFormatter, set_parsing_settings

_UNKNOWN = (
    r"unrecognized arguments: (?:.*? )?--([^\s=]+)",
    r"Option '([^']+)' is not accepted",
    r"Group '([^']+)' does not accept option '([^']+)'",
)
"""How jsonargparse speaks of a name that no setting has."""


class _Help(argparse.RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """The docstring of a recipe as it is written: its commands stay on lines of their own."""


class SettingsParser(ArgumentParser):
    """jsonargparse's, whose errors are one line; jsonargparse makes others of this class for settings within settings."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:
            super().error(message, ex)
        names = [option.removeprefix("--") for option in self._flags()]
        for pattern in _UNKNOWN:
            if match := re.search(pattern, message):
                name = ".".join(match.groups())
                near = difflib.get_close_matches(name, names, n=1)
                what = f"did you mean --{near[0]}?" if near else f"see {self.prog} --help"
                message = f"unrecognized argument --{name}: {what}"
                break
        self.exit(2, f"{self.prog}: {' '.join(message.split())}\n")

    def _flags(self) -> Iterator[str]:
        for action in self._actions:
            yield from (option for option in action.option_strings if option.startswith("--"))


def settings_parser(kind: type, name: str, about: str | None) -> SettingsParser:
    """A parser of --config and of a flag for each setting.

    Args:
        kind: dataclass of the settings; the strings under its fields are the help texts.
        name: of the recipe.
        about: what the recipe does.
    """
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = SettingsParser(prog=f"vlm-vision train {name}", description=about, formatter_class=_Help)
    parser.add_argument(
        "--config",
        action="config",
        metavar="NAME_OR_FILE",
        help="Name of a config that comes with the recipes, or a YAML file; later arguments override it.",
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
