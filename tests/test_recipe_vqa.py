"""The recipe end to end on a handful of pictures: files, resume, adapters, cached features, bad settings."""

import json
import os
import subprocess
import sys

import pytest
import torch
from conftest import picture
from PIL import Image

import vlm_vision as vv
from recipes import vqa

TINY = """
out: {out}
data: {{name: llava, train_json: {folder}/train.json, test_json: {folder}/test.json, image_folder: {folder}, turns: 2}}
encoder:
  new: {{image_size: 16, patch_size: 8, embed_dim: 16, depth: 2, num_heads: 2, mlp_dim: 32, class_token: false, pool: none}}
language:
  new: {{model_type: llama, hidden_size: 16, intermediate_size: 32, num_hidden_layers: 1, num_attention_heads: 2,
        num_key_value_heads: 2, tie_word_embeddings: true}}
train_vision: full
train_language: full
steps: 8
batch_size: 4
micro_batch_size: 2
warmup_steps: 2
checkpoint_every: 3
max_new_tokens: 2
"""


@pytest.fixture
def settings(tmp_path):
    """Writes pictures, LLaVA files and a YAML; returns the arguments of the recipe."""
    records = []
    for i in range(12):
        picture(i, 16, 16).save(tmp_path / f"{i}.png")
        for question, answer in (("what colour ?", ["red", "blue"][i % 2]), ("is it red ?", ["yes", "no"][i % 2])):
            turns = [{"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": answer}]
            records.append({"image": f"{i}.png", "type": question.split()[0], "conversations": turns})
    (tmp_path / "train.json").write_text(json.dumps(records))
    (tmp_path / "test.json").write_text(json.dumps(records[:6]))
    (tmp_path / "tiny.yaml").write_text(TINY.format(out=tmp_path / "run", folder=tmp_path))

    def arguments(*changes: str) -> list[str]:
        return ["--config", str(tmp_path / "tiny.yaml"), *changes]

    return arguments


def run(arguments: list[str]) -> dict:
    return vqa.main(vqa.parse(arguments))


def test_a_run_writes_a_model_that_answers_and_figures_with_controls(settings, tmp_path):
    metrics = run(settings())
    out = tmp_path / "run"
    kept = json.loads((out / "metrics.json").read_text())
    assert kept["by_type"].keys() == {"what", "is"} and kept["counts"] == {"is": 3, "what": 3}
    for name in ("accuracy", "blind", "shuffled"):
        assert 0 <= kept[name] == metrics[name] <= 1
    assert kept["seconds"] > 0 and kept["blind_by_type"].keys() == kept["shuffled_by_type"].keys()
    with Image.open(out / "contact_sheet.png") as sheet:
        assert sheet.width > 500
    assert len(metrics["losses"]) == 8 and metrics["losses"][-1] < metrics["losses"][0]
    model = vv.VisionLanguageModel.from_pretrained(out / "model")
    assert isinstance(model.answer(picture(0, 16, 16), "what colour ?", max_new_tokens=2), str)
    assert vqa.parse(["--config", str(out / "config.yaml")]) == vqa.parse(settings())


def test_a_killed_run_goes_on_as_if_it_had_not_been(settings, tmp_path, monkeypatch):
    random = ["--train_language", "lora", "--lora_dropout", "0.5"]  # so that the random state matters
    whole = run(settings("--out", str(tmp_path / "whole"), *random))["losses"]
    real, calls = vqa.answer_loss, []

    def dies(*arguments):
        calls.append(1)
        if len(calls) > 2 * 5:  # in the sixth step of two micro-batches
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(vqa, "answer_loss", dies)
    with pytest.raises(KeyboardInterrupt):
        run(settings("--out", str(tmp_path / "killed"), *random))
    monkeypatch.setattr(vqa, "answer_loss", real)
    assert [p.name for p in (tmp_path / "killed" / "checkpoints").iterdir()] == ["step-00000003"]
    rest = run(settings("--out", str(tmp_path / "killed"), *random))
    assert rest["first_step"] == 3 and rest["losses"] == whole[3:]
    first, second = (vv.VisionLanguageModel.from_pretrained(tmp_path / name / "model") for name in ("whole", "killed"))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_going_on_with_other_settings_is_refused(settings):
    run(settings())
    with pytest.raises(ValueError, match="belongs to another run: seed was 0 and is 1"):
        run(settings("--seed", "1"))


def test_a_step_is_the_same_in_micro_batches_of_any_size(settings, tmp_path):
    runs = [
        run(settings("--out", str(tmp_path / str(size)), "--micro_batch_size", str(size)))["losses"] for size in (1, 4)
    ]
    torch.testing.assert_close(torch.tensor(runs[0]), torch.tensor(runs[1]), rtol=1e-4, atol=1e-5)


def test_a_frozen_tower_is_run_once_and_adapters_are_merged_into_the_saved_model(settings, tmp_path, monkeypatch):
    arguments = settings(
        "--train_vision", "frozen", "--train_language", "lora", "--lora_rank", "2", "--feature_dtype", "float32"
    )
    cached = run(arguments)
    assert len(list((tmp_path / "run" / "features").iterdir())) == 1
    names = dict(vv.VisionLanguageModel.from_pretrained(tmp_path / "run" / "model").named_parameters())
    assert not any("lora" in name for name in names)
    monkeypatch.setattr(vv.Encoder, "forward", lambda *a, **k: pytest.fail("the tower ran again"))
    again = run([*arguments, "--out", str(tmp_path / "again"), "--feature_folder", str(tmp_path / "run" / "features")])
    assert again["losses"] == cached["losses"]


def test_the_encoder_can_train_by_adapters_alone(settings):
    metrics = run(settings("--train_vision", "lora", "--train_language", "frozen", "--lr_vision", "0.01"))
    assert metrics["losses"][-1] != metrics["losses"][0]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (["--projector", "mpl"], "did you mean 'mlp'"),
        (["--steps", "0"], "steps is 0"),
        (["--batch_size", "64"], "batch_size 64 is larger than the data set"),
        (["--data.train_json", "none.json"], "there is no file none.json"),
        (["--encoder.source", "nowhere/at/all"], "there is no folder nowhere/at/all"),
        (["--stepz", "3"], "stepz"),
        (["--language.source", "nowhere/at/all"], "nowhere/at/all"),
        (["--data.image_folder", "nowhere", "--train_vision", "frozen"], "there is no picture nowhere/0.png"),
        (["--train_vision", "thawed"], "thawed"),
    ],
)
def test_wrong_settings_are_one_sentence_and_exit_code_2(settings, change, says):
    command = [sys.executable, "-m", "recipes.vqa", *settings(*change)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and says in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "change",
    [
        [],
        ["--encoder.tap_layer", "0", "--encoder.tap_norm", "false"],  # parts of the encoder that nothing reaches
        ["--train_vision", "frozen", "--train_language", "lora", "--micro_batch_size", "1"],  # batches without pictures
    ],
    ids=["full", "tapped", "text only"],
)
def test_two_processes_equal_one(settings, tmp_path, change):
    records = json.loads((tmp_path / "train.json").read_text())
    for i in range(0, len(records), 3):
        question = {"from": "human", "value": "what ?"}
        records[i] = {"conversations": [question, {"from": "gpt", "value": "blue"}]}
    (tmp_path / "train.json").write_text(json.dumps(records))
    change = [*change, "--data.turns", "1", "--feature_dtype", "float32"]
    one = run(settings(*change))["losses"]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += ["-m", "recipes.vqa", *settings("--out", str(tmp_path / "two"), *change)]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    two = json.loads((tmp_path / "two" / "metrics.json").read_text())
    assert two["processes"] == 2 and two["final_loss"] == pytest.approx(one[-1], rel=1e-4)
