"""Inputs of a `VisionLanguageActionModel` from recordings and observations."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vlm_vision.data.images.views import Color
from vlm_vision.data.patch_features import PatchFeatures
from vlm_vision.data.seeds import derive_seed
from vlm_vision.preprocess.images import ImageInput, load_image
from vlm_vision.robot.observation import Observation
from vlm_vision.robot.window import Window
from vlm_vision.vla.model import VisionLanguageActionModel

Batch = dict[str, Tensor]


class ObservationReader:
    """Observations to prompts with images, for training and for inference.

    Holds no weights, so that worker processes can have a copy.
    """

    def __init__(self, model: VisionLanguageActionModel):
        processor = model.plain_vlm.processor
        if processor is None:
            raise ValueError(
                "the model has no processor: attach it with a tokenizer, or load it from a folder with one"
            )
        self.processor, self.spec, self.crop_config = processor, model.spec, model.crop_config
        self.prompt, self.lead_ids = model.prompt, model.lead_ids

    def __call__(self, instructions: Sequence[str], images: Sequence[Sequence[Image.Image]] | Tensor) -> Batch:
        """input_ids, attention_mask (B, T), and pixel_values or patch_tokens.

        Args:
            images: as cut, in the order of the spec's cameras; or their patch tokens (B * cameras, N, D), one row after another.
        """
        lead = "<image>" * len(self.spec.cameras)
        texts = [lead + self.prompt.replace("{instruction}", one.strip().lower()) for one in instructions]
        shown: dict[str, Any] = {"patch_tokens": images}
        if not isinstance(images, Tensor):
            shown = {"images": [list(row) for row in images]}
        batch: Batch = dict(self.processor(text=texts, **shown, return_tensors="pt"))
        if self.lead_ids:
            ids = torch.tensor(self.lead_ids).expand(len(texts), -1)
            batch["input_ids"] = torch.cat([batch["input_ids"], ids], dim=1)
            batch["attention_mask"] = torch.cat([batch["attention_mask"], torch.ones_like(ids)], dim=1)
        return batch

    def images(self, observation: Observation) -> list[Image.Image]:
        """Whole images in the order of the spec's cameras. Raises ValueError for a missing camera."""
        return [load_image(image) for image in self.inputs(observation)]

    def inputs(self, observation: Observation) -> list[ImageInput]:
        """As `images`, not yet opened."""
        images = observation.images
        if missing := [name for name in self.spec.cameras if name not in images]:
            raise ValueError(
                f"the observation has cameras {sorted(images)}, but this policy uses {list(self.spec.cameras)}: "
                f"add {', '.join(missing)}"
            )
        return [images[name] for name in self.spec.cameras]


class ActionCollator:
    """Windows with a seed each to a batch for `VisionLanguageActionModel.forward`.

    Args:
        color: random change of colors; None for no change.
        center: take the central crop without a change of colors, as at inference; else a random crop.
        features: patch tokens of whole images by name, in place of the images of windows that were not decoded.

    Raises:
        ValueError: windows that do not fit the model's spec, or its head.
    """

    def __init__(
        self,
        model: VisionLanguageActionModel,
        *,
        color: Color | None = None,
        center: bool = False,
        features: PatchFeatures | None = None,
    ):
        self.read, self.color, self.center, self.spec = ObservationReader(model), color, center, model.spec
        self.features = features
        self.normalizers = {name: model.normalizers(name) for name in model.statistics}
        self.head = type(model.head)

    def __call__(self, drawn: Sequence[tuple[Window, int]]) -> Batch:
        windows, seeds = [window for window, _ in drawn], [seed for _, seed in drawn]
        batch = self.read([window.observation.instruction for window in windows], self._images(drawn))
        numbers = [self._numbers(window) for window in windows]
        batch["actions"] = torch.stack([actions for actions, _ in numbers])
        if self.spec.state_dim:
            batch["state"] = torch.stack([state for _, state in numbers])
        batch["padded"] = torch.from_numpy(np.stack([window.padded for window in windows]))
        return batch | self.head.draws(seeds, self.spec.chunk, self.spec.action_dim)

    def _images(self, drawn: Sequence[tuple[Window, int]]) -> list[list[Image.Image]] | Tensor:
        if self.features is None:
            return [self._seen(window, seed) for window, seed in drawn]
        return self.features[[str(name) for window, _ in drawn for name in self.read.inputs(window.observation)]]

    def _seen(self, window: Window, seed: int) -> list[Image.Image]:
        whole, crop_config = self.read.images(window.observation), self.read.crop_config
        if self.center:
            return [crop_config.center(one) for one in whole]
        return [crop_config.random(one, self.color, derive_seed(seed, i)) for i, one in enumerate(whole)]

    def _numbers(self, window: Window) -> tuple[Tensor, Any]:
        """Normalized actions (K, A), and the state."""
        if window.data not in self.normalizers and not (window.data == "" and len(self.normalizers) == 1):
            raise ValueError(
                f"the model has statistics of {list(self.normalizers)}, but the data are {window.data!r}: train on data of these names"
            )
        name = window.data or next(iter(self.normalizers))
        action, state = self.normalizers[name]
        if len(window.actions) != self.spec.chunk:
            raise ValueError(
                f"a window has {len(window.actions)} actions, expected {self.spec.chunk}, the chunk of the policy: read windows of that chunk"
            )
        actions = action(torch.as_tensor(window.actions))
        if self.head.bounded and (beyond := (actions.abs() > 1 + 1e-3).any(0)).any():  # less is lost in a bin
            number = int(beyond.int().argmax())
            raise ValueError(
                f"number {number} of an action is not normalized and reaches {actions[:, number].abs().max():.4g}, but the "
                f"{self.head.name} head predicts numbers from -1 to 1: normalize it, or choose another head"
            )
        return actions, None if state is None else state(torch.as_tensor(window.observation.state))
