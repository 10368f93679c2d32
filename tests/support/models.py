"""Images, tokenizers and language models small enough to make in milliseconds."""

import numpy as np
import torch
from PIL import Image


def make_image(seed: int = 0, height: int = 40, width: int = 36) -> Image.Image:
    """Colored noise."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


WORDS = "what color is this image of the red blue green a an no yes it shows cat dog ? . : , In Out".split()


def tiny_tokenizer(*, bos: bool = True, pad: bool = False, chat_template: str | None = None):
    """A word tokenizer; without a padding token unless asked for."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["<unk>", "</s>"] + ["<s>"] * bos + ["<pad>"] * pad
    vocabulary = {word: i for i, word in enumerate([*special, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", vocabulary["<s>"])]
        )
    names = {"unk_token": "<unk>", "eos_token": "</s>"} | ({"bos_token": "<s>"} if bos else {})
    names |= {"pad_token": "<pad>"} if pad else {}
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)
    made.chat_template = chat_template
    return made


LLMS = ["llama", "llama_tied", "qwen2", "qwen3", "gemma", "gpt2"]


def tiny_llm(name: str, vocab_size: int = 30):
    """A 2-block language model of a family, with random weights."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    ids = dict(vocab_size=vocab_size, eos_token_id=1, bos_token_id=2, pad_token_id=None)
    if name == "gpt2":
        config = AutoConfig.for_model("gpt2", n_embd=32, n_layer=2, n_head=4, n_positions=256, **ids)
    else:
        shape = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
        shape |= dict(num_key_value_heads=2, head_dim=8, tie_word_embeddings=name.endswith(("_tied", "gemma")))
        config = AutoConfig.for_model(name.removesuffix("_tied"), **shape, **ids)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():  # larger weights than at initialization, so that differences show
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    return model


CHAT = (
    "{% for m in messages %}{{ '<s>' + m['role'] + ': ' + m['content'] + '</s>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<s>assistant: ' }}{% endif %}"
)
"""A chat template that marks turns with the tokens of `tiny_tokenizer`."""
