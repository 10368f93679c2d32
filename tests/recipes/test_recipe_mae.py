"""Masked-autoencoder pretraining: however a batch is cut, stopped and not, what it learns, and saved for transformers."""

import csv
import json
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from support.two_processes import launch
from transformers import AutoModelForPreTraining

import vlm_vision as vv
from recipes import mae
from vlm_vision.data.images.batches import ImageDataset, collate
from vlm_vision.data.images.samples import read_samples
from vlm_vision.data.images.views import Plain
from vlm_vision.mae import load_mae
from vlm_vision.objectives.mae import mae_loss
from vlm_vision.train.command import run_cli
from vlm_vision.train.loop.step import Step
from vlm_vision.train.tasks.mae import noise_of, tensors

COLORS = {"red": (220, 30, 30), "green": (20, 180, 40), "blue": (30, 40, 230), "yellow": (240, 220, 20)}
ENCODER = dict(image_size=16, patch_size=4, embed_dim=32, depth=2, num_heads=2, mlp_dim=64)
TINY = f"""
model:
  encoder: {json.dumps(ENCODER)}
  decoder: {{embed_dim: 16, depth: 1, num_heads: 2, mlp_dim: 32}}
  mean: [0.5, 0.4, 0.6]
  std: [0.2, 0.3, 0.25]
steps: 8
batch_size: 8
micro_batch_size: 8
blr: 0.1
warmup_steps: 2
tracker: none
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Sixteen images of two colors, side by side, labeled by the left one."""
    folder = tmp_path_factory.mktemp("pictures")
    rows = []
    for left, value in COLORS.items():
        for right, other in COLORS.items():
            image = Image.new("RGB", (20, 16), value)
            image.paste(other, (10, 0, 20, 16))
            image.save(folder / f"{left}-{right}.png")
            rows.append({"picture": f"{left}-{right}.png", "label": left})
    with (folder / "train.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["picture", "label"])
        writer.writeheader()
        writer.writerows(rows)
    (folder / "test.csv").write_text("picture\n" + "".join(f"{row['picture']}\n" for row in rows[1::3]))
    (folder / "tiny.yaml").write_text(TINY)
    return folder


def arguments(folder: Path, out: Path | str, *changes: str) -> list[str]:
    given = ["--config", f"{folder}/tiny.yaml", "--data.train", f"{folder}/train.csv", "--out", str(folder / out)]
    return [*given, "--data.test", f"{folder}/test.csv", *changes]


def trained(folder: Path, out: Path | str, *changes: str) -> dict:
    return mae.main(mae.parse(arguments(folder, out, *changes)))


@pytest.fixture(scope="module")
def alone(folder) -> dict:
    """What one process finds, a batch at a time."""
    return trained(folder, "one")


def check_same(folder: Path, found: dict, name: str, wanted: dict) -> None:
    """Losses, what is held out and what is saved are those of the run `one`."""
    assert len(found["losses"]) == 8
    for key in ("losses", "eval_loss_at_start", "eval_loss"):
        assert found[key] == pytest.approx(wanted[key], rel=1e-4), key
    ours, theirs = (load_mae(folder / run_ / "model").state_dict() for run_ in (name, "one"))
    for key, value in theirs.items():
        torch.testing.assert_close(ours[key], value, rtol=1e-2, atol=2e-3, msg=lambda text, key=key: f"{key}: {text}")


PARTS = ["--micro_batch_size", "4", "--sharding", "fsdp2"]
SHARED = {
    "copies": ["--micro_batch_size", "2"],
    "parts": [*PARTS, "--gradient_checkpointing", "true", "--eval_every", "3", "--checkpoint_every", "3"],
    "half parts": [*PARTS, "--mixed_precision", "bf16"],
}
"""What two processes do."""


@pytest.fixture(scope="module")
def together(folder) -> dict[str, dict]:
    names = [*SHARED, "parts"]  # whose second run goes on from the last checkpoint of the first
    runs = [{"recipe": "mae", "arguments": arguments(folder, name, *SHARED[name])} for name in names]
    done = launch(folder, "two", runs)
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(zip([*SHARED, "parts, again"], json.loads((folder / "two.out.json").read_text()), strict=True))


@pytest.mark.parametrize("name", ["copies", "parts"])
def test_two_processes_equal_one(folder, together, alone, name):
    assert together[name]["processes"] == 2 and alone["processes"] == 1
    check_same(folder, together[name], name, alone)


def test_a_run_in_parts_goes_on_from_its_checkpoint(together):
    whole, rest = together["parts"], together["parts, again"]
    assert rest["first_step"] == 6 and rest["losses"] == whole["losses"][6:]
    assert all(rest[key] == whole[key] for key in ("eval_loss_at_start", "eval_loss"))


def test_half_precision_follows_the_same_curve(together, alone):
    half = together["half parts"]
    assert half["losses"] != alone["losses"]
    assert [*half["losses"], half["eval_loss"]] == pytest.approx([*alone["losses"], alone["eval_loss"]], rel=0.03)


@pytest.mark.parametrize("size", ["1", "4"])
def test_micro_batches_of_any_size_give_the_same(folder, alone, size):
    found = trained(folder, f"by {size}", "--micro_batch_size", size)
    check_same(folder, found, f"by {size}", alone)


def test_the_noise_of_an_image_is_its_own():
    together = noise_of([5, 2**63 - 1, 7], 9)
    assert torch.equal(together[1:2], noise_of([2**63 - 1], 9)) and not torch.equal(together[0], together[2])


def test_a_run_that_was_stopped_goes_on_as_if_it_was_not(folder, tmp_path, monkeypatch):
    changes = ["--checkpoint_every", "3", "--micro_batch_size", "4"]
    whole = trained(folder, tmp_path / "whole", *changes)
    taken = Step.__call__

    def stopped(self, index, micro_batches):
        if index == 5:
            raise KeyboardInterrupt
        return taken(self, index, micro_batches)

    monkeypatch.setattr(Step, "__call__", stopped)
    with pytest.raises(KeyboardInterrupt):
        trained(folder, tmp_path / "stopped", *changes)
    monkeypatch.undo()
    rest = trained(folder, tmp_path / "stopped", *changes, "--eval_every", "2")
    assert rest["first_step"] == 3 and rest["losses"] == whole["losses"][3:]
    assert all(rest[key] == whole[key] for key in ("eval_loss_at_start", "eval_loss"))


def test_the_loss_falls_and_metrics_tell_it(folder, tmp_path):
    labeled = ["--data.test", f"{folder}/train.csv", "--eval_neighbors", "12"]
    found = trained(folder, tmp_path, *labeled, "--steps", "150", "--batch_size", "16", "--norm_pix_loss", "false")
    assert found["losses"][-1] < 0.3 * found["losses"][0]
    assert found["eval_loss"] < 0.5 * found["eval_loss_at_start"]
    told = json.loads((tmp_path / "metrics.json").read_text())
    assert told == {name: value for name, value in found.items() if name != "losses"}
    assert set(told["neighbors"]) == {"encoder", "random weights", "pixels", "most frequent class"}


@torch.no_grad()
def test_transformers_loads_the_result_with_the_loss_that_was_measured(folder, alone):
    theirs, info = AutoModelForPreTraining.from_pretrained(folder / "one" / "model", output_loading_info=True)
    assert type(theirs).__name__ == "ViTMAEForPreTraining"
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    ours = load_mae(folder / "one" / "model")
    assert (ours.config.mask_ratio, ours.config.normalize) == (0.75, True)
    assert ours.encoder.preprocess.mean == (0.5, 0.4, 0.6) and ours.encoder.preprocess.std == (0.2, 0.3, 0.25)
    samples = read_samples(f"{folder}/test.csv")
    images = ImageDataset(samples, [Plain(ours.encoder.preprocess)])
    batch = tensors(collate([images[row] for row in range(len(samples))]), ours)
    predicted, mask = ours(batch["pixels"], batch["noise"])
    loss = mae_loss(predicted, batch["pixels"], mask, patch_size=4)
    assert loss.item() == pytest.approx(alone["eval_loss"], rel=1e-5)
    assert theirs.eval()(batch["pixels"], noise=batch["noise"]).loss.item() == pytest.approx(loss.item(), rel=1e-5)
    tower = vv.load(folder / "one" / "model").state_dict()
    assert all(torch.equal(tower[name], value) for name, value in ours.encoder.state_dict().items())


def test_a_run_starts_from_a_saved_folder(folder, alone, tmp_path):
    start = ["--start", f"{folder}/one/model", "--model.encoder", "{}"]
    found = trained(folder, tmp_path / "on", *start, "--steps", "1")
    assert found["eval_loss_at_start"] == pytest.approx(alone["eval_loss"], rel=1e-5)
    other = trained(
        folder, tmp_path / "other", *start, "--steps", "1", "--mask_ratio", "0.5", "--norm_pix_loss", "false"
    )
    saved = load_mae(tmp_path / "other" / "model")
    assert (saved.config.mask_ratio, saved.config.normalize) == (0.5, False)
    assert other["eval_loss_at_start"] != found["eval_loss_at_start"]


def test_bad_images_are_counted_and_the_run_goes_on(folder, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no image")
    for name in ("train", "test"):
        (tmp_path / f"{name}.csv").write_text((folder / "train.csv").read_text() + f"{tmp_path}/bad.png,red\n")
    data = [f"--data.{name}={tmp_path}/{name}.csv" for name in ("train", "test")]
    found = trained(folder, tmp_path / "run", *data, "--data.images", str(folder), "--eval_limit", "9")
    assert found["skipped"] > 0 and len(found["losses"]) == 8 and found["neighbors"]


def changed(**fields) -> list[str]:
    return ["--model.encoder", json.dumps(ENCODER | fields)]


WRONG = [
    (changed(image_size=18), "crops of 18 pixels are no whole number of patches of 4: choose image_size 16 or 20"),
    (changed(pre_norm=True), "this layout cannot express the architecture"),
    (changed(width=3), "width, which is no field of model.encoder"),
    (["--mask_ratio", "1.5"], "mask_ratio is 1.5: expected a share above 0 and below 1"),
    (["--model.encoder", "{}"], "there is nothing to train: give start, or model.encoder"),
    (["--model.decoder.num_heads", "3"], "num_heads 3 does not divide embed_dim 16"),
    (["--crop_scale", "[0.5, 1.5]"], "scale of Crop is"),
    (["--batch_size", "40"], "batch_size 40 is larger than the data set of 16 records"),
    (["--micro_batch_size", "3"], "batch_size 8 is no multiple of micro_batch_size 3"),
]


@pytest.mark.parametrize(("change", "says"), WRONG)
def test_wrong_settings_are_one_sentence(folder, tmp_path, capsys, change, says):
    with pytest.raises(SystemExit, match="2"):
        run_cli("recipes.mae", lambda: trained(folder, tmp_path / "run", *change))
    told = capsys.readouterr().err.strip()
    assert says in told and "\n" not in told
    assert not (tmp_path / "run" / "model").exists()


def test_a_batch_smaller_than_the_processes_is_one_sentence(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(Accelerator, "num_processes", 2)
    with pytest.raises(ValueError, match="batch_size 1 is no multiple of micro_batch_size 1 x 2 processes: change one"):
        trained(folder, tmp_path, "--batch_size", "1", "--micro_batch_size", "1")
