"""Settings that every recipe has, typed and out of YAML; the processes, the seed and the run's folder."""

import logging
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, TypeVar

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
from jsonargparse import ArgumentParser

LONGEST_WAIT = timedelta(hours=6)
"""Of a process for another one, which may encode all images or load a large model meanwhile."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """How a run trains, whatever it trains."""

    out: str
    """Folder for everything the run writes."""
    steps: int = 1000
    """Optimizer steps."""
    batch_size: int = 64
    """Records per step, over all processes."""
    micro_batch_size: int = 64
    """Records per forward pass of each process."""
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.01
    warmup_steps: int = 100
    max_grad_norm: float = 1.0
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    gradient_checkpointing: bool = False
    """Compute each layer again in the backward pass: less memory, a third more time."""
    sharding: Literal["none", "fsdp2"] = "none"
    """How several processes share the model: each has a copy (DDP), or its part (FSDP2)."""
    workers: int = 0
    """Processes that read images."""
    checkpoint_every: int = 500
    """Steps between checkpoints."""
    eval_every: int = 0
    """Steps between looks at the test data; 0 for only at the end."""
    log_every: int = 10
    """Steps between figures for the tracker."""
    peak_tflops: float = 0.0
    """What one device can do in the precision of the run, for model FLOPs utilization among the figures (Chowdhery et al. 2022,
    appendix B; torch counts the products of one step, recomputation included); 0 for none. H100, bf16: 989."""
    tracker: str = "tensorboard"
    """Who keeps the figures: none, or one that accelerate knows. TensorBoard's files are in `out`/logs."""
    seed: int = 0

    def __post_init__(self):
        self._at_least(1, "steps", "batch_size", "micro_batch_size", "checkpoint_every", "log_every")
        self._at_least(0, "warmup_steps", "eval_every", "workers", "peak_tflops")
        if self.sharding == "fsdp2" and self.mixed_precision == "fp16":
            raise ValueError("sharding fsdp2 has no gradient scaler for fp16: choose mixed_precision bf16 or no")

    def _at_least(self, least: int, *names: str) -> None:
        for name in names:
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be at least {least}")

    def resume_fields(self) -> dict[str, Any]:
        """What must stay the same for a stopped run to go on, as YAML and JSON write it."""
        plain = {name: value for name, value in as_plain(self).items() if not name.startswith("eval")}
        if "data" in plain:
            plain["data"] = {name: value for name, value in plain["data"].items() if name not in _FREE_DATA}
        return {name: value for name, value in plain.items() if name not in _FREE}


_FREE = ("out", "feature_folder", "checkpoint_every", "workers", "log_every", "peak_tflops", "tracker")
"""Settings that do not change what is learned; those that begin with eval do not either."""
_FREE_DATA = ("cache", "cache_gb", "memory")
"""Those of the data."""

S = TypeVar("S")


def as_plain(settings: Training) -> dict[str, Any]:
    """The settings as YAML and JSON write them."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(settings).items()}


def parse_config(kind: type[S], name: str, about: str | None, arguments: list[str] | None = None) -> S:
    """Typed settings from --config FILE.yaml and --key value."""
    parser = ArgumentParser(prog=f"python -m {name}", description=about)
    parser.add_argument("--config", action="config", help="YAML file; later arguments override it")
    parser.add_class_arguments(kind, as_positional=False)
    settings = parser.instantiate(parser.parse_args(arguments))
    return kind(**{name: value for name, value in settings.items() if name != "config"})


def run_cli(name: str, job: Callable[[], object]) -> None:
    """Do the job of a script; what the user can put right is said in one sentence, with exit code 2."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        job()
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"{name}: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)


def start_run(settings: Training) -> Accelerator:
    """The processes, the seed and the run's folder.

    Raises:
        ValueError: a tracker that is not known or not installed, or a precision that this machine does not have.
    """
    if settings.tracker != "none" and settings.tracker not in LOGGER_TYPE_TO_CLASS:
        raise ValueError(f"tracker is {settings.tracker!r}: expected none or one of {', '.join(LOGGER_TYPE_TO_CLASS)}")
    if settings.tracker != "none" and settings.tracker not in map(str, get_available_trackers()):
        raise ValueError(
            f"tracker {settings.tracker} is not installed: pip install {settings.tracker}, or set tracker: none"
        )
    out = Path(settings.out)
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
        raise ValueError(f"mixed_precision fp16 is not for {accelerator.device.type}: choose bf16 or no")
    if not accelerator.is_main_process:
        logging.getLogger().setLevel(logging.WARNING)
    set_seed(settings.seed)
    out.mkdir(parents=True, exist_ok=True)
    return accelerator


def write_config(settings: Training) -> None:
    """config.yaml in the run's folder, from which the run can be started again."""
    (Path(settings.out) / "config.yaml").write_text(yaml.safe_dump(as_plain(settings), sort_keys=False))
