"""Checkpoints from which a run resumes as if it had not stopped.

A checkpoint holds what training changes: weights that train and their averages (`EmaTeacher`), the optimizer's state, the
schedule, the gradient scaler and each process's random state. Frozen weights are not stored: they are loaded from their source.
torch.distributed.checkpoint writes the tensors, sharded or not; each process writes its part.
"""

import json
import logging
import os
import random
import re
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.optim.lr_scheduler import LRScheduler

from vlm_vision.train.optim.ema import EmaTeacher
from vlm_vision.train.settings import RENAMED

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunState:
    """What a checkpoint keeps."""

    model: nn.Module
    """Model without the wrapper of DDP; it may be sharded."""
    optimizer: torch.optim.Optimizer
    schedule: LRScheduler
    run: dict[str, Any]
    """Settings that must be equal when the run resumes, as JSON."""


def save_checkpoint(accelerator: Accelerator, folder: Path, state: RunState, *, step: int) -> None:
    """Write the state after `step` steps; then drop the checkpoint before it. Every process must call it.

    The folder appears only when it is complete: a kill while writing leaves the one before.

    Args:
        folder: of the run's checkpoints, seen by all processes.
    """
    staging, final = folder / "writing", folder / f"step-{step:08d}"
    if accelerator.is_main_process:
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
    accelerator.wait_for_everyone()
    moments = {
        f"optimizer.{name}.{key}": value
        for name, weight in _trained(state.model).items()
        for key, value in state.optimizer.state.get(weight, {}).items()
    }
    with _alone_or_together():
        save(_tensors(state.model) | moments, checkpoint_id=str(staging))
    torch.save(_random_state(), staging / f"random-{accelerator.process_index}.pt")
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        scaler = accelerator.scaler.state_dict() if accelerator.scaler is not None else {}
        rates = [group["lr"] for group in state.optimizer.param_groups]
        torch.save({"schedule": state.schedule.state_dict(), "rates": rates, "scaler": scaler}, staging / "rest.pt")
        (staging / "run.json").write_text(json.dumps({"step": step, "run": state.run}, indent=2, sort_keys=True))
        older = _checkpoints(folder)
        os.replace(staging, final)
        for path in older:
            if path != final:
                shutil.rmtree(path)
    accelerator.wait_for_everyone()


def load_checkpoint(accelerator: Accelerator, folder: Path, state: RunState) -> int:
    """Restore the newest checkpoint in `folder` and return its step; 0 if there is none. Every process must call it.

    A run also resumes with another number of processes, but then its random numbers (dropout) differ.

    Raises:
        ValueError: the checkpoint is of a run with other settings; they are named.
    """
    found = _checkpoints(folder)
    if not found:
        return 0
    newest = found[-1]
    about, run = json.loads((newest / "run.json").read_text()), state.run
    before: dict[str, Any] = {RENAMED.get(name) or name: value for name, value in about["run"].items()}
    changed = [name for name in sorted(run.keys() | before.keys()) if run.get(name) != before.get(name)]
    if changed:
        changes = ", ".join(f"{name} was {before.get(name)!r} and is {run.get(name)!r}" for name in changed[:3])
        raise ValueError(
            f"{newest} belongs to another run: {changes}; restore the settings, or choose another output folder"
        )
    tensors, moments = _tensors(state.model), _empty_moments(newest, state.model)
    flat = {f"optimizer.{name}.{key}": value for (name, key), value in moments.items()}
    with _alone_or_together():
        load(tensors | flat, checkpoint_id=str(newest))
    trained = _trained(state.model)
    for (name, key), value in moments.items():
        state.optimizer.state[trained[name]][key] = value
    rest = torch.load(newest / "rest.pt", weights_only=True)
    state.schedule.load_state_dict(rest["schedule"])
    for group, rate in zip(state.optimizer.param_groups, rest["rates"], strict=True):
        group["lr"] = rate
    if accelerator.scaler is not None:
        accelerator.scaler.load_state_dict(rest["scaler"])
    drawn = newest / f"random-{accelerator.process_index}.pt"
    if drawn.is_file() and len(list(newest.glob("random-*.pt"))) == accelerator.num_processes:
        _set_random_state(torch.load(drawn, weights_only=True))
    log.info("resuming from %s", newest)
    return about["step"]


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob("step-*") if re.fullmatch(r"step-\d+", p.name) and (p / "run.json").is_file())


def _trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """What a step may change in the model; the model's own tensors, to be read or written in place."""
    averages = {weight for part in model.modules() if isinstance(part, EmaTeacher) for weight in part.parameters()}
    weights = {
        f"model.{name}": weight.detach()
        for name, weight in model.named_parameters()
        if weight.requires_grad or weight in averages
    }
    return weights | {f"model.{name}": buffer for name, buffer in model.named_buffers()}


def _empty_moments(checkpoint: Path, model: nn.Module) -> dict[tuple[str, str], Tensor]:
    """(name of the weight, name of the state) -> a tensor to read it into, for all that the checkpoint has."""
    stored: dict[str, Any] = FileSystemReader(checkpoint).read_metadata().state_dict_metadata
    trained, found = _trained(model), {}
    for path in (path for path in stored if path.startswith("optimizer.")):
        name, _, key = path.removeprefix("optimizer.").rpartition(".")
        weight, size = trained[name], stored[path].size
        found[name, key] = torch.zeros_like(weight) if size == weight.shape else torch.zeros(size)
    return found


def _random_state() -> dict[str, Any]:
    kind, keys, *rest = np.random.get_state()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest),
    }


def _set_random_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
    random.setstate(state["python"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))


@contextmanager
def _alone_or_together() -> Iterator[None]:
    """Without the warning of torch.distributed.checkpoint that a single process is a single process."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")
        yield
