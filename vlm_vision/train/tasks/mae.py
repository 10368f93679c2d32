"""Masked-autoencoder training as a task for `Step`, and the loss on test images."""

from collections.abc import Sequence

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader

from vlm_vision.data.images.batches import ImageBatch, ImageDataset, collate
from vlm_vision.data.images.samples import Sample
from vlm_vision.data.images.views import Plain, normalize_views
from vlm_vision.mae import MaskedAutoencoder
from vlm_vision.objectives.mae import mae_loss
from vlm_vision.objectives.masks import patch_noise
from vlm_vision.train.loop.step import Batch, Step, Task
from vlm_vision.train.optim.groups import parameter_groups
from vlm_vision.train.settings import Training


class MaeWithLoss(nn.Module):
    """A masked autoencoder whose output is its loss, so that wrappers for several processes see one forward."""

    def __init__(self, mae: MaskedAutoencoder):
        super().__init__()
        self.mae = mae

    def forward(self, pixels: Tensor, noise: Tensor) -> Tensor:
        """The mean over the images, all of which have equally many masked patches."""
        painted, size = self.mae(pixels, noise), self.mae.encoder.config.patch_size
        return mae_loss(painted.predicted, pixels, painted.mask, patch_size=size, normalize=self.mae.config.normalize)


def mae_step(settings: Training, accelerator: Accelerator, model: MaskedAutoencoder, lr: float) -> Step:
    """Steps that train encoder and decoder with one learning rate; a term of the loss is an image.

    With `settings.gradient_checkpointing` the encoder's blocks are computed again, the decoder's are not.
    """
    model.encoder.model.gradient_checkpointing = settings.gradient_checkpointing

    def parts(model: nn.Module) -> dict[str, nn.Module]:
        return {name: model.get_submodule(f"mae.{name}") for name in ("encoder", "decoder")}

    def groups(model: nn.Module) -> list[dict]:
        return parameter_groups([(part, lr) for part in parts(model).values()], weight_decay=settings.weight_decay)

    task = Task(
        loss=lambda model, batch: model(batch["pixels"], batch["noise"]) * len(batch["pixels"]),
        terms=lambda batch: torch.tensor(len(batch["pixels"]), device=batch["pixels"].device),
        unit="picture",
        parts=parts,
        groups=groups,
        layers=frozenset({"Block"}),
    )
    return Step(settings, accelerator, MaeWithLoss(model), task)


def seeded_noise(seeds: Sequence[int], patches: int) -> Tensor:
    """(B, N) on the CPU: what is masked of an image follows from its seed alone, however a batch is cut."""
    return torch.cat([patch_noise(1, patches, torch.Generator().manual_seed(seed)) for seed in seeds])


def tensors(drawn: ImageBatch, model: MaskedAutoencoder) -> Batch:
    """What the model sees of each image, and the noise that masks it."""
    (views,) = drawn.views
    pixels = normalize_views(views.to(model.encoder.device), model.encoder.preprocess)
    patches = model.encoder.num_patch_tokens(pixels.shape[-2], pixels.shape[-1])
    return {"pixels": pixels, "noise": seeded_noise(drawn.seeds, patches)}


def held_out_loss(step: Step, model: MaskedAutoencoder, samples: Sequence[Sample]) -> float:
    """Mean loss over images as `preprocess` makes them, each with noise that is the same in every run.

    Every process must call it and sees its share. An image that cannot be decoded gives way to the next.

    Args:
        model: the one that `step` trains.
    """
    accelerator, settings, size = step.accelerator, step.settings, step.settings.micro_batch_size
    batches = [list(range(i, min(i + size, len(samples)))) for i in range(0, len(samples), size)]
    processes = accelerator.num_processes
    turns = range(accelerator.process_index, -(-len(batches) // processes) * processes, processes)
    loader = DataLoader(
        ImageDataset(samples, [Plain(model.encoder.preprocess)]),
        batch_sampler=[batches[min(turn, len(batches) - 1)] for turn in turns],
        collate_fn=collate,
        num_workers=settings.workers,
        generator=torch.Generator(),
    )
    total = torch.zeros((), device=accelerator.device)
    step.trained.eval()
    with step.measured():
        for turn, drawn in zip(turns, loader, strict=True):
            batch = tensors(drawn, model)
            with accelerator.autocast():
                loss = step.trained(batch["pixels"], batch["noise"].to(accelerator.device))
            if turn < len(batches):  # past the last batch a process only keeps the others company
                total += loss * len(drawn.seeds)
    step.trained.train()
    return torch.as_tensor(accelerator.reduce(total, "sum")).item() / len(samples)
