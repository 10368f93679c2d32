"""Functions in processes of their own, each a fork of one process that has the slow imports behind it."""

import multiprocessing
import os
import socket
import time
from collections.abc import Callable
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path

PRELOADED = [
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "pytest",
    "recipes.vqa",
    "recipes.vla",
    "recipes.self_distill",
]
SECONDS = 600
"""Of all processes that run together, before they are stopped."""


def fresh_context() -> multiprocessing.context.ForkServerContext:
    """Where new processes come from: forks that have the imports and nothing else of this process."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def start(function: Callable, *arguments: object, output: Path, **environment: str) -> BaseProcess:
    """Start function(*arguments) in a new process, with one thread. What it prints goes to the file `output`."""
    settings = dict(os.environ) | environment
    process = fresh_context().Process(target=_run, args=(function, arguments, str(output), settings), daemon=True)
    process.start()
    return process


def run_together(function: Callable, *arguments: object, folder: Path, count: int = 2) -> None:
    """Run function(*arguments) in each of `count` processes that torch.distributed joins.

    Raises:
        AssertionError: one of them fails, or all take too long. It holds the end of what they print.
    """
    with socket.create_server(("127.0.0.1", 0)) as line:
        port = line.getsockname()[1]
    joined = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
    }
    end = fresh_context().Barrier(count)
    outputs = [folder / f"process_{rank}.txt" for rank in range(count)]
    processes = [
        start(
            _one_of_several,
            function,
            arguments,
            end,
            output=outputs[rank],
            **joined,
            RANK=f"{rank}",
            LOCAL_RANK=f"{rank}",
        )
        for rank in range(count)
    ]
    until = time.monotonic() + SECONDS
    while running := [process for process in processes if process.exitcode is None]:
        failed = any(process.exitcode for process in processes)
        if failed or not wait([process.sentinel for process in running], timeout=until - time.monotonic()):
            break
    for process in processes:
        if process.exitcode is None:  # the others failed, or the time is over
            process.kill()
            process.join()
    if any(process.exitcode for process in processes):
        text = "\n".join(output.read_text(errors="replace")[-3000:] for output in outputs)
        raise AssertionError(f"the processes end with {[process.exitcode for process in processes]}:\n{text}")


def _one_of_several(function: Callable, arguments: tuple, end) -> None:
    function(*arguments)
    end.wait(SECONDS)  # one that leaves first would take the connections of those that still work


def _run(function: Callable, arguments: tuple, output: str, environment: dict[str, str]) -> None:
    import torch

    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(1)
    function(*arguments)
