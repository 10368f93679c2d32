"""Fixtures shared by the tests: models small enough to make in milliseconds."""

import gc
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # of torch, here and in what the tests start: models are tiny

import pytest
import torch
from support.models import tiny_llm, tiny_tokenizer
from support.package import prepare

import vlm_vision as vv
from vlm_vision.new_models import new_encoder

prepare()

LONGEST = (
    "tests/recipes/",
    "tests/projectors/test_projectors_learn.py",
    "tests/nn/test_compile.py",
    "tests/sim/test_metaworld.py",
    "tests/train/test_train_sharded.py",
    "tests/vlm/test_hf_training.py",
    "tests/vlm/test_hf_hub.py",
    "tests/vlm/test_join.py::test_the_auto_classes",
    "tests/test_docs.py",
    "tests/test_card.py::test_the_card_of_a_run",
    "tests/test_auto.py",
    "tests/test_migration.py",
    "tests/look/test_page.py::test_eight_images",
    "tests/cli/test_start.py",
    "tests/cli/test_train_command.py",
    "tests/vla/test_vla.py::test_a_small_set_is_learned_by_heart",
    "tests/checkpoints/test_hostile.py::test_an_npz_that_unpacks_to_much_more",
    "tests/checkpoints/test_text.py::test_reading_ids_needs_no_transformers",
    "tests/data/test_lerobot_bad.py::test_a_bit_that_flipped",
)
"""Where the tests are that take longest: they begin first, and `-m quick` leaves them out."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def place(item: pytest.Item) -> int:
        return next((i for i, start in enumerate(LONGEST) if item.nodeid.startswith(start)), len(LONGEST))

    for item in items:
        if place(item) == len(LONGEST) and item.get_closest_marker("slow") is None:
            item.add_marker(pytest.mark.quick)
    items.sort(key=place)


def pytest_collection_finish() -> None:
    gc.collect()
    gc.freeze()  # what the imports brought stays; recipes collect garbage after every run


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
