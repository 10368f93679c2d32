"""Fair timing: the contestants take turns, and only ratios of medians are reported."""

import platform
import random
import statistics
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import torch


def interleaved(contestants: dict[str, Callable[[], object]], *, rounds: int, device: str) -> dict[str, float]:
    """Median seconds of each contestant; in every round each runs once, in an order drawn anew.

    Between two runs is a pause, in which the threads of the one before stop spinning for work.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    names = list(contestants)
    for name in names * 2:  # warm up
        contestants[name]()
    draw = random.Random(0)
    for _ in range(rounds):
        for name in draw.sample(names, len(names)):
            time.sleep(0.05)
            _wait(device)
            start = time.perf_counter()
            contestants[name]()
            _wait(device)
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def machine(device: str) -> str:
    """What the figures depend on, in one line."""
    import transformers

    chip = torch.cuda.get_device_name() if device.startswith("cuda") else f"{_cpu()}, {torch.get_num_threads()} threads"
    versions = f"Python {platform.python_version()}, torch {torch.__version__}, transformers {transformers.__version__}"
    return f"{chip}; {versions}; {date.today().isoformat()}"


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()
