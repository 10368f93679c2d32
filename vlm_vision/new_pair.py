"""Small pairs from nothing: a CLIP or SigLIP with random weights, and a tokenizer learned from captions."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from vlm_vision.config import ViTConfig
from vlm_vision.encoder import Encoder, Origin
from vlm_vision.new_models import new_encoder
from vlm_vision.pair import Pair, TextEncoder
from vlm_vision.text import TextConfig, TextTransformer
from vlm_vision.tokenizer import TextTokenizer, TokenizerRules

Kind = Literal["siglip", "clip"]

_IMAGE: dict[Kind, dict[str, Any]] = {
    "siglip": dict(class_token=False, pool="map", mlp="gelu_tanh", norm_eps=1e-6),
    "clip": dict(
        class_token=True, position_prefix=1, pre_norm=True, patch_bias=False, mlp="gelu", norm_eps=1e-5, pool="cls"
    ),
}
_TEXT: dict[Kind, dict[str, Any]] = {
    "siglip": dict(causal=False, pool="last", mlp="gelu_tanh", norm_eps=1e-6, projection_bias=True),
    "clip": dict(causal=True, pool="eos", mlp="gelu", norm_eps=1e-5),
}


def new_pair(
    kind: Kind,
    *,
    image: dict[str, Any] | Encoder,
    text: dict[str, Any],
    tokenizer: Path,
    logit_scale: float | None = None,
    logit_bias: float | None = None,
) -> Pair:
    """A pair of the family's architecture, with random weights.

    Args:
        kind: "siglip" (attention pooling, a text read at its last place, sigmoid's bias) or "clip" (CLS, causal text).
        image: image_size, patch_size, embed_dim, depth, num_heads, mlp_dim; or an encoder that is kept as it is.
        text: embed_dim, depth, num_heads, mlp_dim, context_length.
        tokenizer: folder of `learn_tokenizer`.
        logit_scale: the logarithm; default log 10 for siglip (Zhai et al. 2023), log 1/0.07 for clip (Radford et al. 2021).
        logit_bias: of siglip; default -10, which suits batches of 20,000 pairs; log(1 / (B - 1)) suits B of them.

    Raises:
        ValueError: fields that are unknown, missing or impossible, or an encoder of another family.
    """
    from transformers import AutoTokenizer

    seen = image if isinstance(image, Encoder) else None
    if seen is not None and seen.origin.family != f"{kind}_vision_model":
        raise ValueError(
            f"the image tower is a {seen.origin.family}, which no pair of transformers has: expected a {kind}_vision_model"
        )
    words: Any = AutoTokenizer.from_pretrained(tokenizer)
    width = _width(seen.config) if seen else image.get("embed_dim")  # type: ignore[union-attr]
    if not isinstance(width, int):
        raise ValueError("image needs embed_dim, the width of its tokens, as a whole number")
    fixed: dict[str, Any] = dict(
        vocab_size=len(words), eos_id=words.eos_token_id, pad_id=words.pad_token_id, proj_dim=width
    )
    try:
        config = TextConfig(**(_TEXT[kind] | text | fixed))
    except TypeError as error:
        raise ValueError(f"these are not the fields of a TextConfig: {error}") from None
    if seen is None:
        assert isinstance(image, dict)
        made = new_encoder(_IMAGE[kind] | image | (dict(pool_head="linear", pool_dim=width) if kind == "clip" else {}))
        seen = Encoder(made.model, preprocess=made.preprocess, origin=Origin(f"{kind}_vision_model", "transformers"))
    model = TextTransformer(config)
    if model.head is not None and model.head.bias is not None:
        nn.init.zeros_(model.head.bias)
    rules = TokenizerRules(frame="clip") if kind == "clip" else TokenizerRules(frame="siglip", drop_underscore=True)
    made_tokenizer = TextTokenizer.from_pretrained(
        tokenizer, context_length=config.context_length, rules=rules, pad_id=config.pad_id
    )
    scale = logit_scale if logit_scale is not None else math.log(10 if kind == "siglip" else 1 / 0.07)
    bias = torch.tensor(-10.0 if logit_bias is None else logit_bias) if kind == "siglip" else None
    return Pair(seen, TextEncoder(model, made_tokenizer), logit_scale=torch.tensor(scale), logit_bias=bias)


def learn_tokenizer(texts: Iterable[str], folder: Path, *, kind: Kind, vocab_size: int) -> None:
    """Learn a byte-level BPE of at most `vocab_size` pieces from texts in lower case, and write it to a folder.

    With start and end of a text for clip, and its end alone, which also pads, for siglip.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["<|endoftext|>", "<|startoftext|>"][: 1 + (kind == "clip")]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])  # type: ignore[assignment]
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)  # type: ignore[assignment]
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    names = {"eos_token": special[0], "pad_token": special[0]} | ({"bos_token": special[1]} if kind == "clip" else {})
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)


def _width(config: ViTConfig) -> int:
    if config.pool == "none":
        raise ValueError("this encoder gives no pooled vector to compare with texts: choose one that has it")
    return config.pool_dim or config.embed_dim
