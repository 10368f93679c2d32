"""Visual instruction tuning as a task for `Step`: the loss of answers, and the micro-batches that have them."""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from vlm_vision.data.conversations.collate import Collator
from vlm_vision.data.conversations.labels import IGNORED
from vlm_vision.data.conversations.records import Conversation
from vlm_vision.train.loop.batches import batches_of_steps
from vlm_vision.train.loop.sampler import process_batches
from vlm_vision.train.loop.step import Batch, Step, Task
from vlm_vision.train.loss import answer_loss, num_answer_tokens
from vlm_vision.train.optim.groups import parameter_groups
from vlm_vision.train.settings import Training
from vlm_vision.train.trainable import group_modules, unwrapped


def vqa_step(settings: Training, accelerator: Accelerator, model: nn.Module, *, rates: dict[str, float]) -> Step:
    """Steps that train answers.

    Args:
        model: of `set_trainable`, on any device.
        rates: learning rate for each group of parameters that may train.
    """

    def parts(model: nn.Module) -> dict[str, nn.Module]:
        own = group_modules(model)
        return {name: own[name] for name in rates}

    def groups(model: nn.Module) -> list[dict]:
        return parameter_groups(
            [(part, rates[name]) for name, part in parts(model).items()], weight_decay=settings.weight_decay
        )

    vlm = unwrapped(model)
    frozen = not any(weight.requires_grad for weight in vlm.encoder.parameters())
    task = Task(
        loss=answer_loss,
        terms=num_answer_tokens,
        unit="answer_token",
        parts=parts,
        groups=groups,
        layers=frozenset(vlm._no_split_modules or ()),
        aside=(vlm.encoder,) if frozen else (),
    )
    return Step(settings, accelerator, model, task)


class EnsureImage:
    """A collator whose batches always show an image, so that all processes run the same parts of the model.

    Where none of the conversations has one, `witness` is added as a row without labels: its gradient is zero.
    """

    def __init__(self, collate: Collator, witness: Conversation | None):
        self.collate, self.witness = collate, witness

    def __call__(self, conversations: Sequence[Conversation]) -> Batch:
        batch = self.collate(conversations)
        if self.witness is None or any(one.images for one in conversations):
            return batch
        added = self.collate([self.witness])
        added["labels"] = torch.full_like(added["labels"], IGNORED)
        fill = {"labels": IGNORED, "input_ids": self.collate.processor.tokenizer.pad_token_id}
        width = max(batch["labels"].shape[1], added["labels"].shape[1])

        def rows(name: str, values: Tensor) -> Tensor:
            return F.pad(values, (0, width - values.shape[1]), value=fill.get(name, 0))

        return added | {name: torch.cat([rows(name, batch[name]), rows(name, added[name])]) for name in batch}


def answer_batches(
    settings: Training,
    accelerator: Accelerator,
    conversations: Sequence[Conversation],
    collate: Collator,
    *,
    first_step: int,
) -> Iterator[list[Batch]]:
    """This process's micro-batches of each step, from `first_step` on."""
    witness = next((one for one in conversations if one.images), None)
    order = process_batches(settings, accelerator, len(conversations), first_step=first_step)
    return batches_of_steps(
        settings,
        accelerator,
        conversations,  # type: ignore[arg-type]  # a sequence is a map-style data set
        order,
        EnsureImage(collate, witness),
        steps=range(first_step, settings.steps),
        micro_batches=order.micro_batches,
    )
