"""One optimizer step over micro-batches and processes, with its figures."""

import json
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from signal import Signals
from types import TracebackType
from typing import NoReturn, Self

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.utils.flop_counter import FlopCounterMode
from tqdm.auto import tqdm

from vlm_vision.train.loop.nonfinite import ADVICE, first_bad_gradient, first_bad_module
from vlm_vision.train.loop.resume import RunState, load_checkpoint, save_checkpoint
from vlm_vision.train.loop.shard import accumulate_gradients, gather, gather_full_tensor, shard, unsharded
from vlm_vision.train.loop.stop import StopSignal
from vlm_vision.train.optim.groups import warmup_cosine
from vlm_vision.train.settings import Training
from vlm_vision.train.start import write_config

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class StepResult:
    """Result of one step."""

    loss: Tensor
    """Mean loss over the terms of the step in all processes."""
    terms: Tensor
    gradients: dict[str, Tensor]
    """Norm of the gradient of each group of parameters, before clipping."""


@dataclass(frozen=True)
class Task:
    """Definition of a step: its loss, its terms, and the weights that train."""

    loss: Callable[[nn.Module, Batch], Tensor]
    """Function (wrapped model, micro-batch) -> sum of the loss over the terms of the micro-batch, a scalar."""
    terms: Callable[[Batch], Tensor]
    """Number of terms in a micro-batch. The loss of a step is the mean over the terms of all its micro-batches."""
    unit: str
    """Name of a term in figures."""
    parts: Callable[[nn.Module], dict[str, nn.Module]]
    """Modules of the model whose gradients are reported, by name."""
    groups: Callable[[nn.Module], list[dict]]
    """AdamW groups of the model."""
    layers: Collection[str]
    """Names of the layer classes that are sharded one by one."""
    aside: Collection[nn.Module] = ()
    """Modules of the model that do not train and stay whole in every process."""
    lr_end: float = 0.0
    """Final learning rate as a share of the peak; 1 for a constant rate after the warm-up."""


class Step:
    """Model, optimizer and schedule of a run, in one process or in one of many.

    Args:
        model: on any device; it is moved, and sharded where `settings.sharding` says so.
    """

    def __init__(self, settings: Training, accelerator: Accelerator, model: nn.Module, task: Task):
        self.settings, self.accelerator, self.task = settings, accelerator, task
        self.sharded = settings.sharding == "fsdp2" and accelerator.num_processes > 1
        if self.sharded:
            dtype = torch.bfloat16 if settings.mixed_precision == "bf16" else None
            shard(model, accelerator.device, layers=task.layers, aside=task.aside, dtype=dtype)
        else:
            model.to(accelerator.device)
        self.parts, optimized = task.parts(model), task.groups(model)
        self.weights: list[nn.Parameter] = [weight for group in optimized for weight in group["params"]]
        fused = accelerator.scaler is None  # else it would leave out a step by itself, and accelerate not know
        self.optimizer = torch.optim.AdamW(optimized, betas=settings.betas, fused=fused)
        self.schedule = warmup_cosine(
            self.optimizer, warmup_steps=settings.warmup_steps, steps=settings.steps, end=task.lr_end
        )
        self.trained, self.stepper = model, self.optimizer
        if not self.sharded:
            self.trained, self.stepper = accelerator.prepare(model, self.optimizer)
        self.flops_per_term, self.stopped = 0.0, StopSignal()
        if accelerator.process_index:  # the first process draws as it would alone, each other one differently
            torch.manual_seed(settings.seed + accelerator.process_index)

    def __call__(self, index: int, micro_batches: Sequence[Batch]) -> StepResult:
        """Take step `index`. Every process has its own micro-batches, as many as the others.

        Raises:
            FloatingPointError: loss or gradients are not finite. It names the module, and where the state before this step
                was written.
        """
        accelerator = self.accelerator
        if self.stopped.number:
            self._end_by_signal(index)
        micro_batches = [_to(batch, accelerator.device) for batch in micro_batches]
        if self.settings.peak_tflops and not self.flops_per_term:
            with FlopCounterMode(display=False) as counter:
                taken = self._taken(index, micro_batches)
            flops = torch.tensor(float(counter.get_total_flops()), device=accelerator.device)
            self.flops_per_term = (self._over_processes(flops) / taken.terms).item()
            return taken
        return self._taken(index, micro_batches)

    def _taken(self, index: int, micro_batches: Sequence[Batch]) -> StepResult:
        accelerator = self.accelerator
        terms = self._over_processes(torch.stack([self.task.terms(batch) for batch in micro_batches]).sum())
        loss = torch.zeros((), device=accelerator.device)
        for i, batch in enumerate(micro_batches):
            with self._summing(last=i + 1 == len(micro_batches)), self._attention():
                part = self._forward(batch) / terms
                # Both kinds of parallel training average gradients over processes; the sum is wanted.
                accelerator.backward(part * accelerator.num_processes)
            loss += part.detach()
        loss = self._over_processes(loss)
        if not loss.isfinite():
            forwards = [partial(self._forward, batch) for batch in micro_batches]
            self._stop(index, "loss", loss, lambda: first_bad_module(self.trained, forwards))
        accelerator.unscale_gradients()
        gradients = {name: _norm(part.parameters()) for name, part in self.parts.items()}
        norm = _norm(self.weights)
        if accelerator.scaler is None and not norm.isfinite():  # a scaler skips such a step
            self._stop(index, "gradient norm", norm, lambda: first_bad_gradient(self.trained))
        clip_grads_with_norm_(self.weights, self.settings.max_grad_norm, norm)
        self.stepper.step()
        if not accelerator.optimizer_step_was_skipped:
            self.schedule.step()
        self.stepper.zero_grad()
        return StepResult(loss, terms, gradients)

    def _attention(self) -> AbstractContextManager:
        """On a CPU the gradient of PyTorch's fused attention is slow in bfloat16: a step may take 1.5 times as long with it."""
        plain = self.accelerator.device.type == "cpu" and self.settings.mixed_precision == "bf16"
        return sdpa_kernel(SDPBackend.MATH) if plain else nullcontext()

    def _forward(self, batch: Batch) -> Tensor:
        with self.accelerator.autocast():
            return self.task.loss(self.trained, batch)

    def _stop(self, index: int, what: str, value: Tensor, find: Callable[[], str]) -> NoReturn:
        folder = Path(self.settings.out) / "failed"
        save_checkpoint(self.accelerator, folder, self._state(), step=index)
        raise FloatingPointError(
            f"the {what} is {value.item()} at step {index}, first in {find()}: {ADVICE}; "
            f"the state before this step is in {folder}"
        )

    @property
    def model(self) -> nn.Module:
        """The model that trains, without the wrapper of DDP: to measure, and to keep its state."""
        return self.trained if self.sharded else self.accelerator.unwrap_model(self.trained)

    @contextmanager
    def measured(self) -> Iterator[None]:
        """Inside, parts of the model can be called without gradient. Every process must enter."""
        with torch.no_grad(), unsharded(self.trained) if self.sharded else nullcontext():
            yield

    def rates(self) -> dict[str, float]:
        """Present learning rate of each group that trains."""
        at = {id(weight): group["lr"] for group in self.optimizer.param_groups for weight in group["params"]}
        own = {name: [at[id(w)] for w in part.parameters() if id(w) in at] for name, part in self.parts.items()}
        return {name: found[0] for name, found in own.items() if found}

    def resume(self) -> int:
        """Restore the run's newest checkpoint. Returns the number of steps it has taken."""
        first_step = load_checkpoint(self.accelerator, self._checkpoints, self._state())
        if self.accelerator.is_main_process:
            write_config(self.settings)
        return first_step

    def save(self, steps: int) -> None:
        """Write a checkpoint after so many steps."""
        save_checkpoint(self.accelerator, self._checkpoints, self._state(), step=steps)

    def _end_by_signal(self, steps: int) -> None:
        """End after a signal. One process writes a checkpoint first; many may have got it at different steps."""
        alone = self.accelerator.num_processes == 1
        if alone and steps:
            self.save(steps)
        kept = f"the state after {steps} steps is kept" if alone else "the last checkpoint is kept"
        self.stopped.end(f"stopped by {Signals(self.stopped.number).name}: {kept}, and the same command resumes")

    def whole_model(self, build: Callable[[], nn.Module]) -> nn.Module:
        """The trained model, not sharded, in the main process. Every process must call it.

        Args:
            build: makes a model like the one that was given to this step; called where weights must be gathered.
        """
        if not self.sharded:
            return self.accelerator.unwrap_model(self.trained, keep_fp32_wrapper=False)
        model = build() if self.accelerator.is_main_process else None
        gather(self.trained, model)
        return model or self.trained

    @property
    def _checkpoints(self) -> Path:
        return Path(self.settings.out) / "checkpoints"

    def _state(self) -> RunState:
        return RunState(
            self.model, self.optimizer, self.schedule, json.loads(json.dumps(self.settings.resume_fields()))
        )

    def _summing(self, *, last: bool) -> AbstractContextManager:
        if self.sharded:
            return accumulate_gradients(self.trained, last=last)
        return nullcontext() if last else self.accelerator.no_sync(self.trained)

    def _over_processes(self, value: Tensor) -> Tensor:
        return torch.as_tensor(self.accelerator.reduce(value, "sum"))


class Progress:
    """The bar, and figures for the tracker by step; a context, in which the steps are taken.

    A resumed run shows no figure twice: TensorBoard drops what an earlier process wrote after `first_step` steps. An error ends
    the trackers, so that they hold the figures of all steps before it.
    """

    def __init__(self, step: Step, *, name: str, first_step: int):
        self.step, self.losses = step, []
        self.accelerator, settings = step.accelerator, step.settings
        self.accelerator.init_trackers(name, init_kwargs={"tensorboard": {"purge_step": first_step + 1}})
        self.every, self.terms, self.since = settings.log_every, 0, time.monotonic()
        self.bar = tqdm(
            total=settings.steps * settings.batch_size,
            initial=first_step * settings.batch_size,
            unit="sample",
            desc="training",
            disable=not self.accelerator.is_main_process,
        )

    def took(self, steps: int, taken: StepResult) -> None:
        """After so many steps."""
        self.losses.append(taken.loss.item())
        self.terms += int(taken.terms)
        self.bar.update(self.step.settings.batch_size)
        self.bar.set_postfix(loss=f"{sum(self.losses[-20:]) / len(self.losses[-20:]):.4f}", refresh=False)
        if steps % self.every == 0:
            figures = {
                "loss": self.losses[-1],
                f"{self.step.task.unit}s_per_second": self.terms / (time.monotonic() - self.since),
            }
            if peak := self.step.settings.peak_tflops * 1e12 * self.accelerator.num_processes:
                figures["mfu"] = self.step.flops_per_term * figures[f"{self.step.task.unit}s_per_second"] / peak
            figures |= {f"learning_rate/{name}": rate for name, rate in self.step.rates().items()}
            figures |= {f"gradient_norm/{name}": norm.item() for name, norm in taken.gradients.items()}
            self.note(steps, figures)

    def note(self, steps: int, figures: dict[str, float]) -> None:
        """Other figures after so many steps; what they took does not count as training."""
        self.accelerator.log(figures, step=steps)
        self.terms, self.since = 0, time.monotonic()

    def __enter__(self) -> Self:
        self.step.stopped.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.close()
        self.step.stopped.__exit__()
        if error is not None:
            for tracker in self.accelerator.trackers:
                tracker.finish()


def _norm(weights: Iterator[nn.Parameter] | Sequence[nn.Parameter]) -> Tensor:
    return gather_full_tensor(get_total_norm([weight.grad for weight in weights if weight.grad is not None]))


def _to(batch: Batch, device: torch.device) -> Batch:
    return {name: value.to(device, non_blocking=True) for name, value in batch.items()}
