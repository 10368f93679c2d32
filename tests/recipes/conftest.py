"""The data and the runs of a recipe, shared by all of its tests."""

from collections.abc import Callable
from functools import cache

import pytest
from support.recipe_records.bench import RECIPES, Bench


@pytest.fixture(scope="session")
def bench(tmp_path_factory) -> Callable[[str], Bench]:
    """Name of a recipe -> its data, and its runs, each done once."""
    return cache(lambda name: Bench(RECIPES[name], tmp_path_factory.mktemp(name)))
