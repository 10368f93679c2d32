"""Teach a language model to answer questions about pictures.

    python -m recipes.vqa --config recipes/configs/demo.yaml
    python -m recipes.vqa --config recipes/configs/demo.yaml --out runs/other --steps 500
    accelerate launch -m recipes.vqa --config recipes/configs/demo.yaml

Encoder, projector and language model each train in full, by LoRA, or not at all. The loss is on the answers alone and
weighted by token, so that it does not depend on how a batch is cut into micro-batches. A frozen encoder runs once for
each picture; its patch tokens are kept on disk. A stopped run goes on where it was when the same command is given again.

Writes to `out`: model/ (a folder for AutoModelForImageTextToText), metrics.json, contact_sheet.png, config.yaml, and
checkpoints/ while it runs.
"""

import json
import logging
import sys
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, set_seed
from jsonargparse import ArgumentParser
from torch.utils.data import DataLoader, TensorDataset
from tqdm.auto import tqdm

import vlm_vision as vv
from vlm_vision.checkpoints.files import whole
from vlm_vision.data.conversations import Conversation, easy_vqa, llava_json, regroup
from vlm_vision.data.features import FeatureCache
from vlm_vision.data.labels import ChatLabels, pad
from vlm_vision.evaluate import evaluate, right
from vlm_vision.explore.contact_sheet import contact_sheet
from vlm_vision.new_models import new_encoder, new_language_model, word_tokenizer
from vlm_vision.train.loss import answer_loss, check_finite, num_answer_tokens
from vlm_vision.train.optim import parameter_groups, warmup_cosine
from vlm_vision.train.order import StepBatches
from vlm_vision.train.parts import merged, set_trainable, trainable_table
from vlm_vision.train.resume import load_checkpoint, save_checkpoint

log = logging.getLogger("recipes.vqa")


@dataclass(frozen=True, kw_only=True)
class Data:
    """What is asked."""

    name: Literal["easy_vqa", "llava"] = "easy_vqa"
    """easy_vqa, or files in LLaVA's JSON format."""
    train_json: str = ""
    """llava: conversations to train on."""
    test_json: str = ""
    """llava: conversations whose first question is asked at the end."""
    image_folder: str = ""
    """llava: what picture paths start from."""
    turns: int = 1
    """Questions about one picture to ask in one training conversation."""
    test_limit: int = 0
    """Test questions to ask; 0 for all."""


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """Who sees."""

    source: str = ""
    """Argument of vlm_vision.load; empty to start from `new`."""
    new: dict[str, Any] = field(default_factory=dict)
    """Fields of ViTConfig for an encoder with random weights."""
    image_size: int = 0
    """Side in pixels of what the encoder sees; 0 for its own."""
    tap_layer: int = -1
    """Block whose tokens are used."""
    tap_norm: bool = True
    """Whether the final norm is applied to them."""


@dataclass(frozen=True, kw_only=True)
class Language:
    """Who answers."""

    source: str = ""
    """Folder or hub id for AutoModelForCausalLM; empty to start from `new`."""
    gguf_file: str = ""
    """File within `source`, for GGUF weights."""
    new: dict[str, Any] = field(default_factory=dict)
    """model_type and fields of a transformers configuration, for a model with random weights."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """One run."""

    out: str
    """Folder for everything the run writes."""
    data: Data
    encoder: Encoder
    language: Language
    projector: str = "mlp"
    """A name of projectors.build."""
    train_vision: Literal["frozen", "lora", "full"] = "frozen"
    train_projector: Literal["frozen", "full"] = "full"
    train_language: Literal["frozen", "lora", "full"] = "lora"
    lora_rank: int = 16
    lora_alpha: int = 32
    lora_dropout: float = 0.0
    steps: int = 1000
    """Optimiser steps."""
    batch_size: int = 64
    """Conversations per step, over all processes."""
    micro_batch_size: int = 64
    """Conversations per forward pass."""
    max_length: int = 2048
    """Tokens per conversation, image tokens included."""
    lr_vision: float = 1e-4
    lr_projector: float = 1e-3
    lr_language: float = 2e-4
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.01
    warmup_steps: int = 100
    max_grad_norm: float = 1.0
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    workers: int = 0
    """Processes that read pictures."""
    feature_folder: str = ""
    """Where patch tokens of frozen encoders are kept; empty for `out`/features. Runs may share it."""
    feature_dtype: Literal["float16", "float32"] = "float16"
    """How a frozen encoder's patch tokens are kept on disk."""
    checkpoint_every: int = 500
    """Steps between checkpoints."""
    eval_batch_size: int = 128
    max_new_tokens: int = 16
    seed: int = 0

    def __post_init__(self):
        for name in (
            "steps",
            "batch_size",
            "micro_batch_size",
            "checkpoint_every",
            "eval_batch_size",
            "max_new_tokens",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be at least 1")
        if self.warmup_steps < 0:
            raise ValueError(f"warmup_steps is {self.warmup_steps}: it must be at least 0")


def main(config: Config) -> dict[str, Any]:
    """Run it. Returns what metrics.json holds."""
    started = time.monotonic()
    # A micro-batch may hold no picture at all, and then one process has no gradient for the projector.
    unused = DistributedDataParallelKwargs(find_unused_parameters=True)
    accelerator = Accelerator(mixed_precision=config.mixed_precision, kwargs_handlers=[unused])
    set_seed(config.seed)
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)

    train, test = read_data(config.data)
    model = build_model(config, train)
    assert model.processor is not None
    wrapped = set_trainable(
        model,
        vision=config.train_vision,
        projector=config.train_projector,
        language=config.train_language,
        lora_rank=config.lora_rank,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
    )
    log.info("%s", trainable_table(model))
    model.to(accelerator.device)

    # Pictures: patch tokens from disk where the encoder is frozen, else pixels.
    cache = None
    pictures = [path for one in (*train, *test) for path in one.images]
    if config.train_vision == "frozen" and pictures:
        with accelerator.main_process_first():
            cache = FeatureCache.build(
                config.feature_folder or out / "features", model.encoder, pictures, dtype=config.feature_dtype
            )

    # Batches: a function of the step, so that the run can stop and go on.
    chat = ChatLabels(model.processor, max_length=config.max_length)
    size = model.encoder.preprocess.output_size
    if size is None:
        raise ValueError("the encoder's preprocessing gives pictures of any size: set encoder.image_size")
    tokens_per_image = model.num_image_tokens(*size)
    conversations = regroup(train, config.data.turns, seed=config.seed)

    def collate(rows: list[tuple[torch.Tensor]]) -> dict[str, torch.Tensor]:
        chosen = [conversations[int(row)] for (row,) in rows]
        batch = pad([chat(one, tokens_per_image) for one in chosen], model.processor.tokenizer.pad_token_id)  # type: ignore[union-attr]
        paths = [path for one in chosen for path in one.images]
        if paths and cache is not None:
            batch["patch_tokens"] = cache[paths]
        elif paths:
            batch["pixel_values"] = model.encoder.preprocess(paths)
        return batch

    parts = [
        (model.encoder, config.lr_vision),
        (model.projector, config.lr_projector),
        (model.language_model, config.lr_language),
    ]
    groups = parameter_groups(parts, weight_decay=config.weight_decay)
    optimizer = torch.optim.AdamW(groups, betas=config.betas)
    schedule = warmup_cosine(optimizer, warmup_steps=config.warmup_steps, steps=config.steps)
    trained, optimizer = accelerator.prepare(wrapped, optimizer)
    accelerator.register_for_checkpointing(schedule)
    settings = {
        name: value for name, value in asdict(config).items() if name not in ("out", "checkpoint_every", "workers")
    }
    first_step = load_checkpoint(accelerator, out / "checkpoints", run=json.loads(json.dumps(settings)))
    if accelerator.is_main_process:
        (out / "config.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(asdict(config))), sort_keys=False))
    batches = StepBatches(
        len(conversations),
        batch_size=config.batch_size,
        micro_batch_size=config.micro_batch_size,
        steps=config.steps,
        first_step=first_step,
        seed=config.seed,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
    )
    indices = TensorDataset(torch.arange(len(conversations)))
    loader = iter(
        DataLoader(
            indices,
            batch_sampler=batches,
            collate_fn=collate,
            num_workers=config.workers,
            generator=torch.Generator(),  # its own: the global one was just restored, and must not be drawn from
        )
    )

    # The loop.
    losses = []
    training_started = time.monotonic()
    trained.train()
    bar = tqdm(
        total=config.steps * config.batch_size,
        initial=first_step * config.batch_size,
        unit="sample",
        desc="training",
        disable=not accelerator.is_main_process,
    )
    for step in range(first_step, config.steps):
        micro_batches = [to_device(next(loader), accelerator.device) for _ in range(batches.micro_batches)]
        answer_tokens = over_processes(accelerator, torch.stack([num_answer_tokens(b) for b in micro_batches]).sum())
        total = torch.zeros((), device=accelerator.device)
        for i, batch in enumerate(micro_batches):
            with accelerator.no_sync(trained) if i + 1 < len(micro_batches) else nullcontext():
                loss = answer_loss(trained, batch) / answer_tokens
                # DDP averages gradients over processes; the sum is wanted.
                accelerator.backward(loss * accelerator.num_processes)
            total += loss.detach()
        total = over_processes(accelerator, total)
        check_finite(total, step)
        accelerator.clip_grad_norm_([p for group in groups for p in group["params"]], config.max_grad_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(total.item())
        bar.update(config.batch_size)
        bar.set_postfix(loss=f"{sum(losses[-20:]) / len(losses[-20:]):.4f}", refresh=False)
        if (step + 1) % config.checkpoint_every == 0 and step + 1 < config.steps:
            save_checkpoint(accelerator, out / "checkpoints", step=step + 1, run=json.loads(json.dumps(settings)))
    bar.close()
    train_seconds = time.monotonic() - training_started

    metrics: dict[str, Any] = {"losses": losses, "first_step": first_step, "processes": accelerator.num_processes}
    if accelerator.is_main_process:
        model = merged(accelerator.unwrap_model(trained))
        with whole(out / "model") as staging:
            model.save_pretrained(staging)
        test = test[: config.data.test_limit or None]
        report, given = evaluate(
            model,
            test,
            train,
            patch_tokens=None if cache is None else cache.__getitem__,
            batch_size=config.eval_batch_size,
            max_new_tokens=config.max_new_tokens,
            seed=config.seed,
        )
        sheet = [
            (one.images[0], one.turns[0][0], answer, right(answer, one.turns[0][1]))
            for one, answer in zip(test, given, strict=True)
            if one.images
        ]
        contact_sheet(
            out / "contact_sheet.png",
            sheet[:: max(1, len(sheet) // 24)][:24],
            title=f"{report.accuracy:.1%} of {len(test)} questions right",
        )
        metrics |= {name: value for name, value in asdict(report).items()}
        metrics |= {"train_seconds": train_seconds, "seconds": time.monotonic() - started}
        kept = {name: value for name, value in metrics.items() if name != "losses"} | {
            "final_loss": losses[-1] if losses else None
        }
        (out / "metrics.json").write_text(json.dumps(kept, indent=2) + "\n")
        print(report.table())
        print(
            f"\n{metrics['seconds']:.0f} s in all, {train_seconds:.0f} s to train; model, metrics.json and contact_sheet.png in {out}"
        )
    accelerator.wait_for_everyone()
    return metrics


def read_data(data: Data) -> tuple[list[Conversation], list[Conversation]]:
    """Conversations to train on and to be tested with."""
    if data.name == "easy_vqa":
        return easy_vqa("train"), easy_vqa("test")
    return llava_json(data.train_json, data.image_folder), llava_json(data.test_json, data.image_folder)


def build_model(config: Config, train: list[Conversation]) -> vv.VisionLanguageModel:
    """Encoder, projector and language model, each loaded or made new."""
    tap = vv.Tap(config.encoder.tap_layer, config.encoder.tap_norm)
    if config.encoder.source:
        encoder = vv.load(config.encoder.source, tap=tap, image_size=config.encoder.image_size or None)
    else:
        encoder = new_encoder(config.encoder.new, tap=tap)
    if config.language.source:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        options = {"gguf_file": config.language.gguf_file} if config.language.gguf_file else {}
        llm = AutoModelForCausalLM.from_pretrained(config.language.source, dtype=torch.float32, **options)
        tokenizer = AutoTokenizer.from_pretrained(config.language.source, **options)
    else:
        tokenizer = word_tokenizer(text for one in train for turn in one.turns for text in turn)
        llm = new_language_model(config.language.new, tokenizer)
    return vv.VisionLanguageModel.attach(encoder, llm, projector=config.projector, tokenizer=tokenizer)


def over_processes(accelerator: Accelerator, value: torch.Tensor) -> torch.Tensor:
    """The sum of a scalar over all processes."""
    return torch.as_tensor(accelerator.reduce(value, "sum"))


def to_device(batch: dict[str, torch.Tensor], device: torch.device) -> dict[str, torch.Tensor]:
    """The batch on `device`."""
    return {name: value.to(device, non_blocking=True) for name, value in batch.items()}


def parse(arguments: list[str] | None = None) -> Config:
    """A typed Config from --config FILE.yaml and --key value."""
    parser = ArgumentParser(prog="python -m recipes.vqa", description=__doc__)
    parser.add_argument("--config", action="config", help="YAML file; later arguments override it")
    parser.add_class_arguments(Config, as_positional=False)
    settings = parser.instantiate(parser.parse_args(arguments))
    return Config(**{name: value for name, value in settings.items() if name != "config"})


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        main(parse())
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"recipes.vqa: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
