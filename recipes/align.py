"""Align an encoder with a language model: stage one. Both are frozen; the projector alone trains, on captions.

    vlm-vision train align --config align_demo --data.train captions.json --data.test held_out.json
    torchrun --nproc_per_node 8 -m recipes.align --config recipes/configs/align.yaml --data.train blip_558k.json

As in LLaVA, the prompt is the image alone and the answer is its caption; the questions of the data are left out. A layout's
newline token trains with the projector. A stopped run resumes when the same command is run again.

Writes to `out`: model/ (stage two begins there: recipes.vqa with `start`), metrics.json, config.yaml, logs/ for
TensorBoard, and checkpoints/ while it runs.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from vlm_vision.data.conversations.collate import Collator
from vlm_vision.data.conversations.records import Conversation, LazyConversations
from vlm_vision.files import whole
from vlm_vision.measure.during_training import figures, watch
from vlm_vision.train.command import parse_config, run_cli
from vlm_vision.train.conversations import build_model, patch_features, read_data
from vlm_vision.train.loop.step import Progress
from vlm_vision.train.results import write_results
from vlm_vision.train.settings import ConversationSettings, Training, VlmSettings
from vlm_vision.train.start import start_run
from vlm_vision.train.stored_tokens import needs_checkpoint, restore_tower
from vlm_vision.train.tasks.vqa import answer_batches, vqa_step
from vlm_vision.train.trainable import set_trainable, trainable_table, unwrapped
from vlm_vision.vlm.processor import VisionLanguageProcessor

CAPTION_TEMPLATE = (
    "{% for message in messages %}{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
)
"""`<image>` and its caption. The saved model keeps its own chat template."""


@dataclass(frozen=True, kw_only=True)
class AlignConfig(ConversationSettings, VlmSettings, Training):
    """One run."""

    lr_projector: float = 1e-3
    """Highest learning rate of the projector."""

    def __post_init__(self):
        for group in (Training, VlmSettings, ConversationSettings):
            group.__post_init__(self)


def main(config: AlignConfig) -> dict[str, Any]:
    """Run it. Returns what metrics.json holds."""
    started = time.monotonic()
    accelerator = start_run(config)
    out = Path(config.out)
    read, held_out = read_data(config.data)
    train, test = captions(read), captions(held_out[: config.eval_limit or None])

    # The model, of which the projector trains; and what it is shown: an image, then its caption.
    model = align_model(config, read)
    accelerator.print(trainable_table(model))
    conversations = (one for data in (train, test) for one in data)
    features = patch_features(config, accelerator, unwrapped(model), conversations, out=out)
    collate = Collator(
        caption_processor(model), max_length=config.max_length, features=features, pack_length=config.pack_length
    )
    step = vqa_step(config, accelerator, model, rates={"projector": config.lr_projector})

    # The loop.
    first_step = step.resume()
    with Progress(step, name="align", first_step=first_step) as progress:
        step.trained.train()
        found: dict[str, float] = {}
        for index, batch in enumerate(
            answer_batches(config, accelerator, train, collate, first_step=first_step), start=first_step
        ):
            done = index + 1
            progress.took(done, step(index, batch))
            if done == config.steps or (config.eval_every and done % config.eval_every == 0):
                seen = watch(
                    accelerator, step.model, test, collate, batch_size=config.eval_batch_size, seed=config.seed
                )
                found = figures(seen)
                progress.note(done, found)
            if needs_checkpoint(config, done, config.data.tokens):
                step.save(done)

    # The end: the whole model, for stage two.
    model = step.whole_model(lambda: align_model(config, read))
    accelerator.end_training()
    metrics: dict[str, Any] = {"first_step": first_step, "processes": accelerator.num_processes} | found
    metrics |= {"final_loss": progress.losses[-1] if progress.losses else None, "seconds": time.monotonic() - started}
    if accelerator.is_main_process:
        if config.data.tokens and features is not None:
            restore_tower(model, config, features)
        with whole(out / "model") as staging:
            unwrapped(model).save_pretrained(staging)
        write_results(config, "align", metrics)
        for name, value in found.items():
            print(f"{name:24} {value:.4f}")
        print(f"{metrics['seconds']:.0f} s; model and metrics.json in {out}")
    return metrics | {"losses": progress.losses}


def align_model(config: AlignConfig, train: Sequence[Conversation]) -> nn.Module:
    """The model whose projector alone trains."""
    model = build_model(
        config,
        train,
        pack_length=config.pack_length,
        gradient_checkpointing=config.gradient_checkpointing,
        tower=not config.data.tokens,
    )
    return set_trainable(model, vision="frozen", projector="full", language="frozen")


def captions(conversations: Sequence[Conversation]) -> Sequence[Conversation]:
    """Each conversation as its images alone, answered by its first answer.

    Raises:
        ValueError: when read, one without an image.
    """
    return LazyConversations(CaptionConversations(conversations), range(len(conversations)))


@dataclass(frozen=True)
class CaptionConversations:
    """Row -> the conversation as a caption."""

    conversations: Sequence[Conversation]

    def __call__(self, row: int) -> Conversation:
        one = self.conversations[row]
        if not one.images:
            raise ValueError(f"{one.name or f'record {row}'} has no image: expected one in every record")
        return replace(one, turns=(("<image>" * len(one.images), one.turns[0][1]),))


def caption_processor(model: nn.Module) -> VisionLanguageProcessor:
    """The model's processor, with a template that writes images and caption and nothing else."""
    own = unwrapped(model).processor
    assert own is not None
    return VisionLanguageProcessor(own.image_processor, own.tokenizer, chat_template=CAPTION_TEMPLATE)


def parse(arguments: list[str] | None = None) -> AlignConfig:
    """A typed Config from --config FILE.yaml and --key value."""
    return parse_config(AlignConfig, "recipes.align", __doc__, arguments)


if __name__ == "__main__":
    run_cli("recipes.align", lambda: main(parse()))
