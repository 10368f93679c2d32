"""Recipes in two processes of one machine. As a script, under torch.distributed.run: the runs that a JSON file lists."""

import importlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from accelerate.state import PartialState


def launch(folder: Path, name: str, runs: list[dict]) -> subprocess.CompletedProcess:
    """The runs, in two processes."""
    (folder / f"{name}.json").write_text(json.dumps(runs))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    command += [str(Path(__file__).resolve()), str(folder / f"{name}.json")]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)


def run(recipe: str, arguments: list[str]) -> dict:
    """One run in this process."""
    module = importlib.import_module(f"recipes.{recipe}")
    return module.main(module.parse(arguments))


def _runs(file: Path) -> None:
    """What `launch` starts in each process."""
    from torch.distributed.fsdp import FSDPModule

    from vlm_vision.train.loop import resume, step

    rank, found = int(os.environ["RANK"]), []
    made, drawn, calls = step.Step.__init__, resume._random_state, []

    def noted(self, *given, **options):
        made(self, *given, **options)
        found[-1]["sharded_modules"] = sum(isinstance(module, FSDPModule) for module in self.model.modules())

    def dies(at: int):
        calls.append(1)
        if rank == 1 and len(calls) == at:  # in the middle of a checkpoint
            os.kill(os.getpid(), signal.SIGKILL)
        return drawn()

    step.Step.__init__ = noted
    PartialState.destroy_process_group = lambda *_: None  # the next run needs the processes too
    for one in json.loads(file.read_text()):
        found.append({})
        resume._random_state = (lambda at=one["dies"]: dies(at)) if "dies" in one else drawn
        metrics = run(one["recipe"], one["arguments"])
        wanted = ("losses", "first_step", "processes", *(key for key in metrics if key.startswith("eval_")))
        found[-1] |= {key: metrics[key] for key in wanted}
    if rank == 0:
        file.with_suffix(".out.json").write_text(json.dumps(found))


if __name__ == "__main__":
    _runs(Path(sys.argv[1]))
