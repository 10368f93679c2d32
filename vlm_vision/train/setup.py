"""What a recipe of vision and language needs before its loop: typed settings, data, the model, cached features."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator

import projectors
from vlm_vision.config import Tap
from vlm_vision.data.conversations import Conversation
from vlm_vision.data.features import FeatureCache
from vlm_vision.data.read import read_conversations
from vlm_vision.load import load
from vlm_vision.new_models import new_encoder, new_language_model, word_tokenizer
from vlm_vision.train.packing import check_packing
from vlm_vision.train.settings import Training
from vlm_vision.vlm.layout import layout_from_dict
from vlm_vision.vlm.model import VisionLanguageModel


@dataclass(frozen=True, kw_only=True)
class Data:
    """Where conversations come from; sources as `vlm_vision.data.read.read_conversations` takes them."""

    train: str
    """easy_vqa, a .json or .jsonl file in LLaVA's form, .tar shards, a folder of a data set, or hf:owner/name."""
    test: str = ""
    """The same, to be measured on; empty for none."""
    images: str = ""
    """Folder that picture paths start from; empty for that of the JSON file."""
    train_split: str = "train"
    test_split: str = "test"


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """Who sees."""

    source: str = ""
    """Argument of vlm_vision.load; empty to start from `new`."""
    new: dict[str, Any] = field(default_factory=dict)
    """Fields of ViTConfig for an encoder with random weights."""
    image_size: int = 0
    """Side in pixels of what the encoder sees; 0 for its own."""
    tap_layer: int = -1
    """Block whose tokens are used."""
    tap_norm: bool = True
    """Whether the final norm is applied to them."""


@dataclass(frozen=True, kw_only=True)
class Language:
    """Who answers."""

    source: str = ""
    """Folder or hub id for AutoModelForCausalLM; empty to start from `new`."""
    gguf_file: str = ""
    """File within `source`, for GGUF weights."""
    new: dict[str, Any] = field(default_factory=dict)
    """model_type and fields of a transformers configuration, for a model with random weights."""


@dataclass(frozen=True, kw_only=True)
class Settings(Training):
    """How a run trains a `VisionLanguageModel`."""

    data: Data
    start: str = ""
    """Folder of a saved VisionLanguageModel to begin from, in place of encoder, language, projector and layout."""
    encoder: Encoder = Encoder()
    language: Language = Language()
    projector: str = "mlp"
    """A name of projectors.build."""
    projector_options: dict[str, Any] = field(default_factory=dict)
    """Its options."""
    layout: dict[str, Any] = field(default_factory=dict)
    """name: whole, anyres or native, and its fields; empty for the encoder's own."""
    max_length: int = 2048
    """Tokens per conversation, image tokens included."""
    pack_length: int = 0
    """Tokens per row in which several conversations stand; 0 for one conversation in each row."""
    cache_features: bool = True
    """Keep the patch tokens of a frozen encoder on disk, where every picture is one canvas."""
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
        if self.start and (self.encoder != Encoder() or self.language != Language() or self.layout):
            raise ValueError(
                f"start {self.start} brings its own encoder, language model and layout: leave encoder, language and layout out"
            )


def read_data(data: Data) -> tuple[Sequence[Conversation], Sequence[Conversation]]:
    """Conversations to train on and to be measured on; the latter may be none."""
    train = read_conversations(data.train, images=data.images, split=data.train_split)
    test = read_conversations(data.test, images=data.images, split=data.test_split) if data.test else []
    return train, test


def build_model(settings: Settings, train: Sequence[Conversation]) -> VisionLanguageModel:
    """Encoder, projector and language model, each loaded or made new; or the saved model that `start` names.

    Args:
        train: a new language model knows the words of these.

    Raises:
        ValueError: as the loaders; a language model that cannot train on packed rows where they are asked for.
    """
    if settings.start:
        if not Path(settings.start, "config.json").is_file():
            raise ValueError(f"start {settings.start} has no config.json: give the folder that save_pretrained wrote")
        model = VisionLanguageModel.from_pretrained(settings.start, dtype=torch.float32)
    else:
        model = _joined(settings, train)
    if settings.pack_length:
        check_packing(model)
    if settings.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model


def _joined(settings: Settings, train: Sequence[Conversation]) -> VisionLanguageModel:
    tap = Tap(settings.encoder.tap_layer, settings.encoder.tap_norm)
    if settings.encoder.source:
        encoder = load(settings.encoder.source, tap=tap, image_size=settings.encoder.image_size or None)
    else:
        encoder = new_encoder(settings.encoder.new, tap=tap)
    if settings.language.source:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        options = {"gguf_file": settings.language.gguf_file} if settings.language.gguf_file else {}
        llm = AutoModelForCausalLM.from_pretrained(settings.language.source, dtype=torch.float32, **options)
        tokenizer = AutoTokenizer.from_pretrained(settings.language.source, **options)
    else:
        tokenizer = word_tokenizer(text for one in train for turn in one.turns for text in turn)
        llm = new_language_model(settings.language.new, tokenizer)
    layout = layout_from_dict(settings.layout) if settings.layout else None
    projector: str | projectors.Projector = settings.projector
    if settings.projector_options:
        words: Any = llm.get_input_embeddings()
        widths = {"in_dim": encoder.embed_dim, "out_dim": words.weight.shape[1]}
        projector = projectors.build(settings.projector, **widths, **settings.projector_options)
    return VisionLanguageModel.attach(encoder, llm, projector=projector, tokenizer=tokenizer, layout=layout)


def feature_cache(
    settings: Settings,
    accelerator: Accelerator,
    model: VisionLanguageModel,
    conversations: Iterable[Conversation],
) -> FeatureCache | None:
    """Patch tokens of all pictures on disk; None where they are not to be kept, may change, or fit no cache."""
    assert model.processor is not None
    trains = any(weight.requires_grad for weight in model.encoder.parameters())
    if not settings.cache_features or trains or model.processor.image_processor.canvas_size is None:
        return None
    pictures = [picture for one in conversations for picture in one.images]
    if not pictures:
        return None
    model.encoder.to(accelerator.device)
    folder = settings.feature_folder or Path(settings.out) / "features"
    with accelerator.main_process_first():
        return FeatureCache.build(folder, model.encoder, pictures, dtype=settings.feature_dtype)
