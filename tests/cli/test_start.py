"""`vlm-vision` starts without torch, speaks in one line, and ends at once without losing anything."""

import importlib
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from vlm_vision.checkpoints.save import FORMATS
from vlm_vision.cli import stored, tables
from vlm_vision.cli.commands import convert
from vlm_vision.cli.main import COMMANDS, _parser, main

ROOT = Path(__file__).resolve().parents[2]
HEAVY = {"torch", "numpy", "transformers", "PIL", "accelerate", "jsonargparse", "safetensors", "typing", "dataclasses"}


def python(code: str, *arguments: str, **options) -> subprocess.CompletedProcess:
    """Code in a process of its own, without the packages' .pth files, which import some modules themselves."""
    places = os.pathsep.join(place for place in sys.path if place)
    command = [sys.executable, "-S", "-c", code, *arguments]
    return subprocess.run(command, text=True, env=os.environ | {"PYTHONPATH": places}, timeout=60, **options)


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["models"], ["formats"]], ids=" ".join)
def test_what_needs_no_torch_imports_none(arguments):
    code = """
import atexit, sys
from vlm_vision.cli.main import console
atexit.register(lambda: print(*sys.modules, file=sys.stderr))
console()
"""
    done = python(code, *arguments, capture_output=True)
    assert done.returncode == 0 and len(done.stdout) > 4
    assert "vlm_vision" in done.stderr.split() and not HEAVY & set(done.stderr.split())


def test_the_console_script_calls_console():
    script = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]["vlm-vision"]
    module, _, name = script.partition(":")
    assert callable(getattr(importlib.import_module(module), name)) and script == "vlm_vision.cli.main:console"


@pytest.mark.parametrize("name", ["models", "formats"])
def test_stored_tables_are_those_of_the_code(name):
    stale = "python -m vlm_vision.cli.tables writes it again"
    assert Path(stored.path(name)).read_text(encoding="utf-8") == getattr(tables, name)(), stale


def test_formats_to_write_are_those_of_the_code():
    assert convert.ENCODERS == FORMATS


@pytest.mark.parametrize("arguments", [["models"], ["--help"], ["nothing"]], ids=" ".join)
def test_a_closed_pipe_is_no_error(arguments):
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = python("from vlm_vision.cli.main import console; console()", *arguments, stdout=writer, stderr=-1)
    finally:
        os.close(writer)
    if arguments == ["nothing"]:
        assert done.returncode == 2 and done.stderr.count("\n") == 1
    else:
        assert (done.returncode, done.stderr) == (0, "")


def test_the_end_is_at_once_and_loses_nothing(tmp_path):
    code = """
import atexit, pathlib, sys, tempfile, threading, time
from vlm_vision.cli import main as module

class Slow:
    def __del__(self):
        print("taken apart")

slow, scratch = Slow(), tempfile.TemporaryDirectory(dir=sys.argv[1])

def late():
    time.sleep(0.2)
    print("thread")

def work():
    atexit.register(print, "exit function")
    threading.Thread(target=late).start()
    print("x" * 200_000)
    return 3

module.main = work
module.console()
"""
    done = python(code, str(tmp_path), capture_output=True)
    assert done.returncode == 3 and done.stderr == ""
    assert done.stdout.split("\n") == ["x" * 200_000, "thread", "exit function", ""]
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("end", "code", "says"),
    [
        ("sys.exit(2)", 2, ""),
        ("sys.exit()", 0, ""),
        ("sys.exit('why')", 1, "why\n"),
        ("raise KeyboardInterrupt", 130, ""),
    ],
)
def test_each_end_has_its_exit_code(end, code, says):
    work = f"import sys\nfrom vlm_vision.cli import main as module\ndef work():\n    {end}\nmodule.main = work\nmodule.console()"
    done = python(work, capture_output=True)
    assert (done.returncode, done.stderr) == (code, says)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["modls"], "vlm-vision: there is no command modls: did you mean models?"),
        (["zzz"], "vlm-vision: there is no command zzz: vlm-vision --help lists them"),
        ([], "vlm-vision: the following arguments are required: COMMAND"),
        (["--versoin"], "vlm-vision: unrecognized argument --versoin: did you mean --version?"),
        (["models", "--x"], "vlm-vision models: unrecognized argument --x: see vlm-vision models --help"),
        (["models", "all"], "vlm-vision models: unrecognized arguments: all"),
        (["tokens", "a", "--encodr=b"], "vlm-vision tokens: unrecognized argument --encodr: did you mean --encoder?"),
        (["tokens", "a"], "vlm-vision tokens: the following arguments are required: --encoder, --out"),
        (["train", "mea"], "vlm-vision train: there is no recipe mea: did you mean mae?"),
        (["train", "mae", "--config", "mae_smok"], "vlm-vision train mae: there is no config mae_smok: did you mean mae_smoke?"),
        (["train"], "vlm-vision train: the following arguments are required: NAME"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_what_is_wrong_is_one_line_with_the_nearest_name(arguments, says, capsys):
    try:
        code = main(arguments)
    except SystemExit as end:
        code = end.code
    out, err = capsys.readouterr()
    assert (code, out) == (2, "") and err == says + "\n"


def test_options_may_be_cut_short_and_values_may_be_negative():
    options = _parser(["tokens"]).parse_args(["tokens", "a", "--enc", "b", "--out", "c", "--layer", "-2"])
    assert (options.encoder, options.layer) == ("b", [-2])


@pytest.mark.parametrize("command", COMMANDS)
def test_every_argument_of_every_command_has_a_help_text(command):
    commands = next(action for action in _parser([command])._actions if action.dest == "command")
    assert isinstance(commands.choices, dict)
    actions = commands.choices[command]._actions
    assert not [action.dest for action in actions if not (action.help or "").strip()]
