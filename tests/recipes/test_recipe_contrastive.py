"""Contrastive training: pairs from nothing, one process and several, stopped and not, saved for transformers."""

import csv
import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from support.two_processes import launch
from transformers import AutoModel, AutoTokenizer

import vlm_vision as vv
from recipes import contrastive
from vlm_vision.new_models import learn_tokenizer, new_pair
from vlm_vision.train.command import run_cli
from vlm_vision.train.loop.step import Step

COLORS = {"red": (220, 30, 30), "green": (20, 180, 40), "blue": (30, 40, 230), "yellow": (240, 220, 20)}
IMAGE = dict(image_size=16, patch_size=8, embed_dim=32, depth=2, num_heads=2, mlp_dim=64)
TEXT = dict(embed_dim=32, depth=1, num_heads=2, mlp_dim=64, context_length=12)
TINY = f"""
towers: {{image: {json.dumps(IMAGE)}, text: {json.dumps(TEXT)}, vocab_size: 300, logit_bias: batch}}
steps: 12
batch_size: 8
micro_batch_size: 8
lr: 0.003
warmup_steps: 2
tracker: none
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Sixteen images of two colors, side by side, and what they show."""
    folder = tmp_path_factory.mktemp("pairs")
    rows = []
    for left, value in COLORS.items():
        for right, other in COLORS.items():
            image = Image.new("RGB", (20, 16), value)
            image.paste(other, (10, 0, 20, 16))
            image.save(folder / f"{left}-{right}.png")
            rows.append({"picture": f"{left}-{right}.png", "caption": f"{left} left, {right} right"})
    with (folder / "pairs.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["picture", "caption"])
        writer.writeheader()
        writer.writerows(rows)
    (folder / "tiny.yaml").write_text(TINY)
    return folder


def arguments(folder: Path, out: Path | str, *changes: str) -> list[str]:
    given = ["--config", f"{folder}/tiny.yaml", "--data.train", f"{folder}/pairs.csv", "--out", str(folder / out)]
    return [*given, *changes]


def trained(folder: Path, out: Path | str, *changes: str) -> dict:
    return contrastive.main(contrastive.parse(arguments(folder, out, *changes)))


CLIP = ["--towers.kind", "clip", "--contrast.loss", "clip"]
SHARED = {
    "siglip": ["--contrast.chunk_size", "3"],
    "siglip, gathered": ["--contrast.exchange", "gather"],
    "clip": CLIP,
    "siglip in parts": ["--sharding", "fsdp2", "--gradient_checkpointing", "true"],
    "clip in parts": [*CLIP, "--sharding", "fsdp2", "--eval_every", "6"],
}
"""What two processes do, each with half of every batch."""


@pytest.fixture(scope="module")
def together(folder) -> dict[str, dict]:
    half = ["--micro_batch_size", "4", "--data.test", str(folder / "pairs.csv")]
    runs = {
        name: {"recipe": "contrastive", "arguments": arguments(folder, f"two {name}", *half, *changes)}
        for name, changes in SHARED.items()
    }
    done = launch(folder, "two", list(runs.values()))
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(zip(runs, json.loads((folder / "two.out.json").read_text()), strict=True))


@pytest.mark.parametrize("name", SHARED)
def test_two_processes_equal_one(folder, together, name, monkeypatch):
    alone = [
        option for option in SHARED[name] if option not in ("--sharding", "fsdp2", "--gradient_checkpointing", "true")
    ]
    one = trained(folder, f"one {name}", *alone)
    assert together[name]["processes"] == 2 and one["processes"] == 1
    torch.testing.assert_close(together[name]["losses"], one["losses"], rtol=1e-4, atol=1e-5)
    ours, theirs = (vv.load_pair(folder / f"{kind} {name}" / "model").state_dict() for kind in ("two", "one"))
    for key, value in theirs.items():
        torch.testing.assert_close(ours[key], value, rtol=1e-2, atol=2e-3, msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.parametrize("kind", [[], CLIP])
def test_images_and_captions_find_each_other(folder, tmp_path, kind):
    test = [
        "--data.test",
        str(folder / "pairs.csv"),
        "--steps",
        "200",
        "--batch_size",
        "16",
        "--micro_batch_size",
        "16",
    ]
    found = trained(folder, tmp_path / "run", *test, "--crop_scale", "[1.0, 1.0]", *kind)
    assert found["losses"][-1] < 0.3 * found["losses"][0]
    assert found["test"]["image_to_text"]["recall"][1] >= 0.75
    assert found["test"]["image_to_text"]["chance"][1] == pytest.approx(1 / 16)


def test_a_run_that_was_stopped_goes_on_as_if_it_was_not(folder, tmp_path, monkeypatch):
    changes = ["--checkpoint_every", "4", "--flip", "0.5"]
    whole = trained(folder, tmp_path / "whole", *changes)
    taken = Step.__call__

    def stopped(self, index, micro_batches):
        if index == 6:
            raise KeyboardInterrupt
        return taken(self, index, micro_batches)

    monkeypatch.setattr(Step, "__call__", stopped)
    with pytest.raises(KeyboardInterrupt):
        trained(folder, tmp_path / "stopped", *changes)
    monkeypatch.undo()
    rest = trained(folder, tmp_path / "stopped", *changes)
    assert rest["first_step"] == 4 and rest["losses"] == whole["losses"][4:]


def test_a_locked_image_tower_stays_as_it_is(folder, tmp_path):
    trained(folder, tmp_path / "first", "--steps", "2")
    before = vv.load(tmp_path / "first" / "model").state_dict()
    trained(folder, tmp_path / "second", "--start", str(tmp_path / "first/model"), "--lock_image", "true")
    locked = ["--lock_image", "true", "--towers.image_source", str(tmp_path / "first/model")]
    trained(folder, tmp_path / "third", *locked)
    for run_ in ("second", "third"):
        after = vv.load(tmp_path / run_ / "model").state_dict()
        assert all(torch.equal(after[name], value) for name, value in before.items())


@pytest.mark.parametrize("kind", ["siglip", "clip"])
@torch.no_grad()
def test_transformers_reads_a_new_pair(tmp_path, kind):
    learn_tokenizer(["a red cat", "two green dogs"] * 3, tmp_path / "words", kind=kind, vocab_size=280)
    pair = new_pair(kind, image=IMAGE, text=TEXT, tokenizer=tmp_path / "words").eval()
    pair.save_pretrained(tmp_path / "saved")
    theirs, info = AutoModel.from_pretrained(tmp_path / "saved", output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    texts, pixels = ["a red cat", "Two dogs."], torch.randn(3, 3, 16, 16)
    ids = pair.text.tokenizer(texts)
    torch.testing.assert_close(theirs(ids, pixels).logits_per_image, pair(pixels, ids).logits_per_image)
    again = vv.load_pair(tmp_path / "saved")
    assert torch.equal(again.text.tokenizer(texts), ids)
    words = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert words.decode(ids[0], skip_special_tokens=True).strip() == "a red cat"


def test_bad_samples_are_counted_and_the_run_goes_on(folder, tmp_path):
    rows = (folder / "pairs.csv").read_text()
    (tmp_path / "bad.png").write_bytes(b"no image")
    (tmp_path / "pairs.csv").write_text(rows + "red-red.png,\n" + f"{tmp_path}/bad.png,an image\n")
    changes = ["--data.train", str(tmp_path / "pairs.csv"), "--data.images", str(folder), "--batch_size", "9"]
    found = trained(folder, tmp_path / "run", *changes, "--micro_batch_size", "9")
    assert found["skipped"] > 0 and len(found["losses"]) == 12


WRONG = [
    (["--micro_batch_size", "4"], "batch_size 8 is cut into pieces of 4, which would not be compared"),
    (["--towers.kind", "clip"], "the siglip loss needs a pair with a logit_bias"),
    (["--towers.text", "{}"], "there is no text tower: give start, or towers.text"),
    (["--lock_image", "true"], "lock_image keeps an image tower as it is: give start or towers.image_source"),
    (["--crop_scale", "[0.5, 1.5]"], "scale of Crop is"),
    (["--towers.text", '{"width": 3}'], "--towers.text.width, which is no field of towers.text"),
    (["--batch_size", "40", "--micro_batch_size", "40"], "batch_size 40 is larger than the data set of 16 records"),
]


@pytest.mark.parametrize(("change", "says"), WRONG)
def test_wrong_settings_are_one_sentence(folder, tmp_path, capsys, change, says):
    with pytest.raises(SystemExit, match="2"):
        run_cli("recipes.contrastive", lambda: trained(folder, tmp_path / "run", *change))
    told = capsys.readouterr().err.strip()
    assert says in told and "\n" not in told
    assert not (tmp_path / "run" / "model").exists()
