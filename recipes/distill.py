"""Train one smaller student on the features of several frozen teachers: DINOv2's and SigLIP's for the cost of one tower.

    vlm-vision emoji --out emoji
    vlm-vision train distill --config distill_smoke
    torchrun --nnodes 4 --nproc_per_node 8 -m recipes.distill --config recipes/configs/distill_dinov2_siglip.yaml

Ranzinger et al. 2024, "AM-RADIO: agglomerative vision foundation model" (arXiv:2312.06709). Every teacher gets the same view
as the student, in its own size and normalization; the student predicts the teacher's patch tokens and its vector of the whole
image by a pair of heads for each teacher. No captions or labels are needed. The random view of an image depends on the seed, the
step and the image alone: the number of processes and the size of micro-batches change no loss. The next image replaces a damaged
one, which is counted. A stopped run resumes when the same command is run again.

Writes to `out`: model/ (the student for vlm_vision.load and transformers, with its heads for
vlm_vision.train.tasks.distill_student.Agglomerate.load), metrics.json, config.yaml, logs/ for TensorBoard, and checkpoints/ while it runs.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import torch

import vlm_vision as vv
from vlm_vision.data.images.batches import Skipped
from vlm_vision.data.images.samples import Samples
from vlm_vision.data.images.views import Crop, Plain, View
from vlm_vision.new_models import new_encoder
from vlm_vision.nn.fields import ViTFields, vit_config
from vlm_vision.probe.controls import most_frequent, pixel_features, random_twin
from vlm_vision.probe.features import image_features
from vlm_vision.probe.labeled import LabeledFeatures
from vlm_vision.probe.neighbors import FeatureFunction, knn_accuracy, labeled_images
from vlm_vision.train.command import parse_config, run_cli
from vlm_vision.train.image_data import image_batches, read_data
from vlm_vision.train.loop.step import Progress
from vlm_vision.train.results import write_results
from vlm_vision.train.settings import ImageData, Training, check_frozen
from vlm_vision.train.start import start_run
from vlm_vision.train.tasks.distill import (
    StudentWithLoss,
    Teacher,
    center_crop_preprocess,
    distill_step,
    square_side,
    standardize,
    teacher_cosine,
    teacher_features,
)
from vlm_vision.train.tasks.distill_stored import stored_teachers, stored_view
from vlm_vision.train.tasks.distill_student import AgglomerativeStudent


@dataclass(frozen=True, kw_only=True)
class DistillStudent:
    """The encoder that is trained: loaded, or new."""

    source: str = ""
    """Student to load and train on, an argument of vlm_vision.load; empty for a new one."""
    image_size: int = 0
    """Side in pixels to which a loaded student resizes images; 0 for its own."""
    fields: ViTFields = field(default_factory=dict)
    """Fields of ViTConfig for a student with random weights: image_size, patch_size, embed_dim, depth, num_heads, mlp_dim."""

    def __post_init__(self):
        if bool(self.source) == bool(self.fields):
            raise ValueError("expected one student: set student.source, or student.fields for one with random weights")
        if self.fields:
            vit_config(self.fields)


@dataclass(frozen=True, kw_only=True)
class DistillData(ImageData):
    """Sources of images, and the stored outputs of the teachers."""

    tokens: str = ""
    """Token stores of all images, one for each teacher in their order, joined by " + ", written by `vlm-vision tokens` with the
    teachers, which are then not loaded; empty to encode the images."""


@dataclass(frozen=True, kw_only=True)
class DistillConfig(Training):
    """One run."""

    data: DistillData
    """Images."""
    teachers: list[Teacher]
    """Frozen encoders whose features the student learns, a list of {source: ...}."""
    student: DistillStudent
    """Encoder that is trained."""
    crop_scale: tuple[float, float] = (0.4, 1.0)
    """Least and greatest area of the random crop in training, as a share of the image."""
    flip: float = 0.5
    """Probability that an image is mirrored, left to right."""
    statistics_steps: int = 10
    """Steps before training whose images give mean and standard deviation of each channel of the teachers."""
    lr: float = 1e-3
    """Highest learning rate."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay rates of AdamW's first and second moments."""
    weight_decay: float = 0.02
    """Weight decay of AdamW, for matrices; biases, norms, learned tokens and embeddings have none."""
    eval_limit: int = 0
    """Test images on which student and teachers are compared, spread evenly; 0 for all."""
    eval_neighbors: int = 2000
    """Labeled images of each of training and test data, for the nearest-neighbor test at the end; 0 for no such test."""

    REPLACES: ClassVar[dict[str, tuple[str, ...]]] = {
        "student.source": ("student.fields",),
        "student.fields": ("student.source",),
    }

    def __post_init__(self):
        super().__post_init__()
        self._at_least(1, "statistics_steps")
        self._at_least(0, "eval_limit", "eval_neighbors")
        whole = {"crop_scale [1, 1]": tuple(self.crop_scale) == (1, 1), "flip 0": self.flip == 0}
        check_frozen(self.data.tokens, whole)
        if not self.teachers:
            raise ValueError("there is no teacher: set teachers, a list of {source: ...}")
        names = [teacher.called for teacher in self.teachers]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"several teachers are called {', '.join(twice)}: give each a different name")


def main(config: DistillConfig) -> dict[str, Any]:
    """Run it. Returns what metrics.json holds, and the losses."""
    started = time.monotonic()
    accelerator = start_run(config)
    out = Path(config.out)
    train, test = read_data(config.data)
    measured = test[:: -(-len(test) // (config.eval_limit or len(test)))] if test else None
    with accelerator.main_process_first():
        loads = not config.data.tokens
        teachers = [teacher.read(weights=loads).to(accelerator.device) for teacher in config.teachers]
        model = model_of(config, teachers).to(accelerator.device)
    if accelerator.is_main_process:
        with TemporaryDirectory(dir=out) as folder:  # what cannot be saved is said before it is trained
            model.student.save(Path(folder) / "model")
    side = max(square_side(tower, "the student") for tower in (model.student.encoder, *teachers))
    view: View | Plain = View(crop=Crop(side, config.crop_scale), flip=config.flip)
    middle, stored = Plain(center_crop_preprocess(side)), None
    if config.data.tokens:
        stored = stored_teachers(config.data.tokens, teachers, (train, test), root=config.data.images)
        view = middle = stored_view([teacher.called for teacher in config.teachers], teachers, side)
    first = islice(image_batches(config, accelerator, train, [view], first_step=0), config.statistics_steps)
    standardize(accelerator, model.student, teachers, chain.from_iterable(first), stored)
    metrics: dict[str, Any] = {"processes": accelerator.num_processes}
    if measured:
        untrained = teacher_cosine(config, accelerator, model.student, teachers, measured, middle, stored)
        metrics |= {key.replace("cosine", "untrained"): untrained[key] for key in untrained if "cosine" in key}
    step = distill_step(config, accelerator, model, teachers, config.lr)

    # The loop.
    first_step, skipped = step.resume(), Skipped()
    batches = image_batches(config, accelerator, train, [view], first_step=first_step)
    with Progress(step, name="distill", first_step=first_step) as progress:
        step.trained.train()
        for index, pieces in enumerate(batches, start=first_step):
            done = index + 1
            for piece in pieces:
                skipped.add(piece)
            told = [stored(piece.images) if stored else {} for piece in pieces]
            progress.took(done, step(index, [{"views": p.views[0]} | t for p, t in zip(pieces, told, strict=True)]))
            if measured and config.eval_every and done % config.eval_every == 0 and done < config.steps:
                with step.measured():
                    progress.note(
                        done, teacher_cosine(config, accelerator, model.student, teachers, measured, middle, stored)
                    )
            if done % config.checkpoint_every == 0 and done < config.steps:
                step.save(done)

    # The end: a folder that loads elsewhere, and what it is worth.
    if measured:
        with step.measured():
            found = teacher_cosine(config, accelerator, model.student, teachers, measured, middle, stored)
        progress.note(config.steps, found)
        metrics |= found
    bad = accelerator.reduce(torch.tensor(skipped.bad, device=accelerator.device), "sum")
    metrics |= {"first_step": first_step, "skipped": int(torch.as_tensor(bad))}
    metrics |= {"final_loss": progress.losses[-1] if progress.losses else None}
    trained = step.whole_model(lambda: model_of(config, teachers))
    accelerator.end_training()
    if accelerator.is_main_process:
        assert isinstance(trained, StudentWithLoss)
        trained.student.save(out / "model")
        metrics |= {"train_seconds": time.monotonic() - started}
        if test and train.classes and config.eval_neighbors:
            student = vv.load(str(out / "model"), device=accelerator.device)
            called = [f"teacher {teacher.called}" for teacher in config.teachers]
            looks: dict[str, FeatureFunction] = {"student": partial(image_features, student, kind="mean")}
            for number, (name, tower) in enumerate(zip(called, teachers, strict=True)):
                looks[name] = stored.features[number].means if stored else partial(image_features, tower, kind="mean")
            metrics |= {"neighbors": neighbors(config, student, looks, train, test)}
        write_results(config, "distill", metrics)
        print(f"{table(metrics)}{skipped}\n{metrics['train_seconds']:.0f} s to train; all is in {config.out}")
    return metrics | {"losses": progress.losses}


def model_of(config: DistillConfig, teachers: Sequence[vv.Encoder]) -> StudentWithLoss:
    """The student, loaded or new, with heads for each teacher.

    Raises:
        ValueError: a student of several towers, or one whose images are not squares of one size.
    """
    student = config.student
    if student.source:
        encoder = vv.load(student.source, tap=vv.Tap(), image_size=student.image_size or None)
        if isinstance(encoder, vv.FusedEncoder):
            raise ValueError(f"student.source {student.source} holds several towers: expected one")
    else:
        encoder = new_encoder(student.fields)
        encoder.preprocess = center_crop_preprocess(encoder.config.image_size[0])
    spaces = [teacher_features(one.called, tower) for one, tower in zip(config.teachers, teachers, strict=True)]
    return StudentWithLoss(AgglomerativeStudent(encoder, spaces), [teacher.weight for teacher in config.teachers])


def neighbors(
    config: DistillConfig,
    student: vv.Encoder | vv.FusedEncoder,
    looks: dict[str, FeatureFunction],
    train: Samples,
    test: Samples,
) -> dict[str, float]:
    """Accuracy of nearest neighbors by tower and control; empty for fewer than five labeled images.

    Towers are compared by the mean of their patch tokens, which all of them have.

    Args:
        looks: name of a tower -> images to those means.
    """
    known, asked = (labeled_images(samples, config.eval_neighbors, config.seed) for samples in (train, test))
    if min(len(known.labels), len(asked.labels)) < 5:
        return {}
    twin = random_twin(student, seed=config.seed)
    looks = looks | {"random weights": partial(image_features, twin, kind="mean")}
    found = {name: knn_accuracy(see, known, asked, seed=config.seed) for name, see in looks.items()}
    blind = (LabeledFeatures(torch.zeros(len(part.labels), 1), part.labels) for part in (known, asked))
    found["pixels"] = knn_accuracy(pixel_features, known, asked, seed=config.seed)
    return found | {"most frequent class": most_frequent(*blind)}


def table(metrics: dict[str, Any]) -> str:
    """Similarity of the student to its teachers, and nearest neighbors."""
    lines = []
    for key in (key for key in metrics if key.startswith("eval_cosine/")):
        constant, untrained = (metrics[key.replace("cosine", other)] for other in ("constant", "untrained"))
        figures = f"cosine {metrics[key]:.3f}, best constant {constant:.3f}, untrained {untrained:.3f}"
        lines.append(f"{key.removeprefix('eval_cosine/'):32} {figures}")
    for name, share in metrics.get("neighbors", {}).items():
        lines.append(f"nearest neighbors, {name:30} {share:7.1%}")
    return "".join(f"{line}\n" for line in lines)


def parse(arguments: list[str] | None = None) -> DistillConfig:
    """A typed Config from --config FILE.yaml and --key value."""
    return parse_config(DistillConfig, "recipes.distill", __doc__, arguments)


if __name__ == "__main__":
    run_cli("recipes.distill", lambda: main(parse()))
