"""What a recipe on conversations needs before its loop: typed settings, data, the model, cached features."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from accelerate import Accelerator

from vlm_vision.data.conversations.read import read_conversations
from vlm_vision.data.conversations.records import Conversation
from vlm_vision.data.features import FeatureCache
from vlm_vision.train.packing import check_packing
from vlm_vision.train.vlm import VLMTraining, build_vlm
from vlm_vision.vlm.model import VisionLanguageModel


@dataclass(frozen=True, kw_only=True)
class ConversationData:
    """Where conversations come from; sources as `vlm_vision.data.conversations.read.read_conversations` takes them."""

    train: str
    """easy_vqa, a .json or .jsonl file in LLaVA's form, .tar shards, a folder of a data set, or hf:owner/name."""
    test: str = ""
    """The same, to be measured on; empty for none."""
    images: str = ""
    """Folder that image paths start from; empty for that of the JSON file."""
    train_split: str = "train"
    test_split: str = "test"


@dataclass(frozen=True, kw_only=True)
class ConversationTraining(VLMTraining):
    """How a run trains a `VisionLanguageModel` on conversations."""

    data: ConversationData
    max_length: int = 2048
    """Tokens per conversation, image tokens included."""
    pack_length: int = 0
    """Tokens per row in which several conversations stand; 0 for one conversation in each row."""
    cache_features: bool = True
    """Keep the patch tokens of a frozen encoder on disk, where every image is one canvas."""
    feature_folder: str = ""
    """Where; empty for `out`/features. Runs may share it."""
    feature_dtype: Literal["float16", "float32"] = "float16"
    """In which numbers."""
    eval_limit: int = 256
    """Test conversations to look at, the first ones; 0 for all."""
    eval_batch_size: int = 128

    def __post_init__(self):
        super().__post_init__()
        self._at_least(1, "eval_batch_size")
        self._at_least(0, "pack_length", "eval_limit")


def read_data(data: ConversationData) -> tuple[Sequence[Conversation], Sequence[Conversation]]:
    """Conversations to train on and to be measured on; the latter may be none."""
    train = read_conversations(data.train, images=data.images, split=data.train_split)
    test = read_conversations(data.test, images=data.images, split=data.test_split) if data.test else []
    return train, test


def build_model(settings: ConversationTraining, train: Sequence[Conversation]) -> VisionLanguageModel:
    """As `build_vlm`; a new language model knows the words of the conversations.

    Raises:
        ValueError: as `build_vlm`; a language model that cannot train on packed rows where they are asked for.
    """
    model = build_vlm(settings, (text for one in train for turn in one.turns for text in turn))
    if settings.pack_length:
        check_packing(model)
    return model


def feature_cache(
    settings: ConversationTraining,
    accelerator: Accelerator,
    model: VisionLanguageModel,
    conversations: Iterable[Conversation],
) -> FeatureCache | None:
    """Patch tokens of all images on disk; None where they are not to be kept, may change, or fit no cache."""
    assert model.processor is not None
    trains = any(weight.requires_grad for weight in model.encoder.parameters())
    if not settings.cache_features or trains or model.processor.image_processor.canvas_size is None:
        return None
    images = [image for one in conversations for image in one.images]
    if not images:
        return None
    model.encoder.to(accelerator.device)
    folder = settings.feature_folder or Path(settings.out) / "features"
    with accelerator.main_process_first():
        return FeatureCache.build(folder, model.encoder, images, dtype=settings.feature_dtype)
