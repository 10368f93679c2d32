"""LLaVA and LLaVA-NeXT checkpoints of transformers, read part by part; `llava_export` writes them.

Liu et al. 2023 (arXiv:2310.03744); NeXT has the same parts, tiles and a newline token. On disk:
`vision_tower.vision_model.*`, `multi_modal_projector.linear_{1,2}.*`, `language_model.model.*`,
`language_model.lm_head.weight` and `image_newline`, the names of the public hub.
"""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, LlavaNextProcessor, LlavaProcessor

import projectors
from vlm_vision.checkpoints import keys
from vlm_vision.checkpoints.checkpoint import Checkpoint
from vlm_vision.checkpoints.connectors.candidate import ACTIVATIONS
from vlm_vision.checkpoints.hub import resolve
from vlm_vision.checkpoints.towers import TowerWeights, read_state_dict
from vlm_vision.checkpoints.weights import WeightFiles
from vlm_vision.encoder import Encoder
from vlm_vision.files import read_json
from vlm_vision.load_encoder import known_device, known_dtype, load
from vlm_vision.nn.output import Tap
from vlm_vision.vlm.formats.common import Parts, has_tokenizer, load_language_model
from vlm_vision.vlm.layout import AnyRes, Layout, Whole
from vlm_vision.vlm.processor import IMAGE_TOKEN

PROCESSORS: dict[str, Any] = {"llava": LlavaProcessor, "llava_next": LlavaNextProcessor}
"""model_type -> processor of transformers."""

FLATTEN = (
    "{%- set flat = namespace(messages=[]) -%}"
    "{%- for message in messages -%}"
    "{%- set parts = namespace(texts=[]) -%}"
    "{%- if message['content'] is string -%}{%- set parts.texts = [message['content']] -%}"
    "{%- else -%}{%- for part in message['content'] or [] -%}"
    "{%- if part['type'] == 'image' -%}{%- set parts.texts = parts.texts + ['<image>'] -%}"
    "{%- elif part['type'] == 'text' -%}{%- set parts.texts = parts.texts + [part['text']] -%}"
    "{%- else -%}{{ raise_exception('expected parts of type image or text, got ' + part['type']) }}{%- endif -%}"
    "{%- endfor -%}{%- endif -%}"
    "{%- set flat.messages = flat.messages + [dict(message, content=parts.texts | join('\n'))] -%}"
    "{%- endfor -%}"
    "{%- set messages = flat.messages -%}"
)
"""Jinja before a chat template of strings: a content list becomes `<image>` lines and text, as in our own processor."""


def read_llava(
    folder: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    revision: str | None = None,
) -> Parts:
    """The parts of a LLaVA or LLaVA-NeXT checkpoint of transformers, in its layout on disk or in memory.

    Args:
        folder: local folder or hub id.
        dtype: of weights and computation; half precision files are widened to it.
        device: where the weights go.
        revision: branch, tag or commit of a hub id.

    Returns:
        The parts, for LLaVA-NeXT with the layout `AnyRes`. Without a tokenizer's files the tokenizer is None.

    Raises:
        ValueError: features that this library does not take from a tower (several layers, CLS among the patches), a
            projector whose activation is not known; weights that are missing, unused or damaged.
    """
    dtype, device, path = known_dtype(dtype), known_device(device), resolve(folder, revision)
    config = _config(path)
    checkpoint = Checkpoint(path)
    encoder = load(checkpoint, tap=_tap(config, path), dtype=dtype, device=device)
    assert isinstance(encoder, Encoder)
    strategy, expected = config.vision_feature_select_strategy, "default" if encoder.config.class_token else "full"
    if strategy != expected:
        what = "keeps CLS among the patches" if strategy == "full" else "drops the first patch"
        raise ValueError(
            f"{path} has vision_feature_select_strategy {strategy!r}, which {what} of a {encoder.origin.family}: "
            f"expected {expected!r}"
        )
    weights = checkpoint.weights
    projector = _projector(config, path, weights, dtype, device)
    text_config = config.text_config
    text_config.tie_word_embeddings = config.tie_word_embeddings  # LLaVA's class ties by its own configuration
    llm = load_language_model(weights, text_config, path, dtype, device)
    tokenizer = _tokenizer(config, folder, path, revision) if has_tokenizer(path) else None
    layout: Layout = Whole()
    if config.model_type == "llava_next":
        layout = AnyRes(tuple((height, width) for height, width in config.image_grid_pinpoints))
    newline = None
    if layout.newline:
        stored = {name.removeprefix("model."): name for name in weights.shapes}
        if "image_newline" not in stored:
            raise ValueError(f"{path} lacks the weight image_newline of LLaVA-NeXT: download the folder again")
        newline = weights.get(stored["image_newline"]).to(device=device, dtype=dtype)
    return Parts(
        encoder=encoder,
        projector=projector,
        language_model=llm,
        layout=layout,
        tokenizer=tokenizer,
        image_token_id=config.image_token_index,
        newline=newline,
    )


def _config(path: Path) -> Any:
    described = read_json(path / "config.json")
    if described.get("model_type") not in PROCESSORS:
        raise ValueError(f"{path} is a {described.get('model_type')!r} model, expected {' or '.join(PROCESSORS)}")
    try:
        return AutoConfig.for_model(**described)
    except Exception as error:  # each configuration checks itself in its own way
        raise ValueError(
            f"{path / 'config.json'} is not a configuration of transformers ({error}): download it again"
        ) from error


def _tap(config: Any, path: Path) -> Tap:
    """hidden_states[0] is what enters the first block, hidden_states[i] what leaves block i - 1."""
    layer = config.vision_feature_layer
    if not isinstance(layer, int) or layer == 0:
        raise ValueError(
            f"{path} has vision_feature_layer {layer!r}: expected one whole number other than 0, the output of one block"
        )
    return Tap(layer if layer < 0 else layer - 1, norm=False)


def _projector(
    config: Any, path: Path, weights: WeightFiles, dtype: torch.dtype, device: torch.device
) -> projectors.Projector:
    if config.projector_hidden_act not in ACTIVATIONS:
        raise ValueError(
            f"{path} has projector_hidden_act {config.projector_hidden_act!r}, expected one of {', '.join(ACTIVATIONS)}"
        )
    activation, bias = ACTIVATIONS[config.projector_hidden_act], config.multimodal_projector_bias
    prefixes = ("multi_modal_projector.", "model.multi_modal_projector.")
    prefix = next((p for p in prefixes if f"{p}linear_1.weight" in weights.shapes), prefixes[0])
    width, wider = config.vision_config.hidden_size, config.text_config.hidden_size
    with torch.device("meta"):
        projector = projectors.build("mlp", in_dim=width, out_dim=wider, activation=activation, bias=bias)
    table = [row for i in (1, 2) for row in keys.layer(f"fc{i}", f"linear_{i}", bias=bias)]
    shapes = {name: value.shape for name, value in projector.state_dict().items()}
    state = read_state_dict(table, shapes, TowerWeights(weights, prefix), source=str(path), dtype=dtype, device=device)
    projector.load_state_dict(state, assign=True)
    return projector.eval()


def _tokenizer(config: Any, source: str | Path, path: Path, revision: str | None) -> Any:
    """The folder's tokenizer with the folder's chat template."""
    try:
        processor = PROCESSORS[config.model_type].from_pretrained(source, revision=revision or "main")
    except Exception as error:  # each file fails in its own way; tokenizers raise plain Exception
        raise ValueError(f"the processor's files in {path} cannot be read ({error}): download them again") from error
    tokenizer, image_token_id = processor.tokenizer, config.image_token_index
    if tokenizer.convert_tokens_to_ids(IMAGE_TOKEN) != image_token_id:
        raise ValueError(
            f"{path} has image_token_index {image_token_id}, which is {tokenizer.convert_ids_to_tokens(image_token_id)!r} "
            f"in its tokenizer, expected {IMAGE_TOKEN}"
        )
    template = processor.chat_template or tokenizer.chat_template
    tokenizer.chat_template = template.removeprefix(FLATTEN) if isinstance(template, str) else template
    return tokenizer
