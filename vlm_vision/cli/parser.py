"""The parser of `vlm-vision` and of its commands: errors are one line, with the nearest valid name."""

import argparse
import sys

TYPE_CHECKING = False  # typing.TYPE_CHECKING, without its import
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import NoReturn


class Parser(argparse.ArgumentParser):
    """argparse's parser with errors of one line; it also rejects unknown arguments itself, with its own options as hints."""

    _given: "Sequence[str]" = ()

    def parse_known_args(self, args=None, namespace=None):  # pyright: ignore[reportIncompatibleMethodOverride]
        self._given = list(sys.argv[1:] if args is None else args)
        namespace, rest = super().parse_known_args(args, namespace)
        if rest:
            self.error(f"unrecognized arguments: {' '.join(rest)}")
        return namespace, rest

    def error(self, message: str) -> "NoReturn":
        options = [option for action in self._actions for option in action.option_strings]
        for flag in self._given:
            name = flag.partition("=")[0]
            if flag == "--":
                break
            if flag.startswith("--") and not any(option.startswith(name) for option in options):
                message = f"unrecognized argument {name}"
                self.exit(2, f"{self.prog}: {message}: {hint(name, options, f'see {self.prog} --help')}\n")
        self.exit(2, f"{self.prog}: {message}\n")


def hint(name: str, names: "Iterable[str]", otherwise: str) -> str:
    """The nearest name, as a question; else `otherwise`."""
    from difflib import get_close_matches

    near = get_close_matches(name, names, n=1)
    return f"did you mean {near[0]}?" if near else otherwise
