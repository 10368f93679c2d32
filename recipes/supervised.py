"""Train a vision transformer on labels by the recipe of DeiT, fine-tune a loaded one, or distill a teacher into one.

    vlm-vision train supervised --config supervised_smoke
    torchrun --nproc_per_node 8 -m recipes.supervised --config recipes/configs/deit_s.yaml
    vlm-vision train supervised --config deit_s --teacher FOLDER \
        --student.fields '{..., num_registers: 1, position_prefix: 2, pool: cls_dist, class_input: distilled}'
    vlm-vision train supervised --student.source FOLDER --layer_decay 0.75 --data.train imagenet ...

Touvron et al. 2021, "Training data-efficient image transformers & distillation through attention". Views, erasing and mixing
are functions of (seed, step, row), so that a stopped run resumes with equal results when the same command is run again. Only
Mixup and CutMix depend on the size of micro-batches: they mix within one, with one share for each. With
`mix.probability` 0 (and no drop_path, which is drawn in each process) any number of processes and any micro-batch give the
same losses. The next sample replaces one with a damaged image or without a label; such samples are counted.

Where `ema` is set, the average of the weights is measured and saved in addition to the last weights: which of them is better
depends on the length of the run, and the test data must not choose.

Writes to `out`: model/ and, with `ema`, average/ (for vlm_vision.load and transformers), metrics.json, config.yaml, logs/ for
TensorBoard, and checkpoints/ while it runs.
"""

import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader

import vlm_vision as vv
from vlm_vision.data.images.augment import RandAugment
from vlm_vision.data.images.batches import ImageBatch, ImageDataset, Skipped, collate
from vlm_vision.data.images.mixing import Erase, Mix
from vlm_vision.data.images.samples import Samples
from vlm_vision.data.images.views import Crop, Plain, View, normalize_views
from vlm_vision.data.seeds import derive_seed
from vlm_vision.files import whole
from vlm_vision.new_models import new_encoder
from vlm_vision.nn.fields import ViTFields, vit_config
from vlm_vision.preprocess.spec import IMAGENET, Preprocess
from vlm_vision.train.check_data import check_images
from vlm_vision.train.command import parse_config, run_cli
from vlm_vision.train.image_data import image_batches, read_data
from vlm_vision.train.loop.step import Batch, Progress
from vlm_vision.train.results import write_results
from vlm_vision.train.settings import ImageData, Training
from vlm_vision.train.start import start_run
from vlm_vision.train.tasks.supervised import (
    ClassifierWithLoss,
    DistillLossSettings,
    classifier,
    ema_encoder,
    encoder_of,
    read_teacher,
    save_classifier,
    supervised_step,
)


@dataclass(frozen=True, kw_only=True)
class SupervisedStudent:
    """The encoder that is trained: loaded, or new."""

    source: str = ""
    """Encoder to fine-tune, an argument of vlm_vision.load; empty for a new one."""
    image_size: int = 0
    """Side in pixels to which a loaded encoder resizes images; 0 for its own."""
    fields: ViTFields = field(default_factory=dict)
    """Fields of ViTConfig: all of a new encoder's, or those that differ in a loaded one, such as {drop_path: 0.1}."""
    init: Literal["fan_in", "published"] = "fan_in"
    """Standard deviation of a new encoder's linear weights: 1 / sqrt(fan in) (fan_in, better for narrow models), or 0.02
    (published) as in DeiT."""
    crop_ratio: float = 0.875
    """Side of a new encoder's center crop in the test, as a share of the resized image's shorter side."""

    def __post_init__(self):
        if not (self.source or self.fields):
            raise ValueError("there is no student: set student.source, or student.fields for one with random weights")
        if not 0 < self.crop_ratio <= 1:
            raise ValueError(f"student.crop_ratio is {self.crop_ratio}: expected a part above 0 and at most 1")
        if not self.source:
            vit_config(self.fields)


@dataclass(frozen=True, kw_only=True)
class SupervisedConfig(Training):
    """One run."""

    data: ImageData
    """Images."""
    student: SupervisedStudent
    """Encoder that is trained."""
    teacher: str = ""
    """Classifier to learn from, an argument of vlm_vision.load, of the same classes in the same order; empty for none."""
    distill: DistillLossSettings = DistillLossSettings()
    """Loss by which the student learns from `teacher`."""
    crop_scale: tuple[float, float] = (0.08, 1.0)
    """Least and greatest area of the random crop in training, as a share of the image."""
    flip: float = 0.5
    """Probability that an image is mirrored, left to right."""
    randaugment: RandAugment = RandAugment()
    """Random augmentation of each image (RandAugment); number 0 turns it off."""
    erase: Erase = Erase()
    """Random erasing of a rectangle of each image; probability 0 turns it off."""
    mix: Mix = Mix()
    """Mixup and CutMix of the images of a micro-batch; probability 0 turns them off."""
    repeats: int = 1
    """Views of every image in a step (repeated augmentation); batch_size and micro_batch_size count images."""
    base_lr: float = 5e-4
    """Highest learning rate for 512 views in a step; it grows with their number."""
    layer_decay: float = 1.0
    """Factor on the learning rate for each layer further from the head; 0.75 to fine-tune."""
    ema: float = 0.0
    """Share of the average of the weights that a step keeps, such as 0.99996; 0 for no average."""

    REPLACES: ClassVar[dict[str, tuple[str, ...]]] = {"student.source": ("student.fields",)}

    def __post_init__(self):
        super().__post_init__()
        self._at_least(1, "repeats")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema is {self.ema}: expected at least 0 and below 1, as 0.99996")

    @property
    def lr(self) -> float:
        return self.base_lr * self.batch_size * self.repeats / 512


@dataclass(frozen=True)
class Accuracy:
    """Shares of the test images, 0 to 1."""

    top1: float
    top5: float
    most_frequent: float
    """Share of the most frequent class: the accuracy of a constant answer."""
    skipped: int
    """Images that were damaged or had no label; the next one was counted twice instead."""


def main(config: SupervisedConfig) -> dict[str, Any]:
    """Run it. Returns what metrics.json holds, and the losses."""
    started = time.monotonic()
    accelerator = start_run(config)
    out = Path(config.out)
    train, test = read_data(config.data)
    check_images(accelerator, config.out, config.data, train, test)
    classes = train.classes
    if not classes:
        raise ValueError(
            f"{config.data.train} has no labels: expected class folders, a table with a column label, or data.classes for shards by URL"
        )
    teacher = read_teacher(config.teacher, len(classes)) if config.teacher else None
    model = new_classifier(config, classes)
    preprocess, view = model.encoder.preprocess, view_of(config, model.encoder)
    step = supervised_step(config, accelerator, model, lr=config.lr, layer_decay=config.layer_decay, teacher=teacher)

    # The loop.
    first_step, skipped = step.resume(), Skipped()
    batches = image_batches(
        config, accelerator, train, [view], first_step=first_step, needs=("label",), copies=config.repeats
    )
    with Progress(step, name="supervised", first_step=first_step) as progress:
        step.trained.train()
        for index, pieces in enumerate(batches, start=first_step):
            done = index + 1
            for piece in pieces:
                skipped.add(piece)
            views = [tensors(config, piece, preprocess, len(classes), accelerator.device) for piece in pieces]
            progress.took(done, step(index, views))
            if (average := ema_encoder(step.model)) is not None:
                average.update(encoder_of(step.model), config.ema)
            if config.eval_every and done % config.eval_every == 0 and done < config.steps and test is not None:
                with step.measured():
                    progress.note(done, figures(evaluate_classifier(config, accelerator, step.model, test)))
            if done % config.checkpoint_every == 0 and done < config.steps:
                step.save(done)

    # The end: what it is worth, and folders that load elsewhere.
    metrics: dict[str, Any] = {"first_step": first_step, "processes": accelerator.num_processes}
    bad = torch.as_tensor(accelerator.reduce(torch.tensor(skipped.bad, device=accelerator.device), "sum"))
    metrics |= {"skipped": int(bad), "final_loss": progress.losses[-1] if progress.losses else None}
    metrics |= {"train_seconds": time.monotonic() - started}
    if test is not None:
        with step.measured():
            found = evaluate_classifier(config, accelerator, step.model, test)
        progress.note(config.steps, figures(found))
        metrics |= {"test": {name: asdict(one) for name, one in found.items()}}
        accelerator.print(table(found))
    trained = step.whole_model(lambda: new_classifier(config, classes))
    accelerator.end_training()
    if accelerator.is_main_process:
        average = ema_encoder(trained)
        kept = {"model": encoder_of(trained)} | ({"average": average.module} if average is not None else {})
        for name, encoder in kept.items():
            assert isinstance(encoder, vv.Encoder)
            with whole(out / name) as staging:
                save_classifier(encoder, staging, classes)
        write_results(config, "supervised", metrics)
        print(f"{skipped}\n{metrics['train_seconds']:.0f} s to train; all is in {config.out}")
    return metrics | {"losses": progress.losses}


def new_classifier(config: SupervisedConfig, classes: tuple[str, ...]) -> ClassifierWithLoss:
    """The student with a head for the classes, loaded or new, and its average where there is to be one.

    Raises:
        ValueError: several towers, fields that make no encoder, or one that transformers could not read.
    """
    student = config.student
    if student.source:
        loaded = vv.load(student.source, tap=vv.Tap(), image_size=student.image_size or None)
        if isinstance(loaded, vv.FusedEncoder):
            raise ValueError(f"student.source {student.source} holds several towers: expected one")
        encoder = classifier(loaded, len(classes), student.fields)
    else:
        made = new_encoder(student.fields)
        if student.init == "published":
            made.model.reset_parameters()
        made.preprocess = eval_preprocess(made.config.image_size, student.crop_ratio)
        encoder = classifier(made, len(classes), {})
    encoder.model.gradient_checkpointing = config.gradient_checkpointing
    return ClassifierWithLoss(encoder, config.distill, average=config.ema > 0)


def eval_preprocess(size: tuple[int, int], crop_ratio: float) -> Preprocess:
    """Preprocessing of a new classifier in the test: the center crop of an image, with ImageNet's normalization."""
    mean, std = IMAGENET
    side = round(max(size) / crop_ratio)
    return Preprocess(
        resize="shortest_edge",
        resize_to=(side, side),
        resample="bicubic",
        crop=size,
        rescale=1 / 255,
        mean=mean,
        std=std,
    )


def view_of(config: SupervisedConfig, encoder: vv.Encoder) -> View:
    """The random view of an image in training.

    Raises:
        ValueError: an encoder whose images are not squares of one size.
    """
    size = encoder.preprocess.output_size
    if size is None or size[0] != size[1]:
        raise ValueError(
            f"the encoder takes images of {size or 'any size'}: expected one square size, because crops are square"
        )
    return View(crop=Crop(size[0], config.crop_scale), flip=config.flip, randaugment=config.randaugment)


def tensors(
    config: SupervisedConfig, drawn: ImageBatch, preprocess: Preprocess, num_classes: int, device: torch.device
) -> Batch:
    """Images with parts erased, mixed with each other, and their targets; the seeds of the rows decide how."""
    (views,) = drawn.views
    pixels = config.erase(normalize_views(views.to(device), preprocess), drawn.seeds)
    pixels, targets = config.mix(pixels, drawn.labels.to(device), num_classes, seed=derive_seed(*drawn.seeds))
    return {"pixels": pixels, "targets": targets}


def evaluate_classifier(
    config: SupervisedConfig, accelerator: Accelerator, model: nn.Module, test: Samples
) -> dict[str, Accuracy]:
    """Accuracy of the last weights and of their average; every process must call it."""
    encoder, average = encoder_of(model), ema_encoder(model)
    was_training = encoder.training
    encoder.eval()
    found = {"last": accuracy(config, accelerator, encoder, encoder.preprocess, test)}
    if average is not None:
        found["average"] = accuracy(config, accelerator, average, encoder.preprocess, test)
    encoder.train(was_training)
    return found


def accuracy(
    config: SupervisedConfig, accelerator: Accelerator, see: nn.Module, preprocess: Preprocess, test: Samples
) -> Accuracy:
    """Each process gets its share of the test images, in equally many batches: a sharded model is gathered by all of them."""
    size, count = config.micro_batch_size * config.repeats, accelerator.num_processes
    batches = [list(range(start, min(start + size, len(test)))) for start in range(0, len(test), size)]
    turns = range(accelerator.process_index, -(-len(batches) // count) * count, count)
    loader = DataLoader(
        ImageDataset(test, [Plain(preprocess)], needs=("label",)),
        batch_sampler=[batches[min(turn, len(batches) - 1)] for turn in turns],
        collate_fn=collate,
        num_workers=config.workers,
        generator=torch.Generator(),  # its own, so that a look changes nothing in the run
    )
    sums, frequent = torch.zeros(4), torch.zeros(len(test.classes))
    for turn, drawn in zip(turns, loader, strict=True):
        with accelerator.autocast():
            logits = see(normalize_views(drawn.views[0].to(accelerator.device), preprocess)).logits.float().cpu()
        if turn < len(batches):
            hits = logits.topk(min(5, logits.shape[1])).indices == drawn.labels[:, None]
            sums += torch.tensor([hits[:, 0].sum(), hits.sum(), len(hits), len(drawn.skipped)])
            frequent += drawn.labels.bincount(minlength=len(frequent))
    sums, frequent = (accelerator.reduce(each.to(accelerator.device), "sum").cpu() for each in (sums, frequent))
    top1, top5, seen, skipped = sums.tolist()
    return Accuracy(top1 / seen, top5 / seen, frequent.max().item() / seen, int(skipped))


def figures(found: dict[str, Accuracy]) -> dict[str, float]:
    """Metrics for the tracker."""
    return {f"{name}/{top}": getattr(one, top) for name, one in found.items() for top in ("top1", "top5")}


def table(found: dict[str, Accuracy]) -> str:
    """Last and averaged weights, and the most frequent class."""
    lines = [f"{'':20} {'top-1':>7} {'top-5':>7}"]
    lines += [f"{f'{name} weights':20} {one.top1:7.1%} {one.top5:7.1%}" for name, one in found.items()]
    return "\n".join([*lines, f"{'most frequent class':20} {found['last'].most_frequent:7.1%}"])


def parse(arguments: list[str] | None = None) -> SupervisedConfig:
    """A typed Config from --config FILE.yaml and --key value."""
    return parse_config(SupervisedConfig, "recipes.supervised", __doc__, arguments)


if __name__ == "__main__":
    run_cli("recipes.supervised", lambda: main(parse()))
