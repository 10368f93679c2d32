"""One vision tower with its architecture, weights, preprocessing, tap and origin."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from projectors import Projector
from vlm_vision.checkpoints.hf.card import encoder_card
from vlm_vision.checkpoints.hf.into import TunedTower, check_alone, check_format, save_into
from vlm_vision.checkpoints.save import save_tower
from vlm_vision.nn.config import ViTConfig
from vlm_vision.nn.output import Tap, VisionOutput
from vlm_vision.nn.vit import VisionTransformer
from vlm_vision.preprocess.spec import Preprocess


@dataclass(frozen=True)
class Origin:
    """Where weights came from: the family whose layout `save_pretrained` writes, and whose position resize is in force."""

    family: str
    reference: str


class Encoder(nn.Module):
    """A vision tower. `vlm_vision.load` makes one; `encoder(encoder.preprocess(images))` uses it.

    Args:
        model: the transformer.
        preprocess: what turns images into its pixels; called as `encoder.preprocess(images)`.
        tap: the tokens that a call returns unless it asks for others.
        origin: the family and reference of the weights.
    """

    hub_id: str = ""
    """Hub id that the weights were loaded from; empty for others. Only model cards state it."""

    def __init__(self, model: VisionTransformer, *, preprocess: Preprocess, tap: Tap = Tap(), origin: Origin):
        super().__init__()
        tap.block(model.config.depth)
        self.model, self.preprocess, self.tap, self.origin = model, preprocess, tap, origin

    @property
    def config(self) -> ViTConfig:
        return self.model.config

    @property
    def embed_dim(self) -> int:
        """Channels of patch_tokens."""
        return self.config.embed_dim * (1 + len(self.tap.more))

    @property
    def dtype(self) -> torch.dtype:
        return self.model.patch_embed.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.model.patch_embed.weight.device

    def num_patch_tokens(self, height: int, width: int) -> int:
        """Patch tokens of an image of height x width pixels."""
        return self.config.num_patch_tokens(height, width)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """(rows, columns) of the patch tokens of an image of height x width pixels."""
        return self.config.token_grid(height, width)

    def forward(
        self,
        pixels: Tensor,
        *,
        tap: Tap | None = None,
        mask: Tensor | None = None,
        keep: Tensor | None = None,
        pool: bool = True,
        patches: bool = True,
        condition: Tensor | None = None,
    ) -> VisionOutput:
        """Encode images (B, C, H, W) or videos (B, T, C, H, W); arguments and errors as `VisionTransformer.forward`."""
        pixels, tap = self._cast(pixels), tap or self.tap
        return self.model(pixels, tap=tap, mask=mask, keep=keep, pool=pool, patches=patches, condition=condition)

    def _cast(self, pixels: Tensor) -> Tensor:
        """Pixels in the dtype of the weights. Raises ValueError for whole numbers: those are not normalized."""
        if not pixels.is_floating_point():
            raise ValueError(
                f"pixels are {pixels.dtype}, expected floating point numbers: pass the result of preprocess"
            )
        return pixels.to(self.dtype)

    def packed(self, images: Sequence[Tensor], *, tap: Tap | None = None, pool: bool = True) -> list[VisionOutput]:
        """Encode images (C, H, W) of any sizes in one sequence, each as if alone: `VisionTransformer.packed`.

        `encoder.packed(encoder.preprocess.each(images))`
        """
        return self.model.packed([self._cast(image) for image in images], tap=tap or self.tap, pool=pool)

    def together(
        self,
        batches: Sequence[Tensor],
        *,
        tap: Tap | None = None,
        masks: Sequence[Tensor | None] | None = None,
        pool: bool = True,
    ) -> list[VisionOutput]:
        """Encode batches (B, C, H, W) of several sizes in one sequence, each as if alone: `VisionTransformer.together`."""
        pixels = [self._cast(batch) for batch in batches]
        return self.model.together(pixels, tap=tap or self.tap, masks=masks, pool=pool)

    def fold_layer_scale(self) -> None:
        """Fold every LayerScale into the layer before it, for inference: same outputs."""
        self.model.fold_layer_scale()

    def to_dict(self) -> dict[str, Any]:
        """Everything but the weights, as JSON; `from_dict` builds it again."""
        return {
            "family": self.origin.family,
            "reference": self.origin.reference,
            "architecture": self.config.to_dict(),
            "preprocess": self.preprocess.to_dict(),
            "preprocess_fingerprint": self.preprocess.fingerprint,
            "tap": self.tap.to_dict(),
        }

    @classmethod
    def from_dict(cls, state: dict[str, Any]) -> "Encoder":
        """An encoder with random weights from `to_dict`. Raises ValueError if the preprocessing was edited."""
        preprocess = Preprocess.from_dict(state["preprocess"])
        check_fingerprint(preprocess, state["preprocess_fingerprint"], "the saved encoder configuration")
        return cls(
            VisionTransformer(ViTConfig.from_dict(state["architecture"])),
            preprocess=preprocess,
            tap=Tap(**state["tap"]),
            origin=Origin(state["family"], state["reference"]),
        )

    def save_pretrained(
        self,
        folder: str | Path,
        format: str = "hf",
        *,
        into: str | Path | None = None,
        projector: Projector | None = None,
        part: str | None = None,
    ) -> None:
        """Write the tower to `folder`: in the public layout of its family, or inside the whole model that it came from.

        Args:
            folder: made if absent.
            format: "hf" writes what transformers reads, "timm" what timm reads: config.json and model.safetensors.
            into: folder of a whole model of transformers (Qwen2.5-VL, LLaVA, CLIP, ...) that has a tower of this
                architecture. `folder` becomes a copy of it in which the tower's weights are this encoder's, in the
                precision of the files; every other byte stays. `into` itself is changed only if `folder` is the same.
            projector: the whole model's projector, as `load_projector` makes it, whose weights are written there as well.
            part: prefix of the tower's weights in `into`, where it has several towers.

        A small vlm_vision.json next to them keeps the tap, the reference, the preprocessing's fingerprint, and the exact
        preprocessing where the public file cannot express it; a warning states what that file contains instead. With
        `into`, configuration and preprocessing stay those of the whole model.

        Raises:
            ValueError: unknown format, or an architecture that the family's layout cannot express; with `into`, a tower or
                projector there that is another one, or a `folder` that exists.
        """
        if into is not None:
            check_format(format)
            save_into(Path(into), Path(folder), [self.tuned()], projector=projector, part=part)
            return
        check_alone(projector, part)
        save_tower(
            Path(folder),
            format,
            model=self.model,
            family=self.origin.family,
            preprocess=self.preprocess,
            sidecar=self.sidecar(),
            card=encoder_card(self.to_dict(), self, [self.hub_id], format=format),
        )

    def tuned(self) -> TunedTower:
        """The tower as it is written into a whole model."""
        return TunedTower(self.model, self.origin.family, self.preprocess)

    def sidecar(self) -> dict[str, Any]:
        """Content of vlm_vision.json, for which a public layout has no place."""
        return {
            "family": self.origin.family,
            "reference": self.origin.reference,
            "tap": self.tap.to_dict(),
            "remainder": self.config.remainder,
            "preprocess_fingerprint": self.preprocess.fingerprint,
        }


def check_fingerprint(preprocess: Preprocess, saved: str, where: str) -> None:
    """Raise ValueError if `preprocess` is not the one that was saved with the weights."""
    if preprocess.fingerprint != saved:
        raise ValueError(
            f"{where} was saved with preprocessing {saved} and now describes {preprocess.fingerprint}: "
            "the encoder would see other pixels than it was trained on; restore the file, or change encoder.preprocess in code"
        )


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Evaluation mode; afterwards every module is in its own mode again."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
