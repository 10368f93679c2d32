"""The vision-language model that a recipe trains: each part is loaded or new."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

import projectors
from vlm_vision.checkpoints.hub import TOKENIZER_FILES, hub_id, resolve
from vlm_vision.checkpoints.weights import WeightFiles
from vlm_vision.encoder import Encoder
from vlm_vision.files import read_json
from vlm_vision.fused import FusedEncoder
from vlm_vision.load_encoder import load, load_projector, load_shape
from vlm_vision.new_models import new_encoder, new_language_model, word_tokenizer
from vlm_vision.nn.output import Tap
from vlm_vision.tokens.training.weightless import remove_weights
from vlm_vision.train.settings import VlmSettings
from vlm_vision.vlm.config import STOCK_TYPES, VisionLanguageConfig
from vlm_vision.vlm.image_processor import encoder_from_dict
from vlm_vision.vlm.layout import layout_from_dict
from vlm_vision.vlm.model import VisionLanguageModel


def build_vlm(
    settings: VlmSettings, texts: Iterable[str], *, gradient_checkpointing: bool = False, tower: bool = True
) -> VisionLanguageModel:
    """Encoder, projector and language model, each loaded or made new; or the saved model that `start` names.

    Args:
        texts: a new language model knows the words of these.
        gradient_checkpointing: compute each layer again in the backward pass.
        tower: False for an encoder whose weights are not loaded, see `vlm_vision.tokens.training.weightless`.

    Raises:
        ValueError: as the loaders.
    """
    if settings.start:
        folder = _saved_model(settings.start)
        parts = {} if tower else {"encoder": load_shape_of(settings)}
        model = VisionLanguageModel.from_pretrained(folder, dtype=torch.float32, **parts)
        model.hub_id = hub_id(settings.start)
    else:
        model = _build_new_vlm(settings, texts, tower)
    if gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model


def load_shape_of(settings: VlmSettings) -> Encoder | FusedEncoder:
    """The encoder of the settings, without its weights.

    Raises:
        ValueError: a new encoder, or a public checkpoint to start from, neither of which can do without.
    """
    if not settings.start:
        if not settings.encoder.source:
            raise ValueError(
                "data.tokens needs the encoder that made the store, and encoder.new is another: set encoder.source"
            )
        return remove_weights(load_shape(settings.encoder.source, **_encoder_options(settings)))
    described = read_json(_saved_model(settings.start) / "config.json")
    if described["model_type"] != VisionLanguageConfig.model_type:
        raise ValueError(
            f"start {settings.start} is a checkpoint of type {described['model_type']}, which is read with its encoder, and data.tokens "
            "takes the encoder's place: save it by VisionLanguageModel.save_pretrained first, or leave data.tokens out"
        )
    with torch.device("meta"):
        return remove_weights(encoder_from_dict(described["encoder_config"]))


def load_tower(settings: VlmSettings) -> Encoder | FusedEncoder:
    """The encoder of the settings, with its weights, for a model that was built without them.

    Raises:
        ValueError: as the loaders.
    """
    if not settings.start:
        return load(settings.encoder.source, **_encoder_options(settings))
    folder = _saved_model(settings.start)
    encoder = encoder_from_dict(read_json(folder / "config.json")["encoder_config"])
    files, prefix = WeightFiles(folder), "encoder."
    held = {name.removeprefix(prefix): files.get(name).float() for name in files.shapes if name.startswith(prefix)}
    try:
        encoder.load_state_dict(held)
    except RuntimeError as error:
        raise ValueError(
            f"the encoder in {folder} does not fit its config.json ({error}): save the model again"
        ) from None
    return encoder.eval()


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


def _encoder_options(settings: VlmSettings) -> dict[str, Any]:
    """Arguments of `load`."""
    layer = settings.encoder.tap_layer
    tap = None if layer is None else Tap(layer, settings.encoder.tap_norm)
    return {"tap": tap, "image_size": settings.encoder.image_size or None}


def _build_new_vlm(settings: VlmSettings, texts: Iterable[str], tower: bool) -> VisionLanguageModel:
    if not tower:
        encoder = load_shape_of(settings)
    elif settings.encoder.source:
        encoder = load(settings.encoder.source, **_encoder_options(settings))
    else:
        tap = _encoder_options(settings)["tap"] or Tap()
        encoder = new_encoder(settings.encoder.new, tap=tap, mean=settings.encoder.mean, std=settings.encoder.std)
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
