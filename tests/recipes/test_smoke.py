"""The smoke configs, nearly as README's commands run them: a run of each recipe learns what its config says."""

from importlib import import_module
from pathlib import Path

import pytest

CONFIGS = Path(__file__).parents[2] / "recipes" / "configs"
FALLS = {"contrastive": 0.6, "distill": 0.35, "mae": 0.1, "self_distill": 0.88, "supervised": 0.75}
"""Least part of the first loss that may be left in the last tenth of the steps."""
FEW = ["--eval_limit", "50", "--eval_neighbors", "50"]
QUICKER = {
    "contrastive": ["--test_limit", "50"],
    "distill": FEW,
    "mae": FEW,
    "self_distill": FEW[2:],
}
"""Fewer images to measure on, which changes no loss."""


@pytest.fixture(autouse=True)
def no_look(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.mark.parametrize("name", FALLS)
def test_the_loss_falls_as_the_config_says(name, tmp_path):
    recipe = import_module(f"recipes.{name}")
    config = CONFIGS / f"{name}_smoke.yaml"
    losses = recipe.main(recipe.parse(["--config", str(config), "--out", str(tmp_path), *QUICKER.get(name, [])]))[
        "losses"
    ]
    first, last = sum(losses[:3]) / 3, losses[-len(losses) // 10 :]
    assert sum(last) / len(last) < FALLS[name] * first


def test_the_probes_tell_the_encoder_of_the_package_from_random_weights(tmp_path):
    recipe = import_module("recipes.probe")
    config = recipe.parse(["--config", str(CONFIGS / "probe_smoke.yaml"), "--out", str(tmp_path)])
    found = recipe.main(config)["found"]
    assert found["encoder"]["knn"] > found["random weights"]["knn"] + 0.2
    assert found["encoder"]["logistic"] > found["pixels"]["logistic"] + 0.2
