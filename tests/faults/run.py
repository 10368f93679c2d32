"""Put known faults into a copy of the project, one at a time, and see whether the tests catch each.

    python -m tests.faults.run                    all faults
    python -m tests.faults.run NAME ...           these
    python -m tests.faults.run --tree DIR         on the code and the tests of another checkout

Prints one line for each fault and a total. Exit code 0: all are caught; 1: one is missed, or a test fails without a fault.
"""

import argparse
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
import types
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parent
SECONDS = 900
"""Of one pytest run before it is stopped: a fault that makes its tests hang is not caught."""


PRELOADED = ("torch", "transformers", "peft", "accelerate")
"""What nearly every test imports; of the project nothing, since its code is about to change."""
# No bytecode: a file that is changed and put back within a second would pass for the one before.
SETTINGS = {"PYTHONDONTWRITEBYTECODE": "1", "HF_HUB_OFFLINE": "1"}
SETTINGS |= {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}


@dataclass(frozen=True)
class Fault:
    """A human mistake in one place of one file.

    Args:
        name: of its file.
        what: the mistake, in one line.
        file: where it is, from the root of the checkout.
        old, new: text of the file, and what stands there with the mistake.
        tests: pytest files or node ids that catch it.
    """

    name: str
    what: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    def problem(self, root: Path) -> str | None:
        """Why it does not apply to a checkout, in one sentence; None if it does."""
        path = root / self.file
        count = path.read_text(encoding="utf-8").count(self.old) if path.is_file() else -1
        if count != 1:
            state = "is not there" if count < 0 else f"holds its old text {count} times"
            return f"{self.name}: {self.file} {state}, expected once; the text is in {self._holders(root)}"
        for test in self.tests:
            file, _, function = test.partition("[")[0].partition("::")
            if not (root / file).is_file():
                return f"{self.name}: there is no test file {file}: name the one that catches the fault"
            if function and not re.search(rf"^def {re.escape(function)}\(", (root / file).read_text(), re.MULTILINE):
                return f"{self.name}: {file} has no test {function}: name the one that catches the fault"
        return None

    def _holders(self, root: Path) -> str:
        files = [path for folder in ("vlm_vision", "projectors", "recipes") for path in (root / folder).rglob("*.py")]
        names = [str(path.relative_to(root)) for path in files if self.old in path.read_text(encoding="utf-8")]
        return ", ".join(names) or "no file"

    def put_into(self, root: Path) -> str:
        """Write the mistake into a checkout. Returns the text of the file without it."""
        path = root / self.file
        text = path.read_text(encoding="utf-8")
        path.write_text(text.replace(self.old, self.new), encoding="utf-8")
        return text


def read_faults(names: Iterable[str] = ()) -> list[Fault]:
    """All faults, or those of these names.

    Raises:
        ValueError: an unknown name, or a file with other fields than a fault has.
    """
    files = {path.stem: path for path in sorted(FOLDER.glob("*.toml"))}
    names = list(names) or list(files)
    if unknown := [name for name in names if name not in files]:
        raise ValueError(f"there is no fault {', '.join(unknown)}: the faults are {', '.join(files)}")
    faults = []
    for name in names:
        fields = tomllib.loads(files[name].read_text(encoding="utf-8"))
        if fields.keys() != {"what", "file", "old", "new", "tests"}:
            raise ValueError(
                f"{files[name].name} has the fields {', '.join(fields)}: expected what, file, old, new, tests"
            )
        tests = tuple(fields.pop("tests"))
        faults.append(Fault(name, **fields, tests=tests))
    return faults


def copy_tree(tree: Path, folder: Path) -> Path:
    """Copy the tracked files of a checkout into a new folder, and link the folder shared that lies beside it."""
    root = folder / "checkout"
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=tree, check=True, capture_output=True, text=True).stdout
    for name in filter(None, listed.split("\0")):
        if (tree / name).is_file():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(tree / name, root / name)
    if (shared := tree.parent / "shared").is_dir():
        (folder / "shared").symlink_to(shared.resolve())
    return root


def run_tests(root: Path, tests: Iterable[str]) -> tuple[int, str]:
    """pytest's exit code and output; code -1 after SECONDS.

    In a fork of this process, which has the slow imports behind it and none of the project.
    """
    with tempfile.TemporaryFile("w+") as output:
        process = multiprocessing.get_context("fork").Process(target=_pytest, args=(root, list(tests), output.fileno()))
        process.start()
        process.join(SECONDS)
        if process.exitcode is None:
            os.killpg(process.pid or 0, signal.SIGKILL)
            return -1, ""
        output.seek(0)
        return process.exitcode, output.read()


def _pytest(root: Path, tests: list[str], output: int) -> None:
    os.setsid()  # what the tests start ends with them
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.chdir(root)
    os.environ["PYTHONPATH"] = sys.path[0] = str(root)
    for name in [name for name in sys.modules if name.split(".")[0] == "tests"]:
        del sys.modules[name]
    sys.modules["__main__"] = types.ModuleType("__main__")  # spawned processes would import the main module again
    one_process = ["-n", "0"] if find_spec("xdist") else []
    options = [*one_process, "-x", "-q", "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestAssertRewriteWarning"]
    sys.exit(pytest.main([*options, *tests]))


def verdict(root: Path, fault: Fault) -> str:
    """What the tests of a fault say to it."""
    text = fault.put_into(root)
    code, _ = run_tests(root, fault.tests)
    (root / fault.file).write_text(text, encoding="utf-8")
    # 1: tests ran and one failed. All else, such as code that cannot be imported, says nothing of the tests.
    return {0: "missed", 1: "caught", -1: "hung"}.get(code, f"broken (pytest ends with {code})")


def main(arguments: list[str] | None = None) -> int:
    """The command. Returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.faults.run", description="See whether the tests catch faults."
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="faults to try; default all")
    parser.add_argument(
        "--tree", type=Path, default=FOLDER.parents[1], help="checkout to try them on; default this one"
    )
    given = parser.parse_args(arguments)
    began = time.monotonic()
    try:
        faults = read_faults(given.names)
    except ValueError as error:
        parser.error(str(error))
    with tempfile.TemporaryDirectory() as folder:
        root = copy_tree(given.tree.resolve(), Path(folder))
        if problems := [problem for fault in faults if (problem := fault.problem(root))]:
            print("\n".join(problems))
            return 1
        os.environ |= SETTINGS
        sys.dont_write_bytecode = True
        for name in PRELOADED:
            import_module(name)
        code, output = run_tests(root, dict.fromkeys(test for fault in faults for test in fault.tests))
        if code:
            print(f"{output}\nthe tests fail without any fault: mend them first")
            return 1
        print(f"without a fault: {output.strip().splitlines()[-1]}", flush=True)
        verdicts = []
        for fault in faults:
            start = time.monotonic()
            verdicts.append(verdict(root, fault))
            print(f"{verdicts[-1]:8} {fault.name}: {fault.what} ({time.monotonic() - start:.0f} s)", flush=True)
    caught = verdicts.count("caught")
    print(f"{caught} of {len(faults)} faults are caught, {time.monotonic() - began:.0f} s")
    return 0 if caught == len(faults) else 1


if __name__ == "__main__":
    sys.exit(main())
