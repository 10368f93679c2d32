"""Preparation of a recipe that trains on conversations: the model, cached features."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from accelerate import Accelerator

from vlm_vision.data.conversations.records import Conversation
from vlm_vision.data.features import FeatureCache
from vlm_vision.train.packing import check_packing
from vlm_vision.train.settings import ConversationSettings, VlmSettings
from vlm_vision.train.vlm import build_vlm
from vlm_vision.vlm.model import VisionLanguageModel


def build_model(
    settings: VlmSettings,
    train: Sequence[Conversation],
    *,
    pack_length: int = 0,
    gradient_checkpointing: bool = False,
) -> VisionLanguageModel:
    """`build_vlm`, where a new language model gets the words of the conversations as its vocabulary.

    Args:
        pack_length: tokens of a row into which conversations are packed; 0 for no packing.

    Raises:
        ValueError: as `build_vlm`; a language model that cannot train on packed rows, with pack_length above 0.
    """
    texts = (text for one in train for turn in one.turns for text in turn)
    model = build_vlm(settings, texts, gradient_checkpointing=gradient_checkpointing)
    if pack_length:
        check_packing(model)
    return model


def feature_cache(
    settings: ConversationSettings,
    accelerator: Accelerator,
    model: VisionLanguageModel,
    conversations: Iterable[Conversation],
    *,
    out: Path,
) -> FeatureCache | None:
    """Patch tokens of all images on disk; None if the settings turn the cache off, or the tokens may change or fit no cache.

    Args:
        out: the run's folder, which holds the cache unless `feature_folder` is set.
    """
    assert model.processor is not None
    trains = any(weight.requires_grad for weight in model.encoder.parameters())
    if not settings.cache_features or trains or model.processor.image_processor.canvas_size is None:
        return None
    images = [image for one in conversations for image in one.images]
    if not images:
        return None
    model.encoder.to(accelerator.device)
    folder = settings.feature_folder or out / "features"
    with accelerator.main_process_first():
        return FeatureCache.build(folder, model.encoder, images, dtype=settings.feature_dtype)
