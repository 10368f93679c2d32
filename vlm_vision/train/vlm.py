"""The model that a recipe of vision and language trains: each part loaded, or made new."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch

import projectors
from vlm_vision.checkpoints.hub import TOKENIZER_FILES, resolve
from vlm_vision.load import load, load_projector
from vlm_vision.new_models import new_encoder, new_language_model, word_tokenizer
from vlm_vision.nn.config import Tap
from vlm_vision.preprocess.spec import HALF
from vlm_vision.train.settings import Training
from vlm_vision.vlm.layout import layout_from_dict
from vlm_vision.vlm.model import VisionLanguageModel


@dataclass(frozen=True, kw_only=True)
class EncoderSettings:
    """Who sees."""

    source: str = ""
    """Argument of vlm_vision.load; empty to start from `new`."""
    new: dict[str, Any] = field(default_factory=dict)
    """Fields of ViTConfig for an encoder with random weights."""
    mean: tuple[float, float, float] = HALF[0]
    """Per channel RGB in 0..1, of what `new` sees."""
    std: tuple[float, float, float] = HALF[1]
    """Their deviation; a small one where small things matter."""
    image_size: int = 0
    """Side in pixels of what the encoder sees; 0 for its own."""
    tap_layer: int | None = None
    """Block whose tokens are used; empty for where the checkpoint's own model takes them."""
    tap_norm: bool = True
    """Whether the final norm is applied to them, where `tap_layer` is given."""

    def __post_init__(self):
        if self.source and (self.mean, self.std) != HALF:
            raise ValueError(
                f"encoder.source {self.source} brings its own colors: leave encoder.mean and encoder.std out"
            )


@dataclass(frozen=True, kw_only=True)
class LanguageSettings:
    """Who answers."""

    source: str = ""
    """Folder or hub id for AutoModelForCausalLM; empty to start from `new`."""
    gguf_file: str = ""
    """File within `source`, for GGUF weights."""
    new: dict[str, Any] = field(default_factory=dict)
    """model_type and fields of a transformers configuration, for a model with random weights."""


@dataclass(frozen=True, kw_only=True)
class VLMTraining(Training):
    """How a run makes and trains a `VisionLanguageModel`."""

    start: str = ""
    """Folder or hub id of a VisionLanguageModel to begin from, in place of encoder, language, projector and layout; of LLaVA,
    OpenVLA and Prismatic too."""
    encoder: EncoderSettings = EncoderSettings()
    language: LanguageSettings = LanguageSettings()
    projector: str = "mlp"
    """A name of projectors.build."""
    projector_options: dict[str, Any] = field(default_factory=dict)
    """Its options."""
    projector_source: str = ""
    """Argument of vlm_vision.load_projector, in place of a new one; of a published VLA for example."""
    layout: dict[str, Any] = field(default_factory=dict)
    """name: whole, anyres or native, and its fields; empty for the encoder's own."""

    def __post_init__(self):
        super().__post_init__()
        if self.start and (self.encoder != EncoderSettings() or self.language != LanguageSettings() or self.layout):
            raise ValueError(
                f"start {self.start} brings its own encoder, language model and layout: leave encoder, language and layout out"
            )


def build_vlm(settings: VLMTraining, texts: Iterable[str]) -> VisionLanguageModel:
    """Encoder, projector and language model, each loaded or made new; or the saved model that `start` names.

    Args:
        texts: a new language model knows the words of these.

    Raises:
        ValueError: as the loaders.
    """
    if settings.start:
        folder = resolve(settings.start, None, also=TOKENIZER_FILES)
        if not (folder / "config.json").is_file():
            raise ValueError(f"start {settings.start} has no config.json: give the folder that save_pretrained wrote")
        model = VisionLanguageModel.from_pretrained(folder, dtype=torch.float32)
    else:
        model = _build_new_vlm(settings, texts)
    if settings.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model


def _build_new_vlm(settings: VLMTraining, texts: Iterable[str]) -> VisionLanguageModel:
    layer = settings.encoder.tap_layer
    tap = None if layer is None else Tap(layer, settings.encoder.tap_norm)
    if settings.encoder.source:
        encoder = load(settings.encoder.source, tap=tap, image_size=settings.encoder.image_size or None)
    else:
        encoder = new_encoder(
            settings.encoder.new, tap=tap or Tap(), mean=settings.encoder.mean, std=settings.encoder.std
        )
    if settings.language.source:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        options = {"gguf_file": settings.language.gguf_file} if settings.language.gguf_file else {}
        llm = AutoModelForCausalLM.from_pretrained(settings.language.source, dtype=torch.float32, **options)
        tokenizer = AutoTokenizer.from_pretrained(settings.language.source, **options)
    else:
        tokenizer = word_tokenizer(texts)
        llm = new_language_model(settings.language.new, tokenizer)
    layout = layout_from_dict(settings.layout) if settings.layout else None
    projector: str | projectors.Projector = settings.projector
    if settings.projector_source:
        projector = load_projector(settings.projector_source)
    elif settings.projector_options:
        words: Any = llm.get_input_embeddings()
        widths = {"in_dim": encoder.embed_dim, "out_dim": words.weight.shape[1]}
        projector = projectors.build(settings.projector, **widths, **settings.projector_options)
    return VisionLanguageModel.attach(encoder, llm, projector=projector, tokenizer=tokenizer, layout=layout)
