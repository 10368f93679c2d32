"""Fixtures shared by the tests."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder with golden cases and real weights; VLM_VISION_SHARED names another than ../shared."""
    folder = Path(os.environ.get("VLM_VISION_SHARED", Path(__file__).parents[2] / "shared"))
    if not folder.is_dir():
        pytest.skip(f"no golden cases: {folder} does not exist; set VLM_VISION_SHARED to the folder that holds golden/")
    return folder
