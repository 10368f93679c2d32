"""Training of a policy as a task for `Step`: the loss of a head, the groups that train, windows of recordings as batches."""

from collections.abc import Iterator, Sequence

from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import Dataset

from vlm_vision.data.images.batches import Draw, Draws
from vlm_vision.data.seeds import derive_seed
from vlm_vision.robot.window import Window
from vlm_vision.train.loop.batches import batches_of_steps
from vlm_vision.train.loop.sampler import process_batches
from vlm_vision.train.loop.step import Batch, Step, Task
from vlm_vision.train.optim.groups import parameter_groups
from vlm_vision.train.settings import Training
from vlm_vision.train.trainable import group_modules
from vlm_vision.vla.batch import ActionCollator
from vlm_vision.vla.model import VisionLanguageActionModel


def vla_step(
    settings: Training, accelerator: Accelerator, model: VisionLanguageActionModel, *, rates: dict[str, float]
) -> Step:
    """Steps that train a policy.

    Args:
        model: on any device; its `vlm` of `set_trainable`.
        rates: learning rate of vision, projector, language and "action" (the head, and the state's token).
    """
    head, vlm = model.head, model.plain_vlm

    def parts(model: nn.Module) -> dict[str, nn.Module]:
        assert isinstance(model, VisionLanguageActionModel)
        own = {**group_modules(model.vlm), "action": model.action_modules}
        return {name: own[name] for name in rates}

    def groups(model: nn.Module) -> list[dict]:
        return parameter_groups(
            [(part, rates[name]) for name, part in parts(model).items()], weight_decay=settings.weight_decay
        )

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        return model(batch)

    frozen = not any(weight.requires_grad for weight in vlm.encoder.parameters())
    task = Task(
        loss=loss,
        terms=lambda batch: head.terms(batch["padded"]),
        unit="action_number",
        parts=parts,
        groups=groups,
        layers=frozenset([*(vlm._no_split_modules or ()), "ExpertLayer"]),
        aside=(vlm.encoder,) if frozen else (),
    )
    return Step(settings, accelerator, model, task)


class WindowDraws(Dataset[tuple[Window, int]]):
    """A moment for each draw of a step, with the seed of what is random about it."""

    def __init__(self, recordings: Sequence[Window], *, seed: int):
        self.recordings, self.seed = recordings, seed

    def __getitem__(self, draw: Draw) -> tuple[Window, int]:
        return self.recordings[draw.row], derive_seed(self.seed, draw.step, draw.row, draw.copy)


def action_batches(
    settings: Training,
    accelerator: Accelerator,
    recordings: Sequence[Window],
    collate: ActionCollator,
    *,
    first_step: int,
) -> Iterator[list[Batch]]:
    """This process's micro-batches of each step, from `first_step` on.

    Raises:
        ValueError: fewer moments than batch_size, or a batch that does not divide evenly.
    """
    order = process_batches(settings, accelerator, len(recordings), first_step=first_step)
    return batches_of_steps(
        settings,
        accelerator,
        WindowDraws(recordings, seed=settings.seed),
        Draws(order, micro_batches=order.micro_batches, first_step=first_step),
        collate,
        steps=range(first_step, settings.steps),
        micro_batches=order.micro_batches,
    )
