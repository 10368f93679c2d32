"""Small models with random weights: an encoder, a language model, a CLIP or SigLIP pair; and their tokenizers."""

import inspect
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from projectors.names import did_you_mean
from vlm_vision.encoder import Encoder, Origin
from vlm_vision.nn.config import ViTConfig
from vlm_vision.nn.fields import TextFields, ViTFields, check_names, text_config, vit_config
from vlm_vision.nn.output import Tap
from vlm_vision.nn.text import TextTransformer
from vlm_vision.nn.vit import VisionTransformer
from vlm_vision.pair import Pair, TextEncoder
from vlm_vision.preprocess.spec import HALF, Preprocess
from vlm_vision.preprocess.tokenizer import TextTokenizer, TokenizerRules

RGB = tuple[float, float, float]


def new_encoder(fields: ViTFields, *, tap: Tap = Tap(), mean: RGB = HALF[0], std: RGB = HALF[1]) -> Encoder:
    """An encoder with random weights that squashes images to its native size and scales pixels, to [-1, 1] by default.

    Linear weights have a deviation of 1 / sqrt(fan in): a narrow model with the 0.02 of wide ones learns several times
    slower at first.

    Args:
        fields: of `ViTConfig`; image_size may be one side in pixels.
        mean, std: per channel RGB, of values in 0..1. A smaller std makes small objects more visible: a few pixels of a
            patch change a new model's tokens little compared with the position.

    Raises:
        ValueError: fields that are unknown, missing or impossible.
    """
    config = vit_config(fields)
    preprocess = Preprocess(
        resize="squash",
        resize_to=config.image_size,
        resample="bicubic",
        crop=None,
        rescale=1 / 255,
        mean=mean,
        std=std,
    )
    model = VisionTransformer(config)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=module.in_features**-0.5)
    return Encoder(model, preprocess=preprocess, tap=tap, origin=Origin("vit", "transformers"))


def word_tokenizer(texts: Iterable[str]):
    """A transformers tokenizer whose tokens are the words and punctuation marks of `texts`, in lower case."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    split = pre_tokenizers.Whitespace()
    words = sorted({word for text in texts for word, _ in split.pre_tokenize_str(text.replace("<image>", " ").lower())})
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys(["<unk>", "<pad>", "</s>", "in", "out", ":", *words]))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()  # type: ignore[assignment]
    tokenizer.pre_tokenizer = split  # type: ignore[assignment]
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>", eos_token="</s>")


def new_language_model(fields: dict[str, Any], tokenizer: Any):
    """A causal language model with random weights, as large as the tokenizer's vocabulary and `<image>`.

    Args:
        fields: model_type, and what the transformers configuration of that type takes.

    Raises:
        ValueError: as `check_language_fields`; values that transformers rejects.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    check_language_fields(fields)
    special = dict(
        vocab_size=len(tokenizer) + 1,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    options = {name: value for name, value in fields.items() if name != "model_type"} | special
    try:
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(fields["model_type"], **options))
    except Exception as error:  # each configuration checks itself in its own way
        reason = " ".join(str(error).split())
        raise ValueError(f"transformers cannot make a {fields['model_type']} of these fields: {reason}") from error


_LEGACY_LANGUAGE_FIELDS = ("rope_theta", "rope_scaling", "partial_rotary_factor", "torch_dtype")
"""Fields that transformers reads though no signature has them."""


def check_language_fields(fields: dict[str, Any]) -> None:
    """Raise ValueError for a model_type that transformers does not know, or a field that its configuration does not have."""
    from transformers import CONFIG_MAPPING, PreTrainedConfig

    if "model_type" not in fields:
        raise ValueError("a new language model needs a model_type, for example 'llama'")
    kind = fields["model_type"]
    if kind not in CONFIG_MAPPING:
        raise ValueError(f"transformers has no model_type {kind!r}{did_you_mean(kind, CONFIG_MAPPING.keys())}")
    config = CONFIG_MAPPING[kind]
    known = {*inspect.signature(config).parameters, *inspect.signature(PreTrainedConfig).parameters}
    known |= {*config.attribute_map, *_LEGACY_LANGUAGE_FIELDS, "model_type"}
    check_names(f"transformers' {config.__name__}", fields, known)


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
    image: ViTFields | Encoder,
    text: TextFields,
    tokenizer: Path,
    logit_scale: float | None = None,
    logit_bias: float | None = None,
) -> Pair:
    """A pair of the family's architecture, with random weights.

    Args:
        kind: "siglip" (attention pooling, a text pooled at its last token, sigmoid's bias) or "clip" (CLS, causal text).
        image: image_size, patch_size, embed_dim, depth, num_heads, mlp_dim; or an encoder, which stays as it is.
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
            f"the image tower is a {seen.origin.family}, which no CLIP or SigLIP of transformers has: expected a {kind}_vision_model"
        )
    words: Any = AutoTokenizer.from_pretrained(tokenizer)
    width = _width(seen.config) if seen else image.get("embed_dim")  # type: ignore[union-attr]
    if not isinstance(width, int):
        raise ValueError("image needs embed_dim, the width of its tokens, as a whole number")
    fixed: dict[str, Any] = dict(
        vocab_size=len(words), eos_id=words.eos_token_id, pad_id=words.pad_token_id, proj_dim=width
    )
    config = text_config(_TEXT[kind] | text, **fixed)
    if seen is None:
        assert isinstance(image, dict)
        made = new_encoder(_image_fields(kind, image))
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


def check_pair(kind: Kind, image: ViTFields, text: TextFields) -> None:
    """Raise ValueError for fields that are unknown, missing or impossible; towers without fields are not checked."""
    if image:
        vit_config(_image_fields(kind, image))
    if text:
        text_config(_TEXT[kind] | text, vocab_size=2, eos_id=0, pad_id=0, proj_dim=1)


def _image_fields(kind: Kind, given: ViTFields) -> ViTFields:
    head = dict(pool_head="linear", pool_dim=given.get("embed_dim")) if kind == "clip" else {}
    return _IMAGE[kind] | given | head


def learn_tokenizer(texts: Iterable[str], folder: Path, *, kind: Kind, vocab_size: int) -> None:
    """Learn a byte-level BPE of at most `vocab_size` pieces from texts in lower case, and write it to a folder.

    For clip it has tokens for start and end of a text; for siglip only the end, which is also the padding.
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
        raise ValueError("this encoder has no pooled vector to compare with texts: choose one that has")
    return config.pool_dim or config.embed_dim
