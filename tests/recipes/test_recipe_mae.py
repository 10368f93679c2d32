"""Masked-autoencoder pretraining: what it learns, where it starts, and what it saves for transformers."""

import json
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from support.recipe_records.mae import RECIPE
from transformers import AutoModelForPreTraining

import vlm_vision as vv
from vlm_vision.data.images.batches import ImageDataset, collate
from vlm_vision.data.images.samples import read_samples
from vlm_vision.data.images.views import Plain
from vlm_vision.mae import load_mae
from vlm_vision.objectives.mae import mae_loss
from vlm_vision.train.tasks.mae import seeded_noise, tensors

train = RECIPE.train


@pytest.fixture(scope="module")
def folder(bench) -> Path:
    return bench("mae").folder


@pytest.fixture(scope="module")
def alone(bench) -> tuple[dict, Path]:
    """Metrics and folder of a run."""
    return bench("mae").alone()


def test_the_noise_of_an_image_is_its_own():
    together = seeded_noise([5, 2**63 - 1, 7], 9)
    assert torch.equal(together[1:2], seeded_noise([2**63 - 1], 9)) and not torch.equal(together[0], together[2])


def test_the_loss_falls_and_metrics_tell_it(folder, tmp_path):
    labeled = ["--data.test", f"{folder}/train.csv", "--eval_neighbors", "12"]
    found = train(folder, tmp_path, *labeled, "--steps", "150", "--batch_size", "16", "--norm_pix_loss", "false")
    assert found["losses"][-1] < 0.3 * found["losses"][0]
    assert found["eval_loss"] < 0.5 * found["eval_loss_at_start"]
    told = json.loads((tmp_path / "metrics.json").read_text())
    assert told == {name: value for name, value in found.items() if name != "losses"}
    assert set(told["neighbors"]) == {"encoder", "random weights", "pixels", "most frequent class"}


@torch.no_grad()
def test_transformers_loads_the_result_with_the_loss_that_was_measured(folder, alone):
    metrics, out = alone
    theirs, info = AutoModelForPreTraining.from_pretrained(out / "model", output_loading_info=True)
    assert type(theirs).__name__ == "ViTMAEForPreTraining"
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    ours = load_mae(out / "model")
    assert (ours.config.mask_ratio, ours.config.normalize) == (0.75, True)
    assert ours.encoder.preprocess.mean == (0.5, 0.4, 0.6) and ours.encoder.preprocess.std == (0.2, 0.3, 0.25)
    samples = read_samples(f"{folder}/test.csv")
    images = ImageDataset(samples, [Plain(ours.encoder.preprocess)])
    batch = tensors(collate([images[row] for row in range(len(samples))]), ours)
    predicted, mask = ours(batch["pixels"], batch["noise"])
    loss = mae_loss(predicted, batch["pixels"], mask, patch_size=4)
    assert loss.item() == pytest.approx(metrics["eval_loss"], rel=1e-5)
    assert theirs.eval()(batch["pixels"], noise=batch["noise"]).loss.item() == pytest.approx(loss.item(), rel=1e-5)
    tower = vv.load(out / "model").state_dict()
    assert all(torch.equal(tower[name], value) for name, value in ours.encoder.state_dict().items())


def test_a_run_starts_from_a_saved_folder(folder, alone, tmp_path):
    metrics, out = alone
    start = ["--start", f"{out}/model", "--model.encoder", "{}"]
    found = train(folder, tmp_path / "on", *start, "--steps", "1")
    assert found["eval_loss_at_start"] == pytest.approx(metrics["eval_loss"], rel=1e-5)
    other = train(folder, tmp_path / "other", *start, "--steps", "1", "--mask_ratio", "0.5", "--norm_pix_loss", "false")
    saved = load_mae(tmp_path / "other" / "model")
    assert (saved.config.mask_ratio, saved.config.normalize) == (0.5, False)
    assert other["eval_loss_at_start"] != found["eval_loss_at_start"]


def test_a_batch_smaller_than_the_processes_is_one_sentence(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(Accelerator, "num_processes", 2)
    with pytest.raises(ValueError, match="batch_size 1 is no multiple of micro_batch_size 1 x 2 processes: change one"):
        train(folder, tmp_path, "--batch_size", "1", "--micro_batch_size", "1")
