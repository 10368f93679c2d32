"""What `benchmarks.pretraining_peers` compares: models and steps of open_clip and lightly, and ours on the same weights.

For each objective `write` makes the peer's model with random weights and saves it, `theirs` and `ours` read that folder and
give a function that takes one optimizer step on a batch and returns its loss. The peers' steps are those of open_clip's
training loop and of lightly's examples, made of their own parts. Shapes: B images, L tokens of a text, S small crops.
"""

import argparse
import json
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

import vlm_vision as vv
from benchmarks.peers import import_peer
from vlm_vision.encoder import Encoder
from vlm_vision.mae import load_mae
from vlm_vision.new_models import new_encoder
from vlm_vision.train.loop.step import Step
from vlm_vision.train.optim.groups import warmup_cosine
from vlm_vision.train.settings import Training
from vlm_vision.train.tasks.contrastive import LARGEST_SCALE, ContrastiveLossSettings, contrastive_step, keep_scale
from vlm_vision.train.tasks.mae import mae_step
from vlm_vision.train.tasks.self_distill import (
    DinoHeadSettings,
    LossWeights,
    SelfDistillation,
    prepare,
    self_distill_step,
    student_of,
)

Batch = dict[str, Tensor]
Take = Callable[[Batch], Tensor]
"""One optimizer step; the loss before it."""

PARTS = (
    "open_clip",
    "lightly.loss.dino_loss",
    "lightly.models.modules.heads",
    "lightly.models.modules.masked_vision_transformer_timm",
    "lightly.models.modules.masked_vision_transformer_decoder_timm",
)
"""What is imported of the peers."""

RATE = 1e-3
MOMENTUM, TEMPERATURE = 0.99, 0.04
"""Of DINO's teacher."""
HEADS = DinoHeadSettings(prototypes=8192, hidden_dim=1024, bottleneck_dim=256)
MASK_RATIO, DECODER_DEPTH, DECODER_HEADS = 0.75, 4, 4
VOCABULARY, CONTEXT = 8192, 32

_LEARNED = ("positional_embedding", "class_embedding", "token_embedding.weight", "pos_embed", "cls_token", "latent")
"""What the peers call tokens, positions and embeddings: without weight decay, as `parameter_groups` has it."""


@dataclass(frozen=True)
class Objective:
    """One row of the table."""

    peer: str
    write: Callable[[Path, argparse.Namespace], None]
    theirs: Callable[[Path, argparse.Namespace], Take]
    ours: Callable[[Path, argparse.Namespace], Take]


def settings_of(options: argparse.Namespace, folder: Path) -> Training:
    """The same for both sides."""
    return Training(
        out=str(folder / "run"),
        steps=1_000_000,  # the learning rate hardly falls
        batch_size=options.batch,
        micro_batch_size=options.batch,
        warmup_steps=4,
        weight_decay=0.05,
        max_grad_norm=1.0,
        mixed_precision="bf16" if options.dtype == "bfloat16" else "no",
        tracker="none",
    )


def our_step(
    step: Callable[[Training, Accelerator], Step],
    options: argparse.Namespace,
    folder: Path,
    *,
    before: Callable[[Step, int], object] = lambda step, index: None,
    after: Callable[[Step], object] = lambda step: None,
) -> Take:
    """As a recipe takes it."""
    settings = settings_of(options, folder)
    made = step(settings, Accelerator(mixed_precision=settings.mixed_precision, cpu=options.device == "cpu"))
    made.trained.train()
    count = 0

    def take(batch: Batch) -> Tensor:
        nonlocal count
        before(made, count)
        taken = made(count, [batch])
        after(made)
        count += 1
        return taken.loss

    return take


def their_step(
    model: nn.Module,
    loss: Callable[[Batch], Tensor],
    options: argparse.Namespace,
    folder: Path,
    *,
    before: Callable[[], object] = lambda: None,
    after: Callable[[], object] = lambda: None,
) -> Take:
    """Autocast, backward, clipping, AdamW, schedule; with our settings, groups and schedule."""
    settings, half = settings_of(options, folder), options.dtype == "bfloat16"
    model.to(options.device).train()
    decayed, plain = [], []
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            matrix = sum(size > 1 for size in weight.shape) >= 2 and not name.endswith(_LEARNED)
            (decayed if matrix else plain).append(weight)
    groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=settings.betas)
    schedule = warmup_cosine(optimizer, warmup_steps=settings.warmup_steps, steps=settings.steps)

    def take(batch: Batch) -> Tensor:
        batch = {name: value.to(options.device, non_blocking=True) for name, value in batch.items()}
        before()
        with torch.autocast(options.device, torch.bfloat16, enabled=half):
            value = loss(batch)
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), settings.max_grad_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        after()
        return value.detach()

    return take


# Contrastive pairs: open_clip.


def clip_model(options: argparse.Namespace) -> nn.Module:
    """open_clip's CLIP."""
    make = import_peer("open_clip.model").CLIP
    return make(**_clip_fields(options), output_dict=True)


def siglip_model(options: argparse.Namespace) -> nn.Module:
    """open_clip's CustomTextCLIP around timm's tower, which open_clip makes in its published sizes alone."""
    fields = _siglip_fields(options) | {"vision_cfg": dict(layers=1, width=64, image_size=32, patch_size=32)}
    model = import_peer("open_clip.model").CustomTextCLIP(**fields, output_dict=True)
    trunk = _timm("vit_base_patch16_siglip_224", options, num_classes=0, global_pool="map")
    model.visual = nn.Sequential(OrderedDict(trunk=trunk))
    return model


def _clip_fields(options: argparse.Namespace) -> dict[str, Any]:
    vision = dict(image_size=options.side, patch_size=options.patch, width=options.width, layers=options.depth)
    text = dict(context_length=CONTEXT, vocab_size=VOCABULARY, width=options.width, heads=options.heads)
    return dict(
        embed_dim=options.width,
        vision_cfg=vision | {"head_width": options.width // options.heads},
        text_cfg=text | {"layers": options.depth},
    )


def _siglip_fields(options: argparse.Namespace) -> dict[str, Any]:
    fields = _clip_fields(options)
    text = dict(no_causal_mask=True, proj_bias=True, pool_type="last", norm_kwargs={"eps": 1e-6})
    scale = torch.tensor(10.0).log().item()
    return fields | dict(text_cfg=fields["text_cfg"] | text, init_logit_scale=scale, init_logit_bias=-10.0)


def write_clip(folder: Path, options: argparse.Namespace) -> None:
    """A folder as open_clip publishes it."""
    _write_pair(folder, clip_model(options), _clip_fields(options))


def write_siglip(folder: Path, options: argparse.Namespace) -> None:
    """A folder as open_clip publishes it."""
    trunk = dict(timm_model_name="vit_base_patch16_siglip_224", timm_pool="map", image_size=options.side)
    fields = _siglip_fields(options) | {"vision_cfg": trunk | {"timm_model_kwargs": _size(options)}}
    _write_pair(folder, siglip_model(options), fields)


def _write_pair(folder: Path, model: nn.Module, fields: dict[str, Any]) -> None:
    torch.save(model.state_dict(), folder / "open_clip_pytorch_model.bin")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": fields, "preprocess_cfg": {}}))


def their_clip(folder: Path, options: argparse.Namespace) -> Take:
    return _their_pair(folder, options, clip_model(options), import_peer("open_clip.loss").ClipLoss())


def their_siglip(folder: Path, options: argparse.Namespace) -> Take:
    return _their_pair(folder, options, siglip_model(options), import_peer("open_clip.loss").SigLipLoss())


def _their_pair(folder: Path, options: argparse.Namespace, model: Any, loss: nn.Module) -> Take:
    _restore(model, folder / "open_clip_pytorch_model.bin")

    @torch.no_grad()
    def keep() -> None:
        model.logit_scale.clamp_(0, LARGEST_SCALE)

    return their_step(model, lambda batch: loss(**model(batch["pixels"], batch["ids"])), options, folder, after=keep)


def our_clip(folder: Path, options: argparse.Namespace) -> Take:
    return _our_pair(folder, options, ContrastiveLossSettings(loss="clip"))


def our_siglip(folder: Path, options: argparse.Namespace) -> Take:
    return _our_pair(folder, options, ContrastiveLossSettings(loss="siglip"))


def _our_pair(folder: Path, options: argparse.Namespace, contrast: ContrastiveLossSettings) -> Take:
    pair, rates = vv.load_pair(folder), {part: RATE for part in ("image", "text", "logits")}
    return our_step(
        lambda settings, accelerator: contrastive_step(settings, accelerator, pair, contrast, rates=rates),
        options,
        folder,
        after=lambda step: keep_scale(pair),
    )


# Masked autoencoders: lightly.


class TheirAutoencoder(nn.Module):
    """lightly's encoder and decoder for timm's blocks, with the two linear maps that it leaves to the user."""

    def __init__(self, options: argparse.Namespace):
        super().__init__()
        encoder = import_peer("lightly.models.modules.masked_vision_transformer_timm").MaskedVisionTransformerTIMM
        decoder = import_peer("lightly.models.modules.masked_vision_transformer_decoder_timm")
        width, patches = options.width * 2 // 3, (options.side // options.patch) ** 2
        self.utils, self.patch = import_peer("lightly.models.utils"), options.patch
        self.encoder = encoder(_timm("vit_base_patch16_224", options, num_classes=0))
        self.encoder.mask_token = None  # of other methods
        self.embed = nn.Linear(options.width, width)
        self.decoder = decoder.MaskedVisionTransformerDecoderTIMM(patches, width, DECODER_DEPTH, DECODER_HEADS)
        self.pixels = nn.Linear(width, options.patch**2 * 3)

    def forward(self, pixels: Tensor, noise: Tensor) -> Tensor:
        """Mean square error over the masked patches, which alone are predicted."""
        order = nn.functional.pad(noise.argsort(dim=1) + 1, (1, 0))  # CLS first
        seen = 1 + int(noise.shape[1] * (1 - MASK_RATIO))
        keep, masked = order[:, :seen], order[:, seen:]
        tokens = self.embed(self.encoder.encode(pixels, idx_keep=keep))
        full = self.utils.repeat_token(self.decoder.mask_token, (len(pixels), 1 + noise.shape[1]))
        full = self.utils.set_at_index(full.type_as(tokens), keep, tokens)
        predicted = self.pixels(self.utils.get_at_index(self.decoder(full), masked))
        wanted = self.utils.get_at_index(self.utils.patchify(pixels, self.patch), masked - 1)
        return nn.functional.mse_loss(predicted, wanted)


def write_mae(folder: Path, options: argparse.Namespace) -> None:
    """lightly's state dict, and the same by the names of facebookresearch/mae."""
    model = TheirAutoencoder(options)
    torch.save(model.state_dict(), folder / "lightly.bin")
    decoder = {name: value for name, value in model.decoder.state_dict().items() if name != "mask_token"}
    decoder |= {f"embed.{name}": value for name, value in model.embed.state_dict().items()}
    decoder |= {f"pred.{name}": value for name, value in model.pixels.state_dict().items()}
    state = model.encoder.vit.state_dict() | {f"decoder_{name}": value for name, value in decoder.items()}
    torch.save({"model": state | {"mask_token": model.decoder.mask_token.detach()}}, folder / "mae.pth")


def their_mae(folder: Path, options: argparse.Namespace) -> Take:
    model = _restore(TheirAutoencoder(options), folder / "lightly.bin")
    return their_step(model, lambda batch: model(batch["pixels"], batch["noise"]), options, folder)


def our_mae(folder: Path, options: argparse.Namespace) -> Take:
    model = load_mae(folder / "mae.pth", num_heads=options.heads, decoder_num_heads=DECODER_HEADS)
    return our_step(lambda settings, accelerator: mae_step(settings, accelerator, model, RATE), options, folder)


# Self-distillation: lightly.


class TheirNetwork(nn.Module):
    """timm's tower and lightly's head; crops one after another as in lightly's examples, or those of one size together."""

    def __init__(self, folder: Path, *, together: bool):
        super().__init__()
        self.together = together
        self.tower = import_peer("timm").create_model(f"local-dir:{folder}", pretrained=True, global_pool="token")
        self.head = _restore(their_head(self.tower.embed_dim), folder / "head.bin")

    def forward(self, crops: Sequence[Tensor]) -> list[Tensor]:
        """Logits (B, K) of each crop."""
        if not self.together:
            return [self.head(self.tower(crop)) for crop in crops]
        sizes = (crops[:2], crops[2:])
        return list(
            self.head(torch.cat([self.tower(torch.cat(list(same))) for same in sizes if same])).chunk(len(crops))
        )


def write_dino(folder: Path, options: argparse.Namespace) -> None:
    """A tower in timm's format, and lightly's head."""
    fields = dict(image_size=options.side, mlp_dim=4 * options.width, position_prefix=1)
    new_encoder(fields | _size(options)).save_pretrained(folder, format="timm")
    torch.save(their_head(options.width).state_dict(), folder / "head.bin")


def their_head(width: int) -> Any:
    """lightly's, whose last layer learns its lengths too, as ours."""
    make = import_peer("lightly.models.modules.heads").DINOProjectionHead
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # it uses an older weight norm of torch's
        return make(width, HEADS.hidden_dim, HEADS.bottleneck_dim, HEADS.prototypes, norm_last_layer=False)


def their_dino(folder: Path, options: argparse.Namespace, *, together: bool = False) -> Take:
    student, teacher = TheirNetwork(folder, together=together), TheirNetwork(folder, together=together)
    teacher.to(options.device).requires_grad_(False)
    update = import_peer("lightly.models.utils").update_momentum
    criterion = import_peer("lightly.loss.dino_loss").DINOLoss(HEADS.prototypes, teacher_temp=TEMPERATURE)
    criterion.to(options.device)

    def loss(batch: Batch) -> Tensor:
        large, small = list(batch["large"]), list(batch["small"])
        with torch.no_grad():
            wanted = teacher(large)
        return criterion(wanted, student([*large, *small]))

    return their_step(student, loss, options, folder, before=lambda: update(student, teacher, MOMENTUM))


def their_dino_together(folder: Path, options: argparse.Namespace) -> Take:
    return their_dino(folder, options, together=True)


def our_dino(folder: Path, options: argparse.Namespace) -> Take:
    encoder = vv.load(folder, reference="timm")
    assert isinstance(encoder, Encoder)
    model = SelfDistillation(encoder, HEADS, LossWeights(ibot=0, koleo=0), sharpen="center")
    head = {name.replace("layers", "mlp"): value for name, value in torch.load(folder / "head.bin").items()}
    for network in (model.student, model.teacher.module):
        network.get_submodule("head").load_state_dict(head)

    def step(settings: Training, accelerator: Accelerator) -> Step:
        return self_distill_step(settings, accelerator, model, lr=RATE, layer_decay=1.0, patch_embed_rate=1.0)

    return our_step(
        step,
        options,
        folder,
        before=lambda step, index: prepare(step, index, lambda _: step.settings.weight_decay),
        after=lambda step: model.teacher.update(student_of(step.model), MOMENTUM),
    )


def _timm(name: str, options: argparse.Namespace, **fields: Any) -> Any:
    """A tower of timm in the size that is asked for."""
    return import_peer("timm").create_model(name, img_size=options.side, **_size(options), **fields)


def _size(options: argparse.Namespace) -> dict[str, int]:
    """What ours and timm's towers call alike."""
    return dict(patch_size=options.patch, embed_dim=options.width, depth=options.depth, num_heads=options.heads)


def _restore(model: Any, file: Path) -> Any:
    model.load_state_dict(torch.load(file, mmap=True))
    return model


OBJECTIVES: Mapping[str, Objective] = {
    "clip": Objective("open_clip", write_clip, their_clip, our_clip),
    "siglip": Objective("open_clip", write_siglip, their_siglip, our_siglip),
    "mae": Objective("lightly", write_mae, their_mae, our_mae),
    "dino": Objective("lightly", write_dino, their_dino, our_dino),
    "dino, crops together": Objective("lightly", write_dino, their_dino_together, our_dino),
}
