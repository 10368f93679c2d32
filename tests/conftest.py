"""Fixtures shared by the tests: golden files, and models small enough to make in milliseconds."""

import os
from pathlib import Path

import pytest
import torch
from support.models import tiny_llm, tiny_tokenizer
from support.package import prepare

import vlm_vision as vv
from vlm_vision.new_models import new_encoder

prepare()


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder with golden cases and real weights; VLM_VISION_SHARED names another than ../shared."""
    folder = Path(os.environ.get("VLM_VISION_SHARED", Path(__file__).resolve().parents[2] / "shared"))
    if not (folder / "golden").is_dir():
        pytest.skip(f"no golden cases: {folder} has no folder golden; set VLM_VISION_SHARED to the one that has")
    return folder


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def encoder() -> vv.Encoder:
    """A 3-block tower that sees 32 px images as a grid of 4x4."""
    fields = dict(image_size=32, patch_size=8, embed_dim=32, depth=3, num_heads=4, mlp_dim=64, position_prefix=1)
    return new_encoder(fields).eval()


@pytest.fixture
def vlm(encoder: vv.Encoder) -> vv.VisionLanguageModel:
    """The tiny tower joined to a tiny Llama."""
    return vv.VisionLanguageModel.attach(encoder, tiny_llm("llama"), tokenizer=tiny_tokenizer())
