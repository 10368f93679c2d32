"""A run whose loss or gradient is no number says where, and keeps the state before; what a step costs."""

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from vlm_vision.train.loop import resume
from vlm_vision.train.loop.nonfinite import first_bad_gradient, first_bad_module
from vlm_vision.train.loop.step import Step, Task
from vlm_vision.train.settings import Training


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.blocks = nn.Linear(4, 8), nn.ModuleList([nn.Linear(8, 8) for _ in range(3)])

    def forward(self, x):
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return x


def step_of(model: nn.Module, out, **settings) -> Step:
    task = Task(
        loss=lambda model, batch: model(batch["x"]).square().mean(-1).sum(),
        terms=lambda batch: torch.tensor(len(batch["x"])),
        unit="row",
        parts=lambda model: {"all": model},
        groups=lambda model: [{"params": list(model.parameters()), "lr": 1e-3}],
        layers=(),
    )
    return Step(Training(out=str(out), tracker="none", **settings), Accelerator(), model, task)


def test_the_first_module_that_makes_a_bad_number_is_named(tmp_path):
    model, x = Net(), torch.ones(2, 4)
    assert first_bad_module(model, [lambda: model(x)]) == "the loss itself"
    with torch.no_grad():
        model.blocks[1].bias[3] = float("inf")
    assert first_bad_module(model, [lambda: model(x)]) == "blocks.1"
    step = step_of(model, tmp_path)
    with pytest.raises(FloatingPointError, match="the loss is inf at step 3, first in blocks.1: lower .* state before"):
        step(3, [{"x": x}])
    (kept,) = resume._checkpoints(tmp_path / "failed")
    assert kept.name == "step-00000003" and not (tmp_path / "checkpoints").exists()


def test_the_first_weight_with_a_bad_gradient_is_named(tmp_path):
    model = Net()
    model.blocks[2].weight.register_hook(lambda gradient: gradient * float("nan"))
    before = [weight.detach().clone() for weight in model.parameters()]
    with pytest.raises(FloatingPointError, match="the gradient norm is nan at step 0, first in blocks.2.weight"):
        step_of(model, tmp_path)(0, [{"x": torch.ones(2, 4)}])
    assert first_bad_gradient(model) == "blocks.2.weight"
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))


def test_the_products_of_a_step_are_counted_once_for_each_term(tmp_path):
    step = step_of(Net(), tmp_path, peak_tflops=1.0)
    step(0, [{"x": torch.ones(6, 4)}, {"x": torch.ones(2, 4)}])
    weights, first = 4 * 8 + 3 * 8 * 8, 4 * 8  # a forward, two products backward; none for the input of the first
    assert step.flops_per_term == 2 * (3 * weights - first)
    quiet = step_of(Net(), tmp_path)
    quiet(0, [{"x": torch.ones(6, 4)}])
    assert quiet.flops_per_term == 0
