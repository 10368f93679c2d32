"""A signal while a run trains: a checkpoint, one sentence, the exit code of the signal; the run resumes to the same end."""

import os
import signal

import pytest
import torch
from torch import nn

from vlm_vision.train.loop.step import Progress, Step, Task
from vlm_vision.train.loop.stop import StopSignal
from vlm_vision.train.settings import Training
from vlm_vision.train.start import start_run

STEPS = 6


def run(out, *, signal_at: int | None = None, number: int = signal.SIGTERM) -> torch.Tensor:
    """Train a linear map, with a signal in the middle of a step. Returns its weights."""
    settings = Training(out=str(out), steps=STEPS, batch_size=4, micro_batch_size=4, warmup_steps=1, tracker="none")
    accelerator = start_run(settings)
    model = nn.Linear(3, 1)

    def loss(model: nn.Module, batch: dict) -> torch.Tensor:
        if signal_at is not None and batch["step"][0] == signal_at:
            os.kill(os.getpid(), number)
        return model(batch["x"]).square().sum()

    task = Task(
        loss=loss,
        terms=lambda batch: torch.tensor(len(batch["x"])),
        unit="sample",
        parts=lambda model: {"all": model},
        groups=lambda model: [{"params": list(model.parameters()), "lr": 0.1}],
        layers=(),
    )
    step = Step(settings, accelerator, model, task)
    first = step.resume()
    with Progress(step, name="test", first_step=first) as progress:
        for index in range(first, STEPS):
            x = torch.randn(4, 3, generator=torch.Generator().manual_seed(index))
            progress.took(index + 1, step(index, [{"x": x, "step": torch.full((4,), index)}]))
    return model.weight.detach().clone()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_leaves_a_checkpoint_from_which_the_run_resumes(tmp_path, capsys, number, code):
    whole = run(tmp_path / "whole")
    handlers = [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(SystemExit) as ended:
        run(tmp_path / "stopped", signal_at=2, number=number)
    assert ended.value.code == code
    assert (
        f"stopped by {number.name}: the state after 3 steps is kept, and the same command resumes"
        in capsys.readouterr().err
    )
    assert [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert torch.equal(run(tmp_path / "stopped"), whole)


def test_a_second_signal_is_not_held_back():
    with StopSignal() as stopped:
        os.kill(os.getpid(), signal.SIGINT)
        assert stopped.number == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            signal.pause()
