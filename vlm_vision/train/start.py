"""The start of a run: the processes, the seed and the run's folder."""

import json
import logging
from datetime import timedelta
from pathlib import Path

import yaml
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from accelerate.utils import (
    DistributedDataParallelKwargs,
    InitProcessGroupKwargs,
    ProjectConfiguration,
    set_seed,
)

from vlm_vision.files import check_folder
from vlm_vision.train.settings import Training, as_plain

LONGEST_WAIT = timedelta(hours=6)
"""Timeout of a process that waits for another one, which may encode all images or load a large model."""


def start_run(settings: Training) -> Accelerator:
    """The processes, the seed and the run's folder.

    Raises:
        ValueError: a tracker that is not known or not installed, a file in place of the folder, or a precision that this machine does not have.
    """
    if settings.tracker != "none" and settings.tracker not in LOGGER_TYPE_TO_CLASS:
        raise ValueError(f"tracker is {settings.tracker!r}: expected none or one of {', '.join(LOGGER_TYPE_TO_CLASS)}")
    if settings.tracker != "none" and settings.tracker not in map(str, get_available_trackers()):
        raise ValueError(
            f"tracker {settings.tracker} is not installed: pip install {settings.tracker}, or set tracker: none"
        )
    out = Path(settings.out)
    check_folder(out)
    AcceleratorState._reset_state()  # a run before this one in the same process may have had another precision
    accelerator = Accelerator(
        mixed_precision=settings.mixed_precision,
        log_with=None if settings.tracker == "none" else settings.tracker,
        project_config=ProjectConfiguration(project_dir=str(out), logging_dir=str(out / "logs")),
        kwargs_handlers=[
            DistributedDataParallelKwargs(find_unused_parameters=True),  # an expert may have had nothing to do
            InitProcessGroupKwargs(timeout=LONGEST_WAIT),
        ],
    )
    if settings.mixed_precision == "fp16" and accelerator.scaler is None:
        raise ValueError(f"mixed_precision fp16 does not work on {accelerator.device.type}: choose bf16 or no")
    if not accelerator.is_main_process:
        logging.getLogger().setLevel(logging.WARNING)
    _check_finished(settings)
    set_seed(settings.seed)
    out.mkdir(parents=True, exist_ok=True)
    accelerator.wait_for_everyone()
    if settings.overwrite and accelerator.is_main_process:
        (out / "metrics.json").unlink(missing_ok=True)
    return accelerator


def _check_finished(settings: Training) -> None:
    """Raise ValueError where `out` holds a finished run with other settings, unless it may be overwritten."""
    out = Path(settings.out)
    if settings.overwrite or not (out / "metrics.json").is_file() or not (out / "config.yaml").is_file():
        return
    try:
        before = yaml.safe_load((out / "config.yaml").read_text())
    except (yaml.YAMLError, UnicodeDecodeError):
        return
    now = json.loads(json.dumps(settings.resume_fields()))
    for name, value in now.items() if isinstance(before, dict) else ():
        old = before.get(name)
        if isinstance(value, dict) and isinstance(old, dict):
            old = {key: old.get(key) for key in value}
        if name in before and json.loads(json.dumps(old)) != value:
            raise ValueError(
                f"{out} belongs to another run: {name} was {str(old)[:80]} and is {str(value)[:80]}; it is finished, so choose another "
                "output folder, or pass --overwrite true to replace it"
            )


def write_config(settings: Training) -> None:
    """config.yaml in the run's folder, from which the run can be started again."""
    (Path(settings.out) / "config.yaml").write_text(yaml.safe_dump(as_plain(settings), sort_keys=False))
