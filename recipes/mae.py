"""Train an encoder to predict the masked patches of images: masked autoencoding, without captions or labels.

    vlm-vision emoji --out emoji
    vlm-vision train mae --config mae_smoke
    torchrun --nnodes 8 --nproc_per_node 8 -m recipes.mae --config recipes/configs/mae_vit_l.yaml

He et al. 2022, "Masked autoencoders are scalable vision learners" (arXiv:2111.06377). The random crop of an image and its
masked patches depend on the seed, the step and the image alone: the number of processes and the size of micro-batches
change no loss. The next image replaces a damaged one, which is counted. A stopped run resumes when the same command is
run again.

Writes to `out`: model/ (for vlm_vision.load, vlm_vision.mae.load_mae and transformers' ViTMAEForPreTraining), metrics.json,
config.yaml, logs/ for TensorBoard, and checkpoints/ while it runs.
"""

import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

import vlm_vision as vv
from vlm_vision.data.images.batches import Skipped
from vlm_vision.data.images.views import Crop, View
from vlm_vision.files import whole
from vlm_vision.mae import DecoderConfig, MaskedAutoencoder, load_mae, new_mae
from vlm_vision.nn.fields import ViTFields, vit_config
from vlm_vision.preprocess.spec import HALF
from vlm_vision.probe.neighbors import neighbors
from vlm_vision.train.check_data import check_images
from vlm_vision.train.command import parse_config, run_cli
from vlm_vision.train.image_data import image_batches, read_data
from vlm_vision.train.loop.step import Progress
from vlm_vision.train.results import write_results
from vlm_vision.train.settings import ImageData, Training
from vlm_vision.train.start import start_run
from vlm_vision.train.tasks.mae import MaeWithLoss, held_out_loss, mae_step, tensors


@dataclass(frozen=True, kw_only=True)
class DecoderSettings:
    """Sizes of the decoder, which predicts the masked patches."""

    embed_dim: int = 512
    """Channels of the decoder's tokens."""
    depth: int = 8
    """Transformer blocks of the decoder."""
    num_heads: int = 16
    """Attention heads of each block of the decoder."""
    mlp_dim: int = 2048
    """Hidden channels of the MLP in each block of the decoder."""


@dataclass(frozen=True, kw_only=True)
class MaeModelSettings:
    """A new masked autoencoder, where `start` is empty."""

    encoder: ViTFields = field(default_factory=dict)
    """Fields of ViTConfig for the encoder: image_size, patch_size, embed_dim, depth, num_heads, mlp_dim and others."""
    decoder: DecoderSettings = DecoderSettings()
    """Sizes of the decoder."""
    mean: tuple[float, float, float] = HALF[0]
    """Mean of red, green and blue, in 0..1, by which pixels are normalized: (value - mean) / std."""
    std: tuple[float, float, float] = HALF[1]
    """Standard deviation of red, green and blue, in 0..1."""

    def __post_init__(self):
        if self.encoder:
            vit_config(self.encoder)


@dataclass(frozen=True, kw_only=True)
class MaeConfig(Training):
    """One run."""

    data: ImageData
    """Images."""
    start: str = ""
    """Folder, hub id or file of a masked autoencoder to start from; empty for a new one."""
    model: MaeModelSettings = MaeModelSettings()
    """New masked autoencoder, where `start` is empty."""
    mask_ratio: float = 0.75
    """Share of the patches that the encoder does not see."""
    norm_pix_loss: bool = True
    """Predict the pixels of each patch normalized by their own mean and deviation."""
    crop_scale: tuple[float, float] = (0.2, 1.0)
    """Least and greatest area of the random crop in training, as a share of the image."""
    flip: float = 0.5
    """Probability that an image is mirrored, left to right."""
    blr: float = 1.5e-4
    """Highest learning rate for 256 images in a step: the rate is blr * batch_size / 256."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay rates of AdamW's first and second moments."""
    weight_decay: float = 0.05
    """Weight decay of AdamW, for matrices; biases, norms, learned tokens and embeddings have none."""
    eval_limit: int = 0
    """Test images to measure the loss on, spread evenly; 0 for all."""
    eval_neighbors: int = 2000
    """Labeled images of each of training and test data, for the nearest-neighbor test at the end; 0 for no such test."""

    def __post_init__(self):
        super().__post_init__()
        self._at_least(0, "eval_limit", "eval_neighbors")
        if not self.start and not self.model.encoder:
            raise ValueError("there is nothing to train: set start or model.encoder")
        if not 0 < self.mask_ratio < 1:
            raise ValueError(f"mask_ratio is {self.mask_ratio}: expected a share above 0 and below 1, such as 0.75")


def main(config: MaeConfig) -> dict[str, Any]:
    """Run it. Returns what metrics.json holds, and the losses."""
    started = time.monotonic()
    accelerator = start_run(config)
    out = Path(config.out)
    train, test = read_data(config.data)
    check_images(accelerator, config.out, config.data, train, test)
    measured = test[:: -(-len(test) // (config.eval_limit or len(test)))] if test else None
    with accelerator.main_process_first():
        model = model_of(config)
    view = view_of(config, model)
    if accelerator.is_main_process:
        with TemporaryDirectory(dir=out) as folder:  # what cannot be saved is said before it is trained
            model.save_pretrained(Path(folder) / "model")
    step = mae_step(config, accelerator, model, config.blr * config.batch_size / 256)
    metrics: dict[str, Any] = {"processes": accelerator.num_processes}
    if measured:
        metrics |= {"eval_loss_at_start": held_out_loss(step, model, measured)}

    # The loop.
    first_step, skipped = step.resume(), Skipped()
    batches = image_batches(config, accelerator, train, [view], first_step=first_step)
    with Progress(step, name="mae", first_step=first_step) as progress:
        step.trained.train()
        for index, pieces in enumerate(batches, start=first_step):
            done = index + 1
            for piece in pieces:
                skipped.add(piece)
            progress.took(done, step(index, [tensors(piece, model) for piece in pieces]))
            if measured and config.eval_every and done % config.eval_every == 0:
                progress.note(done, {"eval_loss": held_out_loss(step, model, measured)})
            if done % config.checkpoint_every == 0 and done < config.steps:
                step.save(done)

    # The end: a folder that loads elsewhere, and what it is worth.
    if measured:
        metrics |= {"eval_loss": held_out_loss(step, model, measured)}
    bad = accelerator.reduce(torch.tensor(skipped.bad, device=accelerator.device), "sum")
    metrics |= {"first_step": first_step, "skipped": int(torch.as_tensor(bad))}
    metrics |= {"final_loss": progress.losses[-1] if progress.losses else None}
    trained = step.whole_model(lambda: MaeWithLoss(model_of(config))).get_submodule("mae")
    accelerator.end_training()
    if accelerator.is_main_process:
        assert isinstance(trained, MaskedAutoencoder)
        with whole(out / "model") as staging:
            trained.save_pretrained(staging)
        metrics |= {"train_seconds": time.monotonic() - started}
        if test and train.classes and config.eval_neighbors:
            encoder = vv.load(str(out / "model"), device=accelerator.device)
            found = neighbors(encoder, train, test, limit=config.eval_neighbors, seed=config.seed)
            metrics |= {"neighbors": found}
        write_results(config, "mae", metrics)
        print(f"{table(metrics)}{skipped}\n{metrics['train_seconds']:.0f} s to train; all is in {config.out}")
    return metrics | {"losses": progress.losses}


def model_of(config: MaeConfig) -> MaskedAutoencoder:
    """The masked autoencoder to train: loaded, or new."""
    if config.start:
        model = load_mae(config.start)
    else:
        model = new_mae(config.model.encoder, DecoderConfig(**asdict(config.model.decoder)))
        seen = replace(model.encoder.preprocess, mean=config.model.mean, std=config.model.std)
        model.encoder.preprocess = seen
    model.config = replace(model.config, mask_ratio=config.mask_ratio, normalize=config.norm_pix_loss)
    return model


def view_of(config: MaeConfig, model: MaskedAutoencoder) -> View:
    """The random view of an image in training.

    Raises:
        ValueError: an encoder whose images are not squares of one size, in whole patches.
    """
    size, patch = model.encoder.preprocess.output_size, model.encoder.config.patch_size
    if size is None or size[0] != size[1]:
        raise ValueError(
            f"the encoder takes images of {size or 'any size'}: expected one square size, because crops are square"
        )
    if size[0] % patch:
        near = size[0] // patch * patch
        raise ValueError(
            f"crops of {size[0]} pixels are not a whole number of patches of {patch}: choose image_size {near} or {near + patch}"
        )
    return View(crop=Crop(size[0], config.crop_scale), flip=config.flip)


def table(metrics: dict[str, Any]) -> str:
    """The loss on held-out images before and after, and nearest neighbors."""
    lines = []
    if "eval_loss" in metrics:
        lines.append(f"held-out loss: {metrics['eval_loss_at_start']:.4f} before, {metrics['eval_loss']:.4f} after")
    for name, share in metrics.get("neighbors", {}).items():
        lines.append(f"nearest neighbors, {name:20} {share:7.1%}")
    return "".join(f"{line}\n" for line in lines)


def parse(arguments: list[str] | None = None) -> MaeConfig:
    """A typed Config from --config FILE.yaml and --key value."""
    return parse_config(MaeConfig, "recipes.mae", __doc__, arguments)


if __name__ == "__main__":
    run_cli("recipes.mae", lambda: main(parse()))
