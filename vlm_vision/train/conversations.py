"""Preparation of a recipe that trains on conversations: the data, the model, patch tokens on disk."""

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path

from accelerate import Accelerator

from vlm_vision.data.conversations.read import read_conversations
from vlm_vision.data.conversations.records import Conversation
from vlm_vision.tokens.training.build import build_features, has_one_tap
from vlm_vision.tokens.training.features import StoredFeatures
from vlm_vision.train.packing import check_packing
from vlm_vision.train.settings import ConversationData, ConversationSettings, VlmSettings
from vlm_vision.train.stored_tokens import stored_features
from vlm_vision.train.vlm import build_vlm
from vlm_vision.vlm.model import VisionLanguageModel

log = logging.getLogger(__name__)


def read_data(data: ConversationData) -> tuple[Sequence[Conversation], Sequence[Conversation]]:
    """Conversations to train on, and to measure on; the second list may be empty."""
    train = read_conversations(data.train, images=data.images, split=data.train_split)
    test = read_conversations(data.test, images=data.images, split=data.test_split) if data.test else []
    return train, test


def build_model(
    settings: VlmSettings,
    train: Sequence[Conversation],
    *,
    pack_length: int = 0,
    gradient_checkpointing: bool = False,
    tower: bool = True,
) -> VisionLanguageModel:
    """`build_vlm`, where a new language model gets the words of the conversations as its vocabulary.

    Args:
        pack_length: tokens of a row into which conversations are packed; 0 for no packing.
        tower: as in `build_vlm`.

    Raises:
        ValueError: as `build_vlm`; a language model that cannot train on packed rows, with pack_length above 0.
    """
    texts = (text for one in train for turn in one.turns for text in turn)
    model = build_vlm(settings, texts, gradient_checkpointing=gradient_checkpointing, tower=tower)
    if pack_length:
        check_packing(model)
    return model


def patch_features(
    settings: ConversationSettings,
    accelerator: Accelerator,
    model: VisionLanguageModel,
    conversations: Iterable[Conversation],
    *,
    out: Path,
) -> StoredFeatures | None:
    """Patch tokens of all images on disk: those of `data.tokens`, or encoded here.

    None if the settings turn them off, the encoder trains, or an image is not one canvas of one size.

    Args:
        out: the run's folder, which holds the store unless `feature_folder` is set.

    Raises:
        ValueError: `data.tokens` does not fit the encoder, the layout or the images; an image that cannot be encoded.
    """
    assert model.processor is not None
    one_canvas = model.processor.image_processor.canvas_size is not None and not model.config.deepstack
    images = (image for one in conversations for image in one.images)
    if settings.data.tokens:
        return stored_features(settings.data.tokens, model, images, root=settings.data.images)
    trains = any(weight.requires_grad for weight in model.encoder.parameters())
    listed = list(images) if settings.cache_features and not trains and one_canvas else []
    if not listed:
        return None
    if not has_one_tap(model.encoder):
        log.info("the towers have different taps, which a token store cannot hold: images are encoded in each step")
        return None
    model.encoder.to(accelerator.device)
    folder = settings.feature_folder or out / "features"
    with accelerator.main_process_first():
        return build_features(folder, model.encoder, listed, dtype=settings.feature_dtype)
