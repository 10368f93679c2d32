"""Train an encoder to agree, across crops of an image, with the moving average of itself: DINO, iBOT, DINOv2.

    vlm-vision emoji --out emoji
    vlm-vision train self_distill --config self_distill_smoke
    torchrun --nnodes 4 --nproc_per_node 8 -m recipes.self_distill --config recipes/configs/dinov2_vit_l.yaml

Caron et al. 2021, "Emerging properties in self-supervised vision transformers" (arXiv:2104.14294), is `--weights.ibot 0
--weights.koleo 0 --teacher center`; Zhou et al. 2022, "iBOT" (arXiv:2111.07832), `--weights.koleo 0 --teacher center`; Oquab
et al. 2023, "DINOv2" (arXiv:2304.07193), all of it; Gram anchoring is of Siméoni et al. 2025, "DINOv3" (arXiv:2508.10104),
whose later phases each `start` from the run before: dinov3_gram.yaml and dinov3_high_res.yaml.

The crops of an image and their masked patches depend on the seed, the step and the image alone. Sinkhorn, the
centers and KoLeo compare the images of a micro-batch in all processes: where processes times micro_batch_size is the same,
losses are (without drop_path, which is drawn in each process). The next image replaces a damaged one, which is counted. A
stopped run resumes when the same command is run again.

Writes to `out`: model/ (the teacher's encoder, for vlm_vision.load and for transformers' Dinov2Model,
Dinov2WithRegistersModel, with rope2d DINOv3ViTModel or, without layer_scale, ViTModel), networks.safetensors (student, teacher
and heads, for another run to `start` from), metrics.json, config.yaml, logs/ for TensorBoard, and checkpoints/ while it runs.
"""

import math
import time
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
from accelerate import Accelerator

import vlm_vision as vv
from vlm_vision.data.images.batches import Skipped
from vlm_vision.data.images.samples import Samples
from vlm_vision.data.images.views import Crop, View, dino_views
from vlm_vision.encoder import Origin
from vlm_vision.files import whole
from vlm_vision.new_models import new_encoder
from vlm_vision.nn.fields import ViTFields, vit_config
from vlm_vision.nn.vit import VisionTransformer
from vlm_vision.preprocess.spec import IMAGENET, Preprocess
from vlm_vision.probe.features import image_features
from vlm_vision.probe.neighbors import LabeledImages, knn_accuracy, labeled_images, neighbors
from vlm_vision.train.check_data import check_images
from vlm_vision.train.command import parse_config, run_cli
from vlm_vision.train.image_data import image_batches, read_data
from vlm_vision.train.loop.step import Progress, Step
from vlm_vision.train.optim.schedules import cosine, linear
from vlm_vision.train.results import write_results
from vlm_vision.train.settings import ImageData, Training
from vlm_vision.train.start import start_run
from vlm_vision.train.tasks.self_distill import (
    BlockMaskSettings,
    DinoHeadSettings,
    LossWeights,
    SelfDistillation,
    Sharpen,
    gram_teacher,
    prepare,
    self_distill_step,
    student_of,
    teacher_of,
    tensors,
)
from vlm_vision.train.tasks.self_distill_gram import GramSettings, earlier_teacher
from vlm_vision.train.tasks.self_distill_networks import load_networks, save_networks


@dataclass(frozen=True, kw_only=True)
class SelfDistillStudent:
    """The encoder that is trained; the teacher starts from the same weights."""

    fields: ViTFields = field(default_factory=dict)
    """Fields of ViTConfig: image_size, patch_size, embed_dim, depth, num_heads, mlp_dim, layer_scale, num_registers and others."""
    init: Literal["fan_in", "published"] = "fan_in"
    """Standard deviation of new linear weights: 1 / sqrt(fan in) (fan_in, better for narrow models), or 0.02 (published) as in
    DINOv2."""
    crop_ratio: float = 0.875
    """Side of the center crop in the test, as a share of the resized image's shorter side."""

    def __post_init__(self):
        if not 0 < self.crop_ratio <= 1:
            raise ValueError(f"student.crop_ratio is {self.crop_ratio}: expected a part above 0 and at most 1")
        if not self.fields:
            raise ValueError("there is no student: set student.fields, such as image_size, patch_size and embed_dim")
        vit_config(self.all_fields())

    def all_fields(self) -> ViTFields:
        """The fields, with defaults that follow from them, as in transformers."""
        rope, antialias = self.fields.get("position") == "rope2d", self.fields.get("num_registers", 0) > 0
        like: ViTFields = {"mask_token": True, "position_prefix": 0 if rope else 1}
        like |= {"position_resize": "bicubic" + "_antialias" * antialias}
        return like | self.fields


@dataclass(frozen=True, kw_only=True)
class CropSettings:
    """Crops of an image: two large ones, of the encoder's image_size, and several small ones."""

    small: int = 8
    """Number of small crops."""
    small_size: int = 96
    """Side of a small crop in pixels."""
    scale: float = 0.32
    """Share of an image's area above which a crop is large and below which it is small; 0.4 in DINO."""
    flip: float = 0.5
    """Probability that an image is mirrored, left to right; 0 in DINOv3."""
    pack_crops: bool = False
    """Pack large and small crops into one sequence for the student, each attending to itself alone, instead of one batch after
    the other. Losses are the same but for rounding. On the CPU it takes 0.9 to 1.1 times as long (benchmarks.packed_crops);
    on a GPU in half precision the sequence goes through attention of variable length, as in DINOv2."""


@dataclass(frozen=True, kw_only=True)
class SelfDistillConfig(Training):
    """One run."""

    data: ImageData
    """Images."""
    student: SelfDistillStudent
    """Encoder that is trained."""
    crops: CropSettings = CropSettings()
    """Crops of each image."""
    masks: BlockMaskSettings = BlockMaskSettings()
    """Masks of the student's large crops."""
    heads: DinoHeadSettings = DinoHeadSettings()
    """Heads of student and teacher."""
    patch_heads: DinoHeadSettings | None = None
    """Heads for patches, as in DINOv3; empty for one head for class token and patches."""
    weights: LossWeights = LossWeights()
    """Weights of the parts of the loss."""
    teacher: Sharpen = "sinkhorn"
    """Method that turns the teacher's logits into probabilities without collapse: sinkhorn (DINOv2, DINOv3) or center (DINO)."""
    temperature: tuple[float, float] = (0.04, 0.07)
    """First and last temperature of the teacher."""
    temperature_steps: int = 0
    """Steps in which the temperature goes from first to last, in a straight line; 0 for the last at once."""
    momentum: tuple[float, float] = (0.992, 1.0)
    """First and last momentum of the teacher along a cosine: the share that a step keeps."""
    gram: GramSettings = GramSettings()
    """Gram anchoring (DINOv3), for weights.gram above 0."""
    start: str = ""
    """Folder of a finished run to start from, with student, teacher and heads; positions are resized to image_size and AdamW's
    moments start from zero. Empty for random weights."""
    start_student: Literal["student", "teacher"] = "student"
    """Network of the run in `start` whose weights the student takes."""
    base_lr: float = 4e-3
    """Highest learning rate for 1024 images in a step; it grows with the square root of their number."""
    lr_end: float = 0.0
    """Share of the learning rate that is left at the end of the cosine; 1 to keep it."""
    layer_decay: float = 0.9
    """Factor on the learning rate for each layer further from the heads."""
    patch_embed_rate: float = 0.2
    """Additional factor on the learning rate of the patch embedding."""
    frozen_steps: int = 0
    """First steps in which the last layers of the heads do not train."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of AdamW's first and second moments."""
    weight_decay: float = 0.04
    """First weight decay of AdamW, for matrices; biases, norms, learned tokens and embeddings have none."""
    weight_decay_end: float = 0.4
    """Last weight decay, at the end of a cosine."""
    max_grad_norm: float = 3.0
    """Largest norm of the gradient, which is scaled down to it; .inf for no limit."""
    eval_neighbors: int = 2000
    """Labeled images of each of training and test data, for nearest-neighbor tests; 0 for no such test."""

    def __post_init__(self):
        super().__post_init__()
        self._at_least(0, "temperature_steps", "frozen_steps", "eval_neighbors")
        if self.crops.small < 0:
            raise ValueError(f"crops.small is {self.crops.small}: expected at least 0")
        if min(self.temperature) <= 0:
            raise ValueError(f"temperature is {self.temperature}: expected two positive numbers, such as 0.04 and 0.07")
        if not all(0 <= one <= 1 for one in self.momentum):
            raise ValueError(f"momentum is {self.momentum}: expected two numbers from 0 to 1, such as 0.992 and 1")
        if not 0 <= self.lr_end <= 1:
            raise ValueError(f"lr_end is {self.lr_end}: expected a part from 0 to 1")
        if bool(self.gram.teacher) != (self.weights.gram > 0):
            raise ValueError("weights.gram and gram.teacher belong together: set both or neither")

    @property
    def lr(self) -> float:
        return self.base_lr * math.sqrt(self.batch_size / 1024)


def main(config: SelfDistillConfig) -> dict[str, Any]:
    """Run it. Returns what metrics.json holds, and the losses."""
    started = time.monotonic()
    accelerator = start_run(config)
    out = Path(config.out)
    train, test = read_data(config.data)
    check_images(accelerator, config.out, config.data, train, test)
    with accelerator.main_process_first():
        model = model_of(config)
        if config.start:
            load_networks(model, config.start, student=config.start_student)
    encoder, views = model.student.encoder, views_of(config, model.student.encoder)
    if accelerator.is_main_process:
        with TemporaryDirectory(dir=out) as folder:  # what cannot be saved is said before it is trained
            to_public_layout(encoder).save_pretrained(Path(folder) / "model")
    step = self_distill_step(
        config,
        accelerator,
        model,
        lr=config.lr,
        layer_decay=config.layer_decay,
        patch_embed_rate=config.patch_embed_rate,
        frozen_steps=config.frozen_steps,
        lr_end=config.lr_end,
    )
    start, end = config.temperature
    temperature = partial(linear, start=start, end=end, steps=config.temperature_steps)
    momentum = partial(cosine, start=config.momentum[0], end=config.momentum[1], steps=config.steps)
    weight_decay = partial(cosine, start=config.weight_decay, end=config.weight_decay_end, steps=config.steps)
    masks = config.masks if config.weights.ibot else None
    looked = evaluation_images(config, train, test) if config.eval_every else None

    # The loop.
    first_step, skipped = step.resume(), Skipped()
    earlier = gram_teacher(model) if config.gram.image_size else None
    alike = {len(views) - 2: 0, len(views) - 1: 1} if earlier else {}
    batches = image_batches(config, accelerator, train, views, first_step=first_step, alike=alike)
    with Progress(step, name="self_distill", first_step=first_step) as progress:
        step.trained.train()
        for index, pieces in enumerate(batches, start=first_step):
            done = index + 1
            for piece in pieces:
                skipped.add(piece)
            prepare(step, index, weight_decay)
            progress.took(
                done, step(index, [tensors(piece, encoder, temperature(index), masks, earlier) for piece in pieces])
            )
            model.teacher.update(student_of(step.model), momentum(index))
            if config.gram.due(done):
                model.refresh()
            if done % config.log_every == 0:
                progress.note(done, reduced_loss_parts(accelerator, model))
            if looked and done % config.eval_every == 0 and done < config.steps:
                progress.note(done, {"neighbors": neighbor_accuracy(config, step, *looked)})
            if done % config.checkpoint_every == 0 and done < config.steps:
                step.save(done)

    # The end: a folder that loads elsewhere, and what it is worth.
    bad = accelerator.reduce(torch.tensor(skipped.bad, device=accelerator.device), "sum")
    metrics: dict[str, Any] = {"first_step": first_step, "processes": accelerator.num_processes}
    metrics |= {"skipped": int(torch.as_tensor(bad))}
    metrics |= {"final_loss": progress.losses[-1] if progress.losses else None}
    trained = step.whole_model(lambda: model_of(config))
    accelerator.end_training()
    if accelerator.is_main_process:
        assert isinstance(trained, SelfDistillation)
        save_networks(trained, out)
        with whole(out / "model") as staging:
            to_public_layout(teacher_of(trained).encoder).save_pretrained(staging)
        metrics |= {"train_seconds": time.monotonic() - started}
        if test and train.classes and config.eval_neighbors:
            kept = vv.load(str(out / "model"), device=accelerator.device)
            found = neighbors(kept, train, test, limit=config.eval_neighbors, seed=config.seed)
            metrics |= {"neighbors": found}
        write_results(config, "self_distill", metrics)
        print(f"{table(metrics)}{skipped}\n{metrics['train_seconds']:.0f} s to train; all is in {config.out}")
    return metrics | {"losses": progress.losses}


def model_of(config: SelfDistillConfig) -> SelfDistillation:
    """Student and teacher, with equal weights.

    Raises:
        ValueError: fields that make no encoder, one without class token, or an earlier teacher with another grid.
    """
    encoder = new_encoder(config.student.all_fields())
    rope, has_registers = encoder.config.position == "rope2d", encoder.config.num_registers > 0
    family = "dinov3_vit" if rope else "dinov2_with_registers" if has_registers else "dinov2"
    if not encoder.config.class_token or not encoder.config.mask_token:
        raise ValueError("student.fields turn off the class token or the mask token: both are needed for training")
    if config.student.init == "published":
        encoder.model.reset_parameters()
    if encoder.config.layer_scale is not None:
        encoder.origin = Origin(family, "transformers")
    encoder.preprocess = eval_preprocess(encoder.config.image_size, config.student.crop_ratio)
    return SelfDistillation(
        encoder,
        config.heads,
        config.weights,
        patch_heads=config.patch_heads,
        sharpen=config.teacher,
        earlier=earlier_teacher(config.gram, encoder) if config.gram.teacher else None,
        negatives=config.gram.negatives,
        pack=config.crops.pack_crops,
    )


def eval_preprocess(size: tuple[int, int], crop_ratio: float) -> Preprocess:
    """Preprocessing in the test: the center crop of an image, with ImageNet's normalization."""
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


def views_of(config: SelfDistillConfig, encoder: vv.Encoder) -> tuple[View, ...]:
    """Crops of an image: two large ones, the small ones, and where gram.image_size says so the large ones undistorted.

    Raises:
        ValueError: crops that are not squares of whole patches.
    """
    (height, width), patch, crops = encoder.config.image_size, encoder.config.patch_size, config.crops
    if height != width:
        raise ValueError(f"image_size is {(height, width)}: expected one square size, because crops are square")
    for size in (width, *[crops.small_size] * (crops.small > 0), *filter(None, [config.gram.image_size])):
        if size % patch or size < patch:
            near = max(1, size // patch) * patch
            raise ValueError(
                f"crops of {size} pixels are not a whole number of patches of {patch}: choose {near} or {near + patch}"
            )
    views = dino_views(
        size=width, local_size=crops.small_size, num_local=crops.small, scale=crops.scale, flip=crops.flip
    )
    if not config.gram.image_size:
        return views
    return *views, *[View(crop=Crop(config.gram.image_size, (crops.scale, 1.0)), flip=crops.flip)] * 2


def to_public_layout(encoder: vv.Encoder) -> vv.Encoder:
    """The encoder as its public layout has it: without LayerScale it is a plain ViT, which has no mask token."""
    if encoder.config.layer_scale is not None:
        return encoder
    model = VisionTransformer(replace(encoder.config, mask_token=False))
    model.load_state_dict({name: value for name, value in encoder.model.state_dict().items() if name != "mask_token"})
    return vv.Encoder(model, preprocess=encoder.preprocess, origin=encoder.origin)


def reduced_loss_parts(accelerator: Accelerator, model: SelfDistillation) -> dict[str, float]:
    """Parts of the last micro-batch's loss, averaged over processes; every process must call it."""
    return {
        f"loss/{name}": torch.as_tensor(accelerator.reduce(part, "mean")).item()
        for name, part in model.loss_parts.items()
    }


def evaluation_images(
    config: SelfDistillConfig, train: Samples, test: Samples | None
) -> tuple[LabeledImages, LabeledImages] | None:
    """Labeled images for tests during training; None for fewer than five."""
    if test is None or not train.classes:
        return None
    known, asked = (labeled_images(samples, config.eval_neighbors, config.seed) for samples in (train, test))
    return (known, asked) if min(len(known.labels), len(asked.labels)) >= 5 else None


def neighbor_accuracy(config: SelfDistillConfig, step: Step, known: LabeledImages, asked: LabeledImages) -> float:
    """Accuracy of nearest neighbors of the teacher's features; every process must call it and encodes all images, because
    a sharded model is gathered by all."""
    with step.measured(), step.accelerator.autocast():
        return knn_accuracy(partial(image_features, teacher_of(step.model).encoder), known, asked, seed=config.seed)


def table(metrics: dict[str, Any]) -> str:
    """Nearest neighbors by encoder and control."""
    found = metrics.get("neighbors", {})
    return "".join(f"nearest neighbors, {name:20} {share:7.1%}\n" for name, share in found.items())


def parse(arguments: list[str] | None = None) -> SelfDistillConfig:
    """A typed Config from --config FILE.yaml and --key value."""
    return parse_config(SelfDistillConfig, "recipes.self_distill", __doc__, arguments)


if __name__ == "__main__":
    run_cli("recipes.self_distill", lambda: main(parse()))
