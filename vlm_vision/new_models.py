"""Small models from nothing: an encoder, a tokenizer and a language model with random weights."""

from collections.abc import Iterable
from typing import Any

from torch import nn

from vlm_vision.config import Tap, ViTConfig
from vlm_vision.encoder import Encoder, Origin
from vlm_vision.preprocess import HALF, Preprocess
from vlm_vision.vit import VisionTransformer

Colour = tuple[float, float, float]


def new_encoder(fields: dict[str, Any], *, tap: Tap = Tap(), mean: Colour = HALF[0], std: Colour = HALF[1]) -> Encoder:
    """An encoder with random weights that squashes pictures to its native size and scales them, to [-1, 1] by default.

    Linear weights have a deviation of 1 / sqrt(fan in): a narrow model with the 0.02 of wide ones learns several times
    slower at first.

    Args:
        fields: of `ViTConfig`; image_size may be one side in pixels.
        mean, std: per channel RGB, of values in 0..1. A small deviation lets small things be seen: beside a position, a few
            pixels of a patch are next to nothing when the weights are new.

    Raises:
        ValueError: fields that are unknown, missing or impossible.
    """
    side = fields.get("image_size")
    if isinstance(side, int):
        fields = fields | {"image_size": (side, side)}
    try:
        config = ViTConfig(**fields)
    except TypeError as error:
        raise ValueError(f"these are not the fields of a ViTConfig: {error}") from None
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
        ValueError: no model_type, or one that transformers does not know.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    if "model_type" not in fields:
        raise ValueError("a new language model needs a model_type, for example 'llama'")
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
