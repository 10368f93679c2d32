"""Reader of Prismatic and OpenVLA folders: one or two timm towers, an MLP, a language model; `prismatic_export` writes them.

Karamcheti et al. 2024 (arXiv:2402.07865), Kim et al. 2024 (arXiv:2406.09246). On disk: `vision_backbone.featurizer.*` and
`.fused_featurizer.*` by timm's names with LayerScale as `scale_factor`, `projector.fc{1,2,3}.*`, `language_model.*`.
"""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer

from vlm_vision.checkpoints.checkpoint import Checkpoint
from vlm_vision.checkpoints.hub import resolve
from vlm_vision.checkpoints.openvla import reader as towers
from vlm_vision.checkpoints.sniff import weights_of
from vlm_vision.files import read_json
from vlm_vision.load_encoder import known_device, known_dtype, load, load_projector
from vlm_vision.vlm.formats.common import (
    Json,
    Parts,
    has_tokenizer,
    load_language_model,
)
from vlm_vision.vlm.layout import Whole

PARTS = ("vision_backbone.", "projector.", "language_model.")


TEMPLATE = (
    "{% set marked = messages | selectattr('content', 'string') | map(attribute='content') | join %}"
    "{{ '<image>' * (marked.split('<image>') | length - 1) }}"
    "{% for message in messages %}"
    "{% set text = message['content'].replace('<image>\n', '').replace('\n<image>', '').replace('<image>', '') %}"
    "{% if message['role'] == 'user' %}{{ 'In: ' + text + '\nOut:' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + text + eos_token }}{% if not loop.last %}{{ '\n' }}{% endif %}"
    "{% else %}{{ text + '\n' }}{% endif %}{% endfor %}"
)
"""Prismatic's prompt for base models, images first, as `read_prismatic` sets it where the tokenizer has no template."""


def read_prismatic(
    folder: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    revision: str | None = None,
) -> Parts:
    """The parts of a Prismatic or OpenVLA folder: vision, projector and language model, without action heads.

    Put `<image>` first in a prompt: that is where the format has its patches.

    Args:
        folder: local folder or hub id, in HuggingFace's form.
        dtype: of weights and computation; half precision files are widened to it.
        device: where the weights go.
        revision: branch, tag or commit of a hub id.

    Returns:
        The parts. Without a tokenizer's files the tokenizer is None and the last word of the vocabulary, which is padding
        there, stands for the image.

    Raises:
        ValueError: no such folder, a tower, projector or language model that is not known, weights missing or unused.
    """
    dtype, device, path = known_dtype(dtype), known_device(device), resolve(folder, revision)
    config = read_json(path / "config.json")
    text = config.get("text_config")
    if config.get("model_type") not in towers.MODEL_TYPES or not isinstance(text, dict):
        raise ValueError(
            f"{path} is not a Prismatic or OpenVLA folder in HuggingFace's form: its config.json needs model_type "
            f"{' or '.join(towers.MODEL_TYPES)} and a text_config"
        )
    checkpoint = Checkpoint(path)
    weights = weights_of(checkpoint)
    if stray := [name for name in weights.shapes if not name.startswith(PARTS)]:
        raise ValueError(
            f"{path} holds {stray[0]}, which is not a weight of Prismatic or OpenVLA: expected {', '.join(PARTS)}"
        )
    encoder = load(checkpoint, dtype=dtype, device=device)
    projector = load_projector(checkpoint, dtype=dtype, device=device)
    text_config = _text_config(path, text)
    llm = load_language_model(weights, text_config, path, dtype, device)
    tokenizer = None
    if has_tokenizer(path):
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, revision=revision or "main")
        except Exception as error:  # tokenizers raise plain Exception
            raise ValueError(
                f"the tokenizer's files in {path} cannot be read ({error}): download them again"
            ) from error
        tokenizer.chat_template = tokenizer.chat_template or TEMPLATE
    last = text_config.vocab_size - 1
    return Parts(
        encoder=encoder,
        projector=projector,
        language_model=llm,
        layout=Whole(),
        tokenizer=tokenizer,
        image_token_id=last,
    )


def _text_config(path: Path, described: Json) -> Any:
    try:
        return AutoConfig.for_model(**({"model_type": "llama"} | described))
    except Exception as error:  # each configuration checks itself in its own way
        raise ValueError(
            f"{path / 'config.json'} has a text_config that transformers cannot read ({error}): download it again"
        ) from error
