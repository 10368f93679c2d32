"""Recipes in two processes of one machine. As a script, under torch.distributed.run: the runs that a JSON file lists."""

import json
import os
import signal
import subprocess
import sys
from importlib import import_module
from pathlib import Path

from support.processes import run_together


def run(recipe: str, arguments: list[str]) -> dict:
    """One run in this process."""
    module = import_module(f"recipes.{recipe}")
    return module.main(module.parse(arguments))


def launch(folder: Path, runs: dict[str, dict]) -> dict[str, dict]:
    """Do runs one after another in two processes. Returns what the first process returns of each.

    Args:
        runs: name -> {"recipe", "arguments"}.
    """
    file = folder / "runs.json"
    file.write_text(json.dumps(list(runs.values())))
    run_together(do_runs, file, folder=folder)
    return dict(zip(runs, json.loads(file.with_suffix(".out.json").read_text()), strict=True))


def launch_by_torch(folder: Path, runs: list[dict]) -> subprocess.CompletedProcess:
    """The same by torch.distributed.run, as a user starts several processes."""
    file = folder / "launched.json"
    file.write_text(json.dumps(runs))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    paths = [str(Path(__file__).resolve().parents[1]), environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    command += [str(Path(__file__).resolve()), str(file)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)


def do_runs(file: Path) -> None:
    """What each of the processes does. A run with "dies" kills the second process while it writes its n-th checkpoint."""
    from accelerate.state import PartialState
    from torch.distributed.fsdp import FSDPModule

    from vlm_vision.train.loop import resume, step

    os.environ["ACCELERATE_USE_CPU"] = "true"
    rank, results = int(os.environ["RANK"]), []
    init, random_state, calls = step.Step.__init__, resume._random_state, []

    def counting_init(self, *arguments, **options):
        init(self, *arguments, **options)
        results[-1]["sharded_modules"] = sum(isinstance(module, FSDPModule) for module in self.model.modules())

    def dying_random_state(at: int):
        calls.append(1)
        if rank == 1 and len(calls) == at:  # in the middle of a checkpoint
            os.kill(os.getpid(), signal.SIGKILL)
        return random_state()

    step.Step.__init__ = counting_init
    PartialState.destroy_process_group = lambda *_: None  # the next run needs the processes too
    for each in json.loads(file.read_text()):
        results.append({})
        resume._random_state = (lambda at=each["dies"]: dying_random_state(at)) if "dies" in each else random_state
        results[-1] |= run(each["recipe"], each["arguments"])
    if rank == 0:
        file.with_suffix(".out.json").write_text(json.dumps(results))


if __name__ == "__main__":
    do_runs(Path(sys.argv[1]))
