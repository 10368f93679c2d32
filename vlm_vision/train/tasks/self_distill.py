"""Self-distillation (DINO, iBOT, DINOv2) as a task for `Step`: a student, a teacher that is its average, their heads."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from vlm_vision.data.images.batches import ImageBatch
from vlm_vision.data.images.views import normalize_views
from vlm_vision.data.seeds import derive_seed
from vlm_vision.encoder import Encoder
from vlm_vision.nn.position import Grid
from vlm_vision.objectives.dino import DinoHead, dino_loss
from vlm_vision.objectives.gram import Negatives, gram_loss
from vlm_vision.objectives.ibot import ibot_loss
from vlm_vision.objectives.koleo import koleo_loss
from vlm_vision.objectives.masks import block_mask
from vlm_vision.objectives.sharpen import Center, sinkhorn_knopp
from vlm_vision.train.loop.step import Batch, Step, Task
from vlm_vision.train.optim.ema import EmaTeacher
from vlm_vision.train.optim.groups import parameter_groups
from vlm_vision.train.optim.layer_decay import layer_groups
from vlm_vision.train.optim.schedules import Schedule
from vlm_vision.train.settings import Training
from vlm_vision.train.tasks.self_distill_gram import on_grid
from vlm_vision.train.tasks.supervised import renormalize

Sharpen = Literal["sinkhorn", "center"]


@dataclass(frozen=True)
class LossWeights:
    """Weights of the parts of the loss; a part of weight 0 is not computed. dino alone is DINO, dino and ibot are iBOT."""

    dino: float = 1.0
    """Weight of the loss on class tokens."""
    ibot: float = 1.0
    """Weight of the loss on masked patches."""
    koleo: float = 0.1
    """Weight of the KoLeo loss, which spreads class tokens apart, for each of the two large crops."""
    gram: float = 0.0
    """Weight of Gram anchoring, which needs gram.teacher; 2.0 in DINOv3."""
    small: float = 1.0
    """Additional factor on the dino loss of pairs with a small crop; 0.5 in DINOv3 with Gram anchoring."""

    def __post_init__(self) -> None:
        if min(self.dino, self.ibot, self.koleo, self.gram, self.small) < 0 or not self.dino + self.ibot > 0:
            raise ValueError(f"{self}: expected weights of at least 0, and dino or ibot above it")


@dataclass(frozen=True)
class DinoHeadSettings:
    """Sizes of the heads of student and teacher (`DinoHead`)."""

    prototypes: int = 65536
    """Prototypes: outputs of a head."""
    depth: int = 3
    """Layers of a head before the prototypes."""
    hidden_dim: int = 2048
    """Hidden channels of a head."""
    bottleneck_dim: int = 256
    """Channels that the prototypes read."""

    def __post_init__(self) -> None:
        if min(self.prototypes, self.depth, self.hidden_dim, self.bottleneck_dim) < 1:
            raise ValueError(f"{self}: expected whole numbers of at least 1")

    def build(self, dim: int) -> DinoHead:
        """One, for features of `dim` channels."""
        return DinoHead(
            dim, self.prototypes, depth=self.depth, hidden_dim=self.hidden_dim, bottleneck_dim=self.bottleneck_dim
        )


@dataclass(frozen=True)
class BlockMaskSettings:
    """Masks of the large crops for the student: blocks of patches, as `vlm_vision.objectives.masks.block_mask` draws them."""

    share: float = 0.5
    """Probability that a large crop is masked."""
    ratios: tuple[float, float] = (0.1, 0.5)
    """Smallest and largest share of masked patches in a masked crop."""

    def __post_init__(self) -> None:
        if not (0 <= self.share <= 1 and 0 <= self.ratios[0] <= self.ratios[1] <= 1):
            raise ValueError(f"{self}: expected shares from 0 to 1, the smaller ratio first")


class NetworkOutput(NamedTuple):
    """Outputs of a network for the crops of B images."""

    cls_token: Tensor
    """Class tokens (2B, D) of the large crops, those of the first view first."""
    patch_tokens: Tensor
    """Patch tokens (2B, N, D) of the large crops; empty if they are not needed."""
    crops: Tensor
    """Logits (2 + S, B, K) of two large crops and S small ones."""
    patches: Tensor | None
    """Logits (M, K) of the requested patches, or None."""


class StudentNetwork(nn.Module):
    """An encoder with its heads: the student, and the module of the teacher.

    Args:
        patch_heads: of patches, where they have a head of their own.
        pack: whether large and small crops are one sequence, or one batch after the other; the same but for rounding.
    """

    def __init__(
        self,
        encoder: Encoder,
        heads: DinoHeadSettings,
        *,
        patch_heads: DinoHeadSettings | None = None,
        pack: bool = False,
    ):
        super().__init__()
        self.encoder, self.head, self.pack = encoder, heads.build(encoder.embed_dim), pack
        self.patch_head = None if patch_heads is None else patch_heads.build(encoder.embed_dim)

    def forward(
        self,
        large: Tensor,
        *,
        small: Tensor | None = None,
        mask: Tensor | None,
        at: Tensor | None,
        patches: bool = False,
    ) -> NetworkOutput:
        """Each head runs once, on what the encoder makes of all crops.

        Args:
            large: (2, B, 3, H, W).
            small: (S, B, 3, h, w), or none.
            mask: (2, B, N), True for patches that are not seen.
            at: (2, B, N), True for patches whose logits are wanted, or none.
            patches: whether patch tokens are wanted without `at` too.
        """
        views = [view.flatten(0, 1) for view in (large, small) if view is not None]
        masks = [None if mask is None else mask.flatten(0, 1), None][: len(views)]
        outs: list[Any]
        if self.pack:
            outs = self.encoder.together(views, masks=masks, pool=False)
        else:
            read = [patches or at is not None, False]  # of small crops the class token alone
            outs = [
                self.encoder(view, mask=one, pool=False, patches=all_of_it)
                for view, one, all_of_it in zip(views, masks, read, strict=False)
            ]
        out, rows = outs[0], torch.cat([out.cls_token for out in outs])
        count, logits = len(rows), None
        if at is None:
            crops = self.head(rows)
        elif self.patch_head is not None:
            crops, logits = self.head(rows), self.patch_head(out.patch_tokens[at.flatten(0, 1)])
        else:
            crops, logits = self.head(torch.cat([rows, out.patch_tokens[at.flatten(0, 1)]])).tensor_split([count])
        return NetworkOutput(out.cls_token, out.patch_tokens, crops.unflatten(0, (-1, large.shape[1])), logits)


class SelfDistillation(nn.Module):
    """Student and teacher, whose output is the loss, so that wrappers for several processes see one forward.

    Oquab et al. 2023, "DINOv2: learning robust visual features without supervision" (arXiv:2304.07193), section 4. Sinkhorn,
    the centers and KoLeo see the micro-batches of all processes together, so that these are one batch.

    Args:
        encoder: with a class token and, where patches are masked, a mask token; becomes the student's.
        patch_heads: of patches, where they have a head of their own.
        sharpen: how the teacher's logits become probabilities.
        earlier: for Gram anchoring; a copy is kept, which moves by `refresh` alone.
        negatives: of Gram anchoring.
        pack: whether the student sees all crops in one sequence.
    """

    loss_parts: dict[str, Tensor]
    """Parts of the loss of the last forward pass, without their weights."""

    def __init__(
        self,
        encoder: Encoder,
        heads: DinoHeadSettings,
        weights: LossWeights = LossWeights(),
        *,
        patch_heads: DinoHeadSettings | None = None,
        sharpen: Sharpen = "sinkhorn",
        earlier: Encoder | None = None,
        negatives: Negatives = "clip",
        pack: bool = False,
    ):
        super().__init__()
        self.weights, self.loss_parts = weights, {}
        self.negatives: Negatives = negatives
        patch_heads = patch_heads if weights.ibot else None
        self.student = StudentNetwork(encoder, heads, patch_heads=patch_heads, pack=pack)
        self.teacher = EmaTeacher(self.student)
        self.earlier = None if earlier is None else EmaTeacher(earlier)
        self.centers = None
        if sharpen == "center":
            each = {"crops": heads, "patches": patch_heads or heads}
            self.centers = nn.ModuleDict({name: Center(one.prototypes) for name, one in each.items()})

    def forward(
        self,
        large: Tensor,
        temperature: float,
        *,
        small: Tensor | None = None,
        mask: Tensor | None = None,
        undistorted: Tensor | None = None,
    ) -> Tensor:
        """The mean over images, from crops and masks as `StudentNetwork` takes them and the teacher's temperature.

        Args:
            undistorted: (2, B, 3, H, W), what the earlier teacher sees, in its normalization; without it the large crops as
                its own preprocessing would make them.
        """
        ours = self.student(large, small=small, mask=mask, at=mask, patches=self.weights.gram > 0)
        theirs: NetworkOutput = self.teacher(large, mask=None, at=mask)
        weights, parts = self.weights, {}
        if weights.dino:
            wanted = self._sharpened("crops", theirs.crops.flatten(0, 1), temperature).unflatten(0, (2, -1))
            parts["dino"] = pairwise_dino_loss(ours.crops, wanted, weights.small)
        if weights.ibot and mask is not None and ours.patches is not None and theirs.patches is not None:
            wanted = self._sharpened("patches", theirs.patches, temperature)
            parts["ibot"] = ibot_loss(ours.patches, wanted, mask.flatten(0, 1))
        if weights.koleo:
            parts["koleo"] = torch.stack([koleo_loss(view) for view in ours.cls_token.chunk(2)]).sum()
        if weights.gram and self.earlier is not None:
            wanted = self._earlier(large, undistorted)
            parts["gram"] = gram_loss(ours.patch_tokens, wanted, negatives=self.negatives)
        self.loss_parts = {name: part.detach() for name, part in parts.items()}
        return torch.stack([getattr(weights, name) * part for name, part in parts.items()]).sum()

    def refresh(self) -> None:
        """The earlier teacher becomes what the teacher is now."""
        assert self.earlier is not None
        self.earlier.update(teacher_of(self).encoder, 0.0)

    @torch.no_grad()
    def _sharpened(self, name: str, logits: Tensor, temperature: float) -> Tensor:
        """Probabilities (M, K) by Sinkhorn-Knopp, or by the center, which then moves."""
        if self.centers is None:
            return sinkhorn_knopp(logits, temperature)
        center = self.centers[name]
        assert isinstance(center, Center)
        found = center(logits, temperature)
        if self.training:
            center.update(logits)
        return found

    @torch.no_grad()
    def _earlier(self, large: Tensor, undistorted: Tensor | None) -> Tensor:
        """Patch tokens (2B, N, D') where the student's are."""
        earlier, ours = gram_teacher(self), self.student.encoder
        assert self.earlier is not None and earlier is not None
        if undistorted is None:
            pixels = renormalize(earlier, large.flatten(0, 1), ours.preprocess)
        else:
            pixels = undistorted.flatten(0, 1)
        out, grid = self.earlier(pixels, pool=False), ours.grid(*large.shape[-2:])
        return on_grid(out.patch_tokens, out.grid, grid)


def pairwise_dino_loss(student: Tensor, teacher: Tensor, weight: float = 1.0) -> Tensor:
    """Mean DINO loss over the 2 + 2 S pairs of a crop that the student sees and another, large one that the teacher sees.

    Args:
        student: logits (2 + S, B, K).
        teacher: probabilities (2, B, K).
        weight: factor on the pairs of small crops.
    """
    large, small = student[:2], student[2:]
    found, pairs = 2 * dino_loss(large, teacher, same_crops=True), 2 + 2 * len(small)
    if len(small):
        found = found + weight * 2 * len(small) * dino_loss(small, teacher)
    return found / pairs


def self_distill_step(
    settings: Training,
    accelerator: Accelerator,
    model: SelfDistillation,
    *,
    lr: float,
    layer_decay: float = 0.9,
    patch_embed_rate: float = 0.2,
    frozen_steps: int = 0,
    lr_end: float = 0.0,
) -> Step:
    """Steps that train the student; call `prepare` before each, and move the teacher after it.

    Args:
        lr: of the heads; layers below have it times `layer_decay` for each layer between.
        patch_embed_rate: a further factor on the rate of the patch embedding.
        frozen_steps: at the beginning, in which the last layers of the heads stay as they are.
        lr_end: part of every rate that is left in the end.

    Raises:
        ValueError: a layer_decay that is not above 0 and at most 1.
    """
    model.student.encoder.model.gradient_checkpointing = settings.gradient_checkpointing

    def groups(model: nn.Module) -> list[dict]:
        student = student_of(model)
        heads = [head for head in (student.head, student.patch_head) if head is not None]
        last = {id(weight) for head in heads for weight in head.last_layer.parameters()}
        parts = [(part, lr) for part in (*(head.last_layer for head in heads), *heads)]
        made = layer_groups(student.encoder, lr=lr, weight_decay=1.0, decay=layer_decay, patch_embed=patch_embed_rate)
        made += parameter_groups(parts, weight_decay=1.0)
        return [
            group
            | {"decays": group["weight_decay"] > 0, "frozen_steps": frozen_steps * (id(group["params"][0]) in last)}
            for group in made
        ]

    task = Task(
        loss=_loss,
        terms=lambda batch: torch.tensor(batch["large"].shape[1], device=batch["large"].device),
        unit="picture",
        parts=lambda model: {name: student_of(model).get_submodule(name) for name in ("encoder", "head")},
        groups=groups,
        layers=frozenset({"Block", "DinoHead"}),
        lr_end=lr_end,
    )
    return Step(settings, accelerator, model, task)


def _loss(model: nn.Module, batch: Batch) -> Tensor:
    given: dict[str, Any] = {name: batch.get(name) for name in ("small", "mask", "undistorted")}
    return model(batch["large"], float(batch["temperature"]), **given) * batch["large"].shape[1]


def prepare(step: Step, index: int, weight_decay: Schedule) -> None:
    """Set weight decay for step `index`, and learning rate 0 for last layers that are still frozen."""
    for group in step.optimizer.param_groups:
        if group["decays"]:
            group["weight_decay"] = weight_decay(index)
        if index < group["frozen_steps"]:
            group["lr"] = 0.0


def tensors(
    drawn: ImageBatch,
    encoder: Encoder,
    temperature: float,
    masks: BlockMaskSettings | None,
    earlier: Encoder | None = None,
) -> Batch:
    """What the networks see of each image: two large views, the small ones, and masks where there are to be any.

    Args:
        earlier: earlier teacher, which sees the last two views; None if these are small crops too.
    """
    large, small, last = drawn.views[:2], drawn.views[2:], ()
    if earlier is not None:
        small, last = small[:-2], small[-2:]

    def seen(views: Sequence[Tensor], by: Encoder) -> Tensor:
        return torch.stack([normalize_views(view.to(encoder.device), by.preprocess) for view in views])

    batch = {"large": seen(large, encoder), "temperature": torch.tensor(temperature, dtype=torch.float64)}
    if small:
        batch["small"] = seen(small, encoder)
    if earlier is not None:
        batch["undistorted"] = seen(last, earlier)
    if masks is not None:
        batch["mask"] = seeded_masks(drawn.seeds, encoder.grid(*large[0].shape[-2:]), masks)
    return batch


def seeded_masks(seeds: Sequence[int], grid: Grid, masks: BlockMaskSettings) -> Tensor:
    """(2, B, N) on the CPU: what is masked of an image's large crops follows from its seed alone, however a batch is cut.

    Each crop is masked with the probability `share` and draws its own ratio. DINOv2 masks the same share of every batch and
    spreads its ratios evenly: the mean is the same.
    """

    def one(seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        chance, where = torch.rand(2, generator=generator, dtype=torch.float64).tolist()
        ratio = masks.ratios[0] + where * (masks.ratios[1] - masks.ratios[0])
        return block_mask(int(grid[0] * grid[1] * ratio) if chance < masks.share else 0, grid, generator)

    return torch.stack([torch.stack([one(derive_seed(seed, view)) for seed in seeds]) for view in range(2)])


def student_of(model: nn.Module) -> StudentNetwork:
    """The one that learns."""
    assert isinstance(model, SelfDistillation)
    return model.student


def teacher_of(model: nn.Module) -> StudentNetwork:
    """The average that is kept in the end."""
    assert isinstance(model, SelfDistillation) and isinstance(model.teacher.module, StudentNetwork)
    return model.teacher.module


def gram_teacher(model: nn.Module) -> Encoder | None:
    """The one that Gram anchoring holds on to, where there is one."""
    assert isinstance(model, SelfDistillation)
    earlier = model.earlier and model.earlier.module
    assert earlier is None or isinstance(earlier, Encoder)
    return earlier
