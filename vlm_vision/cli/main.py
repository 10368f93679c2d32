"""The command `vlm-vision`. A command is a file in commands/ or data_commands/, and a row here."""

import os
import sys
from importlib import import_module

from vlm_vision import __version__
from vlm_vision.cli.parser import Parser, hint

TYPE_CHECKING = False  # typing.TYPE_CHECKING, without its import
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn

COMMANDS = {
    "train": "run a recipe: train a model, or evaluate one",
    "ask": "ask a model about an image",
    "look": "make a page that shows what an encoder sees: patches, attention, data flow, comparison",
    "diagnose": "measure whether a model uses its images, and suggest remedies",
    "models": "list the architectures and their sizes",
    "formats": "list which families are read from which formats, as a table",
    "convert": "write an encoder, or a whole model, in another public format",
    "verify": "compare a saved folder with its manifest: which files and tensors changed",
    "tokens": "write the image tokens of any source of images into a token store",
    "store": "measure, merge or export token stores",
    "serve": "serve a policy to robots: openpi's websocket and OpenVLA's /act on one port",
    "check-data": "check training data: what a source holds, what is wrong with it, what is doubtful",
    "sizes": "count the samples of WebDataset shards, for training on them by URL",
    "robot-data": "make a LeRobotDataset of a folder of episodes",
    "record": "record demonstrations of Meta-World's scripted experts as a LeRobotDataset",
    "emoji": "make a data set of images with captions: every emoji in three styles",
}
"""Command -> its help text; its file has the same name, with _ for -, in commands/ or data_commands/."""
DATA = frozenset({"check-data", "sizes", "robot-data", "record", "emoji"})
"""Commands in data_commands/."""


def main(arguments: "Sequence[str] | None" = None) -> int:
    """Run one command. Wrong input gives one sentence on standard error and exit code 2."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = _parser(given).parse_args(given)
    try:
        options.run(options)
    except BrokenPipeError:
        raise
    except (ValueError, OSError, ImportError) as error:
        from vlm_vision.files import one_line

        print(f"vlm-vision {options.command}: {one_line(error)}", file=sys.stderr)
        return 2
    return 0


def _parser(given: "Sequence[str]") -> Parser:
    """The parser of all commands, with the arguments of the chosen one: the others are not imported."""
    parser = Parser(prog="vlm-vision", description="Vision encoders for language models and robots.")
    parser.add_argument("--version", action="version", version=__version__, help="show the version and exit")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", prog="vlm-vision")
    chosen = next((word for word in given if not word.startswith("-")), None)
    if chosen is not None and chosen not in COMMANDS:
        parser.error(f"there is no command {chosen}: {hint(chosen, COMMANDS, 'vlm-vision --help lists them')}")
    for name, about in COMMANDS.items():
        command = commands.add_parser(name, help=about, description=f"{about[0].upper()}{about[1:]}.")
        if name == chosen:
            folder = "data_commands" if name in DATA else "commands"
            module = import_module(f"vlm_vision.cli.{folder}.{name.replace('-', '_')}")
            command.set_defaults(run=module.run)
            module.add_to(command)
    return parser


def console() -> "NoReturn":
    """Entry point of the console script: `main`, then exit at once. A reader that closes the pipe is no error."""
    try:
        try:
            code = main()
        except SystemExit as end:  # of argparse, or of a recipe
            code = end.code
        except KeyboardInterrupt:
            code = 130
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    if code is not None and not isinstance(code, int):
        print(code, file=sys.stderr)
        code = 1
    _leave(code or 0)


def _leave(code: int) -> "NoReturn":
    """End the process as the interpreter would (threads joined, exit functions run, output written), but without taking
    torch apart object by object, which lasts seconds."""
    if "threading" in sys.modules:
        sys.modules["threading"]._shutdown()
    import atexit

    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    console()
