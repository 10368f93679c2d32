"""Fixtures shared by the tests: models small enough to make in milliseconds."""

import pytest
import torch
from support.models import tiny_llm, tiny_tokenizer

import vlm_vision as vv
from vlm_vision.new_models import new_encoder


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def encoder() -> vv.Encoder:
    """A 3-block tower that sees 32 px pictures as a grid of 4x4."""
    fields = dict(image_size=32, patch_size=8, embed_dim=32, depth=3, num_heads=4, mlp_dim=64, position_prefix=1)
    return new_encoder(fields).eval()


@pytest.fixture
def vlm(encoder: vv.Encoder) -> vv.VisionLanguageModel:
    """The tiny tower joined to a tiny Llama."""
    return vv.VisionLanguageModel.attach(encoder, tiny_llm("llama"), tokenizer=tiny_tokenizer())
