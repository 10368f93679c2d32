"""Train a language model to answer questions about images: stage two, or both stages at once.

    vlm-vision train vqa --config demo
    vlm-vision train vqa --config demo --out runs/other --steps 500
    accelerate launch -m recipes.vqa --config recipes/configs/demo.yaml
    torchrun --nproc_per_node 8 -m recipes.vqa --config recipes/configs/vqa_llava.yaml --start runs/align/model

Encoder, projector and language model each train in full, by LoRA, or not at all. The loss is on the answers alone and
weighted by token, so that it does not depend on the size of micro-batches. A frozen encoder runs once for
each image; its patch tokens are kept on disk. A stopped run resumes when the same command is run again.

Writes to `out`: model/ (a folder for AutoModelForImageTextToText), adapter/ if there are adapters, metrics.json,
contact_sheet.png, config.yaml, logs/ for TensorBoard, and checkpoints/ while it runs.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from accelerate import Accelerator
from peft import PeftModel
from torch import nn

import vlm_vision as vv
from vlm_vision.data.conversations.collate import Collator
from vlm_vision.data.conversations.records import Conversation, regroup
from vlm_vision.data.patch_features import PatchFeatures
from vlm_vision.files import whole
from vlm_vision.measure.answers import evaluate, is_correct, shuffled_images
from vlm_vision.measure.contact_sheet import contact_sheet
from vlm_vision.measure.during_training import figures, watch
from vlm_vision.measure.image_use import image_use
from vlm_vision.train.adapters import merge, save_adapter
from vlm_vision.train.command import parse_config, run_cli
from vlm_vision.train.conversations import build_model, patch_features, read_data
from vlm_vision.train.loop.step import Progress
from vlm_vision.train.results import write_results
from vlm_vision.train.settings import ConversationData, ConversationSettings, Training, VlmSettings, check_frozen
from vlm_vision.train.start import start_run
from vlm_vision.train.stored_tokens import needs_checkpoint, restore_tower
from vlm_vision.train.tasks.vqa import answer_batches, vqa_step
from vlm_vision.train.trainable import group_modules, set_trainable, trainable_table, unwrapped


@dataclass(frozen=True, kw_only=True)
class QuestionData(ConversationData):
    """Sources of questions, and the number of questions."""

    turns: int = 1
    """Questions about one image in one training conversation."""
    test_limit: int = 0
    """Test questions to answer at the end, the first ones; 0 for all."""


@dataclass(frozen=True, kw_only=True)
class VqaConfig(ConversationSettings, VlmSettings, Training):
    """One run."""

    data: QuestionData
    """Questions and answers."""
    train_vision: Literal["frozen", "lora", "full"] = "frozen"
    """Training of the encoder: frozen, LoRA adapters (lora), or all its weights (full)."""
    train_projector: Literal["frozen", "full"] = "full"
    """Training of the projector: frozen, or all its weights (full)."""
    train_language: Literal["frozen", "lora", "full"] = "lora"
    """Training of the language model: frozen, LoRA adapters (lora), or all its weights (full)."""
    lora_rank: int = 16
    """Rank of LoRA adapters."""
    lora_alpha: int = 32
    """Scale of LoRA adapters: their output is multiplied by lora_alpha / lora_rank."""
    lora_dropout: float = 0.0
    """Dropout probability of the input of LoRA adapters."""
    lr_vision: float = 1e-4
    """Highest learning rate of the encoder or its adapters."""
    lr_projector: float = 1e-3
    """Highest learning rate of the projector."""
    lr_language: float = 2e-4
    """Highest learning rate of the language model or its adapters."""
    max_new_tokens: int = 16
    """Most tokens of an answer that is generated at the end."""

    def __post_init__(self):
        for group in (Training, VlmSettings, ConversationSettings):
            group.__post_init__(self)
        self._at_least(1, "max_new_tokens", "lora_rank")
        check_frozen(self.data.tokens, {"train_vision frozen": self.train_vision == "frozen"})


def main(config: VqaConfig) -> dict[str, Any]:
    """Run it. Returns what metrics.json holds, and the losses."""
    started = time.monotonic()
    accelerator = start_run(config)
    train, test = read_data(config.data)
    metrics, losses, features = train_model(config, accelerator, train, test)
    accelerator.end_training()  # the other processes have nothing left to do
    accelerator.free_memory()
    if accelerator.is_main_process:
        metrics |= evaluate_model(config, accelerator, test, train, features)
        metrics |= {"seconds": time.monotonic() - started, "final_loss": losses[-1] if losses else None}
        write_results(config, "vqa", metrics)
        print(f"\n{metrics['seconds']:.0f} s in all, {metrics['train_seconds']:.0f} s to train; all is in {config.out}")
    return metrics | {"losses": losses}


def train_model(
    config: VqaConfig, accelerator: Accelerator, train: Sequence[Conversation], test: Sequence[Conversation]
) -> tuple[dict[str, Any], list[float], PatchFeatures | None]:
    """Train and save. Returns figures, the losses of this process's steps, and the patch tokens that were kept."""
    model = trainable(config, train)
    accelerator.print(trainable_table(model))
    processor = unwrapped(model).processor
    assert processor is not None
    conversations = (one for data in (train, test) for one in data)
    features = patch_features(config, accelerator, unwrapped(model), conversations, out=Path(config.out))
    collate = Collator(processor, max_length=config.max_length, features=features, pack_length=config.pack_length)
    rates = {"vision": config.lr_vision, "projector": config.lr_projector, "language": config.lr_language}
    step = vqa_step(config, accelerator, model, rates=rates)

    # Batches are a function of the step, so that the run can stop and go on.
    first_step = step.resume()
    with Progress(step, name="vqa", first_step=first_step) as progress:
        conversations = regroup(train, config.data.turns, seed=config.seed)
        batches = answer_batches(config, accelerator, conversations, collate, first_step=first_step)
        looked_at = test[: config.eval_limit or None]
        look = dict(batch_size=config.eval_batch_size, seed=config.seed)
        started = time.monotonic()
        step.trained.train()
        for index, micro_batches in enumerate(batches, start=first_step):
            progress.took(index + 1, step(index, micro_batches))
            if config.eval_every and (index + 1) % config.eval_every == 0:
                progress.note(index + 1, figures(watch(accelerator, step.model, looked_at, collate, **look)))
            if needs_checkpoint(config, index + 1, config.data.tokens):
                step.save(index + 1)
    metrics: dict[str, Any] = {"first_step": first_step, "processes": accelerator.num_processes}
    metrics["train_seconds"] = time.monotonic() - started

    model = step.whole_model(lambda: trainable(config, train))
    if accelerator.is_main_process:
        if config.data.tokens and features is not None:
            restore_tower(model, config, features)
        save(model, Path(config.out), collate([next((one for one in conversations if one.images), conversations[0])]))
    return metrics, progress.losses, features


def trainable(config: VqaConfig, train: Sequence[Conversation]) -> nn.Module:
    """The model in peft's wrapper where there are adapters, else the model."""
    return set_trainable(
        build_model(
            config,
            train,
            pack_length=config.pack_length,
            gradient_checkpointing=config.gradient_checkpointing,
            tower=not config.data.tokens,
        ),
        vision=config.train_vision,
        projector=config.train_projector,
        language=config.train_language,
        lora_rank=config.lora_rank,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
    )


def save(model: nn.Module, out: Path, batch: dict[str, Any]) -> None:
    """Adapters where there are any; and the whole model, merged, once the merge is found to change nothing on a batch."""
    if isinstance(model, PeftModel):
        save_adapter(model, out / "adapter")
        model.cpu()  # merging holds a second copy
    merged = merge(model, batch)
    with whole(out / "model") as staging:
        merged.save_pretrained(staging)


def evaluate_model(
    config: VqaConfig,
    accelerator: Accelerator,
    test: Sequence[Conversation],
    train: Sequence[Conversation],
    features: PatchFeatures | None,
) -> dict[str, Any]:
    """Questions answered by the saved model, with controls, and whether it uses its images; prints both tables."""
    if not test:
        return {}
    out = Path(config.out)
    model = vv.VisionLanguageModel.from_pretrained(out / "model").to(accelerator.device)
    asked = test[: config.data.test_limit or None]
    with accelerator.autocast():
        report, given = evaluate(
            model,
            asked,
            train,
            patch_tokens=None if features is None else features.__getitem__,
            batch_size=config.eval_batch_size,
            max_new_tokens=config.max_new_tokens,
            seed=config.seed,
        )
    print(report.table())
    sheet = [
        (one.images[0], one.turns[0][0], answer, is_correct(answer, one.turns[0][1]))
        for one, answer in zip(asked, given, strict=True)
        if one.images
    ]
    title = f"{report.accuracy:.1%} of {len(asked)} questions right"
    contact_sheet(out / "contact_sheet.png", sheet[:: max(1, len(sheet) // 24)][:24], title=title)
    metrics = asdict(report)
    looked_at = asked[: config.eval_limit or None]
    if any(shuffled_images([one.images for one in looked_at], seed=config.seed)):
        for name, how in (("vision", config.train_vision), ("language", config.train_language)):
            group_modules(model)[name].requires_grad_(how == "full")
        with accelerator.autocast():
            found = image_use(model, looked_at, features=features, batch_size=config.micro_batch_size, seed=config.seed)
        print(f"\n{found.table()}\n{found.warning or 'The model uses its images.'}")
        metrics |= {"image_use": asdict(found), "warning": found.warning}
    return metrics


def parse(arguments: list[str] | None = None) -> VqaConfig:
    """A typed Config from --config FILE.yaml and --key value."""
    return parse_config(VqaConfig, "recipes.vqa", __doc__, arguments)


if __name__ == "__main__":
    run_cli("recipes.vqa", lambda: main(parse()))
