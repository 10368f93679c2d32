"""A training step and generation of LLaVA, against transformers' own LlavaForConditionalGeneration on the same weights.

    python -m benchmarks.llava_step
    python -m benchmarks.llava_step --device cuda --dtype bfloat16 --batch 16

A CLIP ViT tower, frozen; an MLP projector; a Llama of the size of SmolLM2-135M. Both train what the row says with AdamW
on the same batch: images, a question, an answer of some words. Ours computes logits where there is an answer, and
knows what is frozen; "cached" reads the tower's tokens instead of running it, "packed" puts the rows one after another.
"""

import argparse
import tempfile
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

import vlm_vision as vv
from benchmarks.timing import interleaved, machine
from vlm_vision.train.loss import answer_loss, num_answer_tokens

IMAGE = 49151


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.llava_step", description=__doc__)
    parser.add_argument("--batch", type=int, default=4, help="conversations of one image")
    parser.add_argument("--side", type=int, default=224, help="pixels")
    parser.add_argument("--words", type=int, default=48, help="tokens of the longest text")
    parser.add_argument("--answer", type=int, default=8, help="tokens of an answer")
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    options = parser.parse_args()
    dtype = getattr(torch, options.dtype)
    theirs, ours = models(options.side)
    theirs.to(options.device, dtype)
    ours.to(options.device, dtype)
    batch = {name: value.to(options.device) for name, value in inputs(ours, options).items()}
    batch["pixel_values"] = batch["pixel_values"].to(dtype)
    with torch.no_grad():
        wanted, got = theirs(**batch).loss, ours(**batch).loss
        tokens, _ = ours.encode(batch["pixel_values"])[0]
    print(f"{machine(options.device)}; batch {options.batch}, {options.side} px, {options.dtype}; {vars(options)}\n")
    print(
        f"loss {wanted:.6f} and {got:.6f}\n\n| what | ours ms | transformers ms | transformers / ours |\n|---|---|---|---|"
    )
    cached = {name: value for name, value in batch.items() if name != "pixel_values"} | {"patch_tokens": tokens}
    for what, trains in {
        "projector": ("projector",),
        "projector and language model": ("projector", "language"),
    }.items():
        contestants: dict[str, Callable[[], object]] = {
            "transformers": step(theirs, theirs_trains(theirs, trains), lambda: theirs(**batch, use_cache=False).loss),
            "ours": step(ours, ours_trains(ours, trains), lambda: loss_of(ours, batch)),
            "ours, tower cached": step(ours, ours_trains(ours, trains), lambda: loss_of(ours, cached)),
            "ours, tower cached, packed": step(ours, ours_trains(ours, trains), lambda: loss_of(ours, packed(cached))),
        }
        took = interleaved(contestants, rounds=options.rounds, device=options.device)
        rows(f"training step, {what}", took)
    theirs.eval()
    ours.eval()
    generate: Any = theirs.generate  # pyright: ignore[reportAttributeAccessIssue]
    length = int(batch["attention_mask"].sum(dim=1).min())  # no row is padded
    prompt = {name: batch[name][:, :length] for name in ("input_ids", "attention_mask")}
    prompt["pixel_values"] = batch["pixel_values"]
    for rows_ in (1, options.batch):
        given = {name: value[:rows_] for name, value in prompt.items()}
        how: dict[str, Any] = dict(
            max_new_tokens=options.new_tokens, do_sample=False, eos_token_id=None, pad_token_id=0
        )
        contestants = {
            "transformers": partial(generate, **given, **how),
            "ours": partial(ours.generate, **given, **how),
        }
        assert torch.equal(contestants["transformers"](), contestants["ours"]())  # type: ignore[arg-type]
        took = interleaved(contestants, rounds=options.rounds, device=options.device)
        rows(f"generation, {options.new_tokens} tokens, batch {rows_}", took)


def models(side: int) -> tuple[LlavaForConditionalGeneration, vv.VisionLanguageModel]:
    """transformers' model with random weights, and ours read from its folder."""
    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        image_size=side,
        patch_size=16,
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
    )
    text = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
    )
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE, vision_feature_layer=-2)
    theirs = LlavaForConditionalGeneration(config).eval()
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        return theirs, vv.VisionLanguageModel.from_pretrained(folder)


def inputs(model: vv.VisionLanguageModel, options: argparse.Namespace) -> dict[str, Tensor]:
    """Rows of image tokens, text of unequal length, and an answer at its end; padded on the right."""
    draw = torch.Generator().manual_seed(0)
    images = model.num_image_tokens(options.side, options.side)
    lengths = torch.randint(options.answer + 2, options.words + 1, (options.batch,), generator=draw).tolist()
    width = images + max(lengths)
    ids = torch.zeros(options.batch, width, dtype=torch.long)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for row, length in enumerate(lengths):
        end = images + length
        ids[row, 0] = 1
        ids[row, 1 : 1 + images] = IMAGE
        ids[row, 1 + images : end] = torch.randint(5, 40000, (length - 1,), generator=draw)
        mask[row, :end] = 1
        labels[row, end - options.answer : end] = ids[row, end - options.answer : end]
    pixels = torch.randn(options.batch, 3, options.side, options.side, generator=draw)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels, "pixel_values": pixels}


def packed(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same rows one after another in one."""
    kept = batch["attention_mask"].bool()
    positions = (batch["attention_mask"].cumsum(-1) - 1)[kept][None]
    rest = {name: value for name, value in batch.items() if name not in ("input_ids", "labels", "attention_mask")}
    rows_ = {name: batch[name][kept][None] for name in ("input_ids", "labels")}
    return rows_ | {"position_ids": positions} | rest


def loss_of(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return answer_loss(model, batch) / num_answer_tokens(batch)


def theirs_trains(model: LlavaForConditionalGeneration, trains: tuple[str, ...]) -> list[nn.Module]:
    language = [model.model.language_model, model.lm_head] if "language" in trains else []
    return [model.model.multi_modal_projector, *language]


def ours_trains(model: vv.VisionLanguageModel, trains: tuple[str, ...]) -> list[nn.Module]:
    return [model.projector, *([model.language_model] if "language" in trains else [])]


def step(model: nn.Module, parts: list[nn.Module], loss: Callable[[], Tensor]) -> Callable[[], None]:
    """One optimizer step that trains `parts` alone. The learning rate is zero, so that every run sees the same weights."""
    weights = list({id(weight): weight for part in parts for weight in part.parameters()}.values())

    def run() -> None:
        model.train()
        model.requires_grad_(False)
        for weight in weights:
            weight.requires_grad_(True)
        loss().backward()
        optimizer.step()
        optimizer.zero_grad()

    optimizer = torch.optim.AdamW(weights, lr=0.0)
    return run


def rows(what: str, took: dict[str, float]) -> None:
    theirs = took.pop("transformers")
    for name, seconds in took.items():
        print(f"| {what}; {name} | {seconds * 1e3:.0f} | {theirs * 1e3:.0f} | {theirs / seconds:.2f} |", flush=True)


if __name__ == "__main__":
    main()
