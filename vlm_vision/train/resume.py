"""Checkpoints from which a run goes on as if it had not stopped."""

import json
import logging
import os
import re
import shutil
from pathlib import Path
from typing import Any

from accelerate import Accelerator

log = logging.getLogger(__name__)


def save_checkpoint(accelerator: Accelerator, folder: Path, *, step: int, run: dict[str, Any]) -> None:
    """Write model, optimiser, schedule and random states after `step` steps; then drop the checkpoint before it.

    The folder appears only when it is complete: a kill while writing leaves the one before.

    Args:
        folder: of the run's checkpoints.
        run: what must be the same to go on, kept to be compared.
    """
    staging, final = folder / "writing", folder / f"step-{step:08d}"
    if accelerator.is_main_process:
        shutil.rmtree(staging, ignore_errors=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(staging))
    accelerator.wait_for_everyone()  # every process writes its own random state
    if accelerator.is_main_process:
        (staging / "run.json").write_text(json.dumps({"step": step, "run": run}, indent=2, sort_keys=True))
        older = _checkpoints(folder)
        os.replace(staging, final)
        for path in older:
            if path != final:
                shutil.rmtree(path)
    accelerator.wait_for_everyone()


def load_checkpoint(accelerator: Accelerator, folder: Path, *, run: dict[str, Any]) -> int:
    """Restore the newest checkpoint in `folder` and return its step; 0 if there is none.

    Raises:
        ValueError: the checkpoint is of a run with other settings; they are named.
    """
    found = _checkpoints(folder)
    if not found:
        return 0
    about = json.loads((found[-1] / "run.json").read_text())
    changed = [name for name in sorted(run.keys() | about["run"].keys()) if run.get(name) != about["run"].get(name)]
    if changed:
        told = ", ".join(f"{name} was {about['run'].get(name)!r} and is {run.get(name)!r}" for name in changed[:3])
        raise ValueError(
            f"{found[-1]} belongs to another run: {told}; restore the settings, or choose another output folder"
        )
    accelerator.load_state(str(found[-1]))
    log.info("going on from %s", found[-1])
    return about["step"]


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob("step-*") if re.fullmatch(r"step-\d+", p.name) and (p / "run.json").is_file())
