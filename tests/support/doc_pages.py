"""The pages of the documentation as blocks of code, and how a block is run."""

import re
import shlex
import subprocess
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path

RUN = ("python", "bash")
SHOWN = ("text", "yaml", "json")
"""Languages of blocks that are read and not run."""
_FENCE = re.compile(r"^```(\w*)\s*$")
_MARK = re.compile(r"^<!--\s*(not run|fresh process|server):?\s*(.*?)\s*-->$")


@dataclass
class Block:
    """One fenced block."""

    page: str
    line: int
    language: str
    text: str
    marks: dict[str, str] = field(default_factory=dict)
    """Comments above the block: "not run" with its reason, "fresh process", "server"."""

    @property
    def runs(self) -> bool:
        return self.language in RUN and "not run" not in self.marks


def blocks(file: Path, name: str) -> Iterator[Block]:
    """The blocks of a page, in order."""
    marks: dict[str, str] = {}
    open_block: Block | None = None
    for number, line in enumerate(file.read_text().splitlines(), start=1):
        fence = _FENCE.match(line)
        if open_block is not None and not fence:
            open_block.text += line + "\n"
        elif open_block is not None:
            yield open_block
            open_block, marks = None, {}
        elif fence:
            open_block = Block(name, number, fence[1], "", marks)
        elif mark := _MARK.match(line):
            marks[mark[1]] = mark[2]
        elif line.strip():
            marks = {}


class Page:
    """Runs the blocks of one page in one namespace, in the present folder. Use it as a context: servers end with it."""

    def __init__(self, replaced: dict[str, str]):
        self.replaced, self.names, self.servers = replaced, {"__name__": "__docs__"}, []

    def __enter__(self) -> "Page":
        return self

    def __exit__(self, *_) -> None:
        for server in self.servers:
            server.terminate()
            server.wait(20)
            server.stdout.close()

    def run(self, block: Block) -> None:
        """Raises what the block raises."""
        text = block.text
        for old, new in self.replaced.items():
            text = text.replace(old, new)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if block.language == "bash":
                self._commands(text, server="server" in block.marks)
            elif "fresh process" in block.marks:
                subprocess.run([sys.executable, "-c", text], check=True)
            else:
                code = compile("\n" * block.line + text, block.page, "exec")
                exec(code, self.names)

    def _commands(self, text: str, *, server: bool) -> None:
        ran = 0
        for line in text.replace("\\\n", " ").splitlines():
            for command in line.split("&&"):
                words = shlex.split(command, comments=True)
                if words and words[:2] != ["pip", "install"]:  # the extras are installed where the tests run
                    ran += 1
                    self._serve(words) if server else run_command(words)
        assert ran, f"nothing of this block runs, say so with a mark: {text}"

    def _serve(self, words: list[str]) -> None:
        assert words[0] == "vlm-vision"
        code = "import sys; from vlm_vision.cli.main import main; sys.exit(main())"
        server = subprocess.Popen([sys.executable, "-c", code, *words[1:]], stdout=subprocess.PIPE, text=True)
        self.servers.append(server)
        assert server.stdout is not None and "serving" in server.stdout.readline()


def run_command(words: list[str]) -> None:
    """A command of this project, in this process."""
    if words[0] == "vlm-vision":
        assert _cli(words[1:]) == 0, words
    elif words[:2] == ["python", "-m"] and words[2].startswith("recipes."):
        recipe = import_module(words[2])
        recipe.main(recipe.parse(words[3:]))
    else:
        raise AssertionError(
            f"{' '.join(words)} is no command of this project: mark its block as not run, with a reason"
        )


def _cli(arguments: list[str]) -> int:
    from vlm_vision.cli.main import main

    return main(arguments)
