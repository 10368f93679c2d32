"""An answer of a vision-language model: its attention to the image, and the places of the image that it depends on."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from vlm_vision.encoder import eval_mode
from vlm_vision.page.arrays import Arrays, image_url
from vlm_vision.page.compute.cover import covered, squares
from vlm_vision.page.compute.pixels import drawn, thumbnail
from vlm_vision.page.describe import ShownEncoder
from vlm_vision.vlm.layout import Whole
from vlm_vision.vlm.model import VisionLanguageModel

_SQUARES, _BATCH = 49, 7
"""Squares that are covered one at a time, and how many of them are computed at once."""


def answer_part(
    model: VisionLanguageModel, image: Image.Image, question: str, arrays: Arrays, *, max_new_tokens: int = 24
) -> dict[str, Any]:
    """What the page shows of a greedy answer to a question about one image.

    attention: (A, layers, heads, M) softmax weights from the place that predicts each of the A tokens of the answer to the M
    image tokens. drops: for each covered square the logarithm of the answer's probability, less than for the whole image.

    Raises:
        ValueError: a model without a processor, or one whose layers have no softmax attention.
    """
    if model.processor is None:
        raise ValueError("this model has no processor: load it from a folder with a tokenizer")
    with torch.no_grad(), eval_mode(model):
        batch = _inputs(model, [image], question)
        prompt = batch["input_ids"].shape[1]
        ids = model.generate(**batch, max_new_tokens=max_new_tokens, do_sample=False)[:, prompt:]
        answer = _without_end(model, ids[0])
        answer = answer if len(answer) else ids[0, :1]  # the model ends at once: the end is its answer
        with _eager(model):
            out = _forward(model, batch, answer, output_attentions=True)
        if not out.attentions or any(one is None for one in out.attentions):
            kind = type(model.language_model).__name__
            raise ValueError(f"{kind} does not give its attention: the page shows language models of softmax attention")
        places = (batch["input_ids"][0] == model.config.image_token_id).nonzero()[:, 0]
        rows = slice(prompt - 1, prompt - 1 + len(answer))
        attention = torch.stack([one[0, :, rows][..., places].float().cpu() for one in out.attentions])
        chances = _log_chances(out.logits, answer, prompt)
        grid = squares(image, _SQUARES)
        drops = []
        for start in range(0, grid[0] * grid[1], _BATCH):
            part = covered(image, grid)[start : start + _BATCH]
            logits = _forward(model, _inputs(model, part, question), answer).logits
            drops.append(chances.sum() - _log_chances(logits, answer, prompt).sum(dim=-1))
    tokenizer: Any = model.processor.tokenizer
    return {
        "question": question,
        "words": [tokenizer.decode([int(one)]) for one in answer],
        "probabilities": chances[0].exp().tolist(),
        "layers": len(attention),
        "heads": attention.shape[1],
        "attention": arrays.add(attention.permute(2, 0, 1, 3)),
        "grid": _token_grid(model, batch, len(places)),
        "url": _url(model, image),
        "original": image_url(thumbnail(image), exact=False),
        "occlusion": {"grid": list(grid), "drops": arrays.add(torch.cat(drops))},
    }


def _inputs(model: VisionLanguageModel, images: list[Image.Image], question: str) -> Any:
    """The prompt once for each image."""
    processor: Any = model.processor
    content = [{"type": "image"}, {"type": "text", "text": question}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    return processor(text=[text] * len(images), images=[[one] for one in images], return_tensors="pt").to(model.device)


def _without_end(model: VisionLanguageModel, ids: Tensor) -> Tensor:
    end: Any = model.generation_config.eos_token_id
    ends = torch.tensor([] if end is None else [end] if isinstance(end, int) else end, device=ids.device)
    at = torch.isin(ids, ends).nonzero()[:, 0]
    return ids[: int(at[0])] if len(at) else ids


def _forward(model: VisionLanguageModel, batch: Any, answer: Tensor, **options: Any) -> Any:
    """The model's output for the prompts with the answer after them."""
    ids = batch["input_ids"]
    after = answer.expand(len(ids), -1)
    whole = dict(batch) | {
        "input_ids": torch.cat([ids, after], dim=1),
        "attention_mask": torch.cat([batch["attention_mask"], torch.ones_like(after)], dim=1),
    }
    return model(**whole, use_cache=False, **options)


def _log_chances(logits: Tensor, answer: Tensor, prompt: int) -> Tensor:
    """(B, A): logarithm of the probability of each token of the answer."""
    rows = logits[:, prompt - 1 : prompt - 1 + len(answer)].double().log_softmax(dim=-1)
    return rows.gather(-1, answer.expand(len(rows), -1)[..., None])[..., 0].cpu()


@contextmanager
def _eager(model: VisionLanguageModel) -> Iterator[None]:
    """The language model with the attention that returns its weights, and afterwards with its own."""
    language: Any = model.language_model
    before = language.config._attn_implementation
    language.set_attn_implementation("eager")
    try:
        yield
    finally:
        language.set_attn_implementation(before)


def _token_grid(model: VisionLanguageModel, batch: Any, count: int) -> list[int] | None:
    """Rows and columns of the image tokens; None where they lie on no single grid."""
    outputs = model.encode(batch["pixel_values"], batch.get("image_sizes"))
    if len(outputs) != 1 or len(outputs[0][0]) != 1:
        return None
    grid = model.projector.out_grid(outputs[0][1])
    return list(grid) if grid is not None and grid[0] * grid[1] == count else None


def _url(model: VisionLanguageModel, image: Image.Image) -> str:
    """What the first tower sees, where the layout shows it one canvas; else the original."""
    if type(model.layout) is not Whole:
        return image_url(thumbnail(image), exact=False)
    shown = ShownEncoder("", model.encoder)
    return image_url(drawn(shown.pixels(image)[1][0][0].cpu(), shown.towers[0].preprocess), exact=True)
