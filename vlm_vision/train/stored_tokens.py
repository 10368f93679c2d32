"""Training on a token store: the tokens in place of the encoder, which is loaded only when the model is saved."""

from collections.abc import Iterable

from torch import nn

from vlm_vision.data.stored_image import ImageSource
from vlm_vision.fused import film_dim
from vlm_vision.tokens.training.features import StoredFeatures
from vlm_vision.tokens.training.keys import find_keys
from vlm_vision.tokens.training.match import check_weights, matching_store
from vlm_vision.train.settings import Training, VlmSettings
from vlm_vision.train.trainable import unwrapped
from vlm_vision.train.vlm import load_tower
from vlm_vision.vlm.model import VisionLanguageModel


def stored_features(
    folder: str, model: VisionLanguageModel, images: Iterable[ImageSource], *, root: str = ""
) -> StoredFeatures:
    """Patch tokens of images out of a store, once all of them are found there.

    Args:
        folder: of the store.
        model: with or without the weights of its encoder.
        root: folder that image paths start from.

    Raises:
        ValueError: a layout of several canvases, deep features or FiLM; otherwise as `matching_store` and `find_keys`.
    """
    assert model.processor is not None
    if model.processor.image_processor.canvas_size is None:
        raise ValueError(
            f"data.tokens holds one canvas of one size for each image, and the layout here is {model.layout.name!r} "
            "with images of several canvases or sizes: leave layout out, set encoder.image_size, or leave data.tokens out"
        )
    if model.config.deepstack or film_dim(model.encoder):
        what = "deep features of its encoder" if model.config.deepstack else "an encoder with FiLM"
        raise ValueError(f"this model reads {what}, which a token store cannot hold: leave data.tokens out")
    store = matching_store(folder, model.encoder)
    return StoredFeatures(store, model.encoder, find_keys(store, images, root=root))


def needs_checkpoint(settings: Training, done: int, tokens: str) -> bool:
    """Whether to write a checkpoint after `done` steps.

    With stored tokens also after the last: the encoder is loaded then, and if it is another than the store's nothing is lost.
    """
    last = done == settings.steps
    return bool(tokens) if last else done % settings.checkpoint_every == 0


def restore_tower(model: nn.Module, settings: VlmSettings, features: StoredFeatures) -> None:
    """Load the encoder into a model that was trained without it, frozen.

    Args:
        model: in peft's wrapper or not.

    Raises:
        ValueError: as the loaders; weights other than those that the store was made with.
    """
    vlm, encoder = unwrapped(model), load_tower(settings)
    check_weights(features.store, encoder, settings.start or settings.encoder.source)
    vlm.encoder = encoder.requires_grad_(False).to(vlm.device)
