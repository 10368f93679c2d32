"""Every projector learns to tell what is in an image and where."""

import pytest
import torch
from support.models import tiny_tokenizer
from torch import Tensor

import projectors
import vlm_vision as vv
from vlm_vision.train.loss import answer_loss, num_answer_tokens

GRID, WIDTH = (4, 4), 32
SMALL = {
    "perceiver": dict(num_latents=8, depth=1, num_heads=4, num_kv_heads=2, head_dim=12, hidden_dim=48),
    "qformer": dict(num_queries=8, width=32, depth=2, num_heads=4),
    "c_abstractor": dict(num_queries=4, hidden_dim=32, depth=1, positions=4),
    "latent_attention": dict(num_latents=8, num_heads=4),
    "conv_neck": dict(width=48, down=(), linear=0),
}
QUESTIONS, COLORS, QUARTERS = (3, 4), (5, 6, 7, 8), (9, 10, 11, 12)


def llama():
    """A language model of two blocks that knows nothing."""
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = dict(hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, vocab_size=40)
    return LlamaForCausalLM(LlamaConfig(**shape, eos_token_id=1, bos_token_id=2, pad_token_id=None))


def scenes(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """One colored square in each image, as the tokens of a tower that sees colors and knows places.

    Returns:
        Patch tokens (count, 16, WIDTH); the question of each, its color or its quarter of the image; the answer.
    """
    code = torch.Generator().manual_seed(1)
    paint, place = torch.randn(4, WIDTH, generator=code), torch.randn(16, WIDTH, generator=code)
    color, patch, asks = (torch.randint(high, (count,), generator=generator) for high in (4, 16, 2))
    tokens = place + 0.1 * torch.randn(count, 16, WIDTH, generator=generator)
    tokens[torch.arange(count), patch] += 2 * paint[color]
    quarter = patch // 8 * 2 + patch % 4 // 2
    answers = torch.where(asks == 0, torch.tensor(COLORS)[color], torch.tensor(QUARTERS)[quarter])
    return tokens, torch.tensor(QUESTIONS)[asks], answers


def batch_of(vlm: vv.VisionLanguageModel, tokens: Tensor, questions: Tensor, answers: Tensor) -> dict:
    """Image, question, answer; the loss on the answer."""
    image = torch.full((len(tokens), vlm.projector.num_tokens(GRID)), vlm.config.image_token_id)
    input_ids = torch.cat([image, questions[:, None], answers[:, None]], dim=1)
    labels = torch.full_like(input_ids, -100)
    labels[:, -1] = answers
    return {"input_ids": input_ids, "patch_tokens": tokens, "grid": GRID, "labels": labels}


@torch.no_grad()
def accuracy(vlm: vv.VisionLanguageModel, tokens: Tensor, questions: Tensor, answers: Tensor) -> float:
    batch = batch_of(vlm, tokens, questions, answers)
    del batch["labels"]
    return (vlm(**batch).logits[:, -2].argmax(-1) == answers).float().mean().item()


def train(vlm: vv.VisionLanguageModel, generator: torch.Generator, *, most_steps: int = 800) -> None:
    """Train all but the encoder until the loss is low."""
    weights = [weight for weight in vlm.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=2e-3, weight_decay=0.0, betas=(0.9, 0.95))
    warmup = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.05, total_iters=20)
    smooth, step = 2.0, 0
    while smooth > 0.12 and step < most_steps:
        batch = batch_of(vlm, *scenes(64, generator))
        loss = answer_loss(vlm, batch) / num_answer_tokens(batch)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        warmup.step()
        smooth, step = 0.9 * smooth + 0.1 * loss.item(), step + 1


@pytest.mark.parametrize("name", projectors.PROJECTORS)
def test_a_model_learns_through_the_projector_to_use_the_image(name, encoder):
    projector = projectors.build(name, in_dim=WIDTH, out_dim=48, **SMALL.get(name, {}))
    encoder.requires_grad_(False)
    vlm = vv.VisionLanguageModel.attach(encoder, llama(), projector, tokenizer=tiny_tokenizer())
    generator = torch.Generator().manual_seed(0)
    train(vlm.train(), generator)
    tokens, questions, answers = scenes(512, generator)
    vlm.eval()
    assert accuracy(vlm, tokens, questions, answers) >= 0.9
    assert accuracy(vlm, tokens.roll(1, dims=0), questions, answers) < 0.4  # another image: one in four
