"""Small `VisionLanguageModel`s of every layout and their inputs, for the tests of what transformers expects of them."""

import torch

import vlm_vision as vv
from support.models import make_image, tiny_llm, tiny_tokenizer
from vlm_vision.new_models import new_encoder

LAYOUTS = {"whole": vv.Whole(), "native": vv.Native(24), "anyres": vv.AnyRes(((32, 64), (64, 32)))}
TEXTS = ["<image> what color is <image>", "is this a cat ?", "<image> the"]
GREEDY = dict(max_new_tokens=6, do_sample=False, eos_token_id=None)


def tower(width: int = 32):
    """Sees 32 px images as a grid of 4x4."""
    fields = dict(image_size=32, patch_size=8, embed_dim=width, depth=2, num_heads=4, mlp_dim=64, position_prefix=1)
    return new_encoder(fields).eval()


def join(llm: str = "llama", layout: str = "whole", *, seed: int = 0) -> vv.VisionLanguageModel:
    """The same model for the same arguments."""
    torch.manual_seed(seed)
    seeing = tower()
    return vv.VisionLanguageModel.attach(seeing, tiny_llm(llm), tokenizer=tiny_tokenizer(), layout=LAYOUTS[layout])


def inputs(vlm: vv.VisionLanguageModel, texts: list[str] = TEXTS):
    """Prompts and their images, of unlike shapes."""
    count = sum(text.count("<image>") for text in texts)
    return vlm.processor(text=texts, images=[make_image(i, 40 + 9 * i, 36) for i in range(count)], return_tensors="pt")
