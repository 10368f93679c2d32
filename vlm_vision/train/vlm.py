"""The vision-language model that a recipe trains: each part is loaded or new."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

import projectors
from vlm_vision.checkpoints.hub import TOKENIZER_FILES, hub_id, resolve
from vlm_vision.files import read_json
from vlm_vision.load_encoder import load, load_projector
from vlm_vision.new_models import new_encoder, new_language_model, word_tokenizer
from vlm_vision.nn.output import Tap
from vlm_vision.train.settings import VlmSettings
from vlm_vision.vlm.config import STOCK_TYPES, VisionLanguageConfig
from vlm_vision.vlm.layout import layout_from_dict
from vlm_vision.vlm.model import VisionLanguageModel


def build_vlm(
    settings: VlmSettings, texts: Iterable[str], *, gradient_checkpointing: bool = False
) -> VisionLanguageModel:
    """Encoder, projector and language model, each loaded or made new; or the saved model that `start` names.

    Args:
        texts: a new language model knows the words of these.
        gradient_checkpointing: compute each layer again in the backward pass.

    Raises:
        ValueError: as the loaders.
    """
    if settings.start:
        model = VisionLanguageModel.from_pretrained(_saved_model(settings.start), dtype=torch.float32)
        model.hub_id = hub_id(settings.start)
    else:
        model = _build_new_vlm(settings, texts)
    if gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model


def _saved_model(start: str) -> Path:
    """The folder of a saved vision-language model. Raises ValueError for one that holds something else."""
    folder = resolve(start, None, also=TOKENIZER_FILES)
    if not (folder / "config.json").is_file():
        is_run = (folder / "model" / "config.json").is_file()
        hint = (
            f"pass {start}/model, the saved model of the run"
            if is_run
            else "pass the folder that save_pretrained wrote"
        )
        raise ValueError(f"start {start} has no config.json: {hint}")
    kind = read_json(folder / "config.json").get("model_type")
    if kind not in (VisionLanguageConfig.model_type, *STOCK_TYPES):
        raise ValueError(
            f"start {start} holds a model of type {kind}, which is not a vision-language model: pass the folder of one, "
            "or remove start and set encoder.source and language.source"
        )
    return folder


def _load_language(source: str, gguf_file: str) -> tuple[Any, Any]:
    """(language model, tokenizer). Raises ValueError for a source that is not both."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    options = {"gguf_file": gguf_file} if gguf_file else {}
    try:
        llm = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, **options)
        return llm, AutoTokenizer.from_pretrained(source, **options)
    except (OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0].rstrip(".")
        files = sorted(Path(source).glob("*.gguf")) if Path(source).is_dir() and not gguf_file else []
        hint = (
            f"set language.gguf_file to {files[0].name}"
            if files
            else "pass a folder or hub id for AutoModelForCausalLM, with its tokenizer"
        )
        raise ValueError(f"language.source {source} cannot be loaded ({reason}): {hint}") from error


def _build_new_vlm(settings: VlmSettings, texts: Iterable[str]) -> VisionLanguageModel:
    layer = settings.encoder.tap_layer
    tap = None if layer is None else Tap(layer, settings.encoder.tap_norm)
    if settings.encoder.source:
        encoder = load(settings.encoder.source, tap=tap, image_size=settings.encoder.image_size or None)
    else:
        encoder = new_encoder(
            settings.encoder.new, tap=tap or Tap(), mean=settings.encoder.mean, std=settings.encoder.std
        )
    if settings.language.source:
        llm, tokenizer = _load_language(settings.language.source, settings.language.gguf_file)
    else:
        tokenizer = word_tokenizer(texts)
        llm = new_language_model(settings.language.new, tokenizer)
    layout = layout_from_dict(dict(settings.layout)) if settings.layout else None
    projector: str | projectors.Projector = settings.projector
    if settings.projector_source:
        projector = load_projector(settings.projector_source)
    elif settings.projector_options:
        words: Any = llm.get_input_embeddings()
        arguments: dict[str, Any] = {"in_dim": encoder.embed_dim, "out_dim": words.weight.shape[1]}
        arguments.update(settings.projector_options)
        projector = projectors.build(settings.projector, **arguments)
    return VisionLanguageModel.attach(encoder, llm, projector=projector, tokenizer=tokenizer, layout=layout)
