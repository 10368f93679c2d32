"""The recipe end to end on a handful of images: files, kills, adapters, cached features, trackers, bad settings."""

import json
import logging
import math
import os
import runpy
import shutil
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from itertools import count
from pathlib import Path

import pytest
import torch
from PIL import Image
from support.models import make_image
from support.processes import start

import vlm_vision as vv
from recipes import vqa
from vlm_vision.data.conversations.read import read_conversations
from vlm_vision.train import start as training
from vlm_vision.train.adapters import load_adapter
from vlm_vision.train.command import run_cli
from vlm_vision.train.conversations import build_model
from vlm_vision.train.loop import resume

TINY = """
data: {{train: {folder}/train.json, test: {folder}/test.json, turns: 2}}
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
log_every: 1
max_new_tokens: 2
"""
FROZEN = ["--train_vision", "frozen", "--train_language", "lora", "--lora_rank", "2"]
QUIET = ["--tracker", "none", "--data.test", ""]
DROPOUT = ["--train_language", "lora", "--lora_dropout", "0.5"]  # so that the random state matters


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Images, LLaVA files and a YAML."""
    tmp_path = tmp_path_factory.mktemp("vqa")
    records = []
    for i in range(12):
        make_image(i, 16, 16).save(tmp_path / f"{i}.png")
        for question, answer in (("what color ?", ["red", "blue"][i % 2]), ("is it red ?", ["yes", "no"][i % 2])):
            turns = [{"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": answer}]
            records.append({"image": f"{i}.png", "type": question.split()[0], "conversations": turns})
    (tmp_path / "train.json").write_text(json.dumps(records))
    (tmp_path / "test.json").write_text(json.dumps(records[:6]))
    (tmp_path / "tiny.yaml").write_text(TINY.format(folder=tmp_path))
    return tmp_path


@pytest.fixture
def settings(folder, tmp_path) -> Callable[..., list[str]]:
    """Arguments of a run that writes to `run` in the test's own folder, with changes."""
    return lambda *changes: ["--config", str(folder / "tiny.yaml"), "--out", str(tmp_path / "run"), *changes]


@pytest.fixture(scope="module")
def finished(folder) -> tuple[dict, Path, str]:
    """Metrics, folder and printed text of a run."""
    with redirect_stdout(StringIO()) as printed:
        metrics = run(["--config", str(folder / "tiny.yaml"), "--out", str(folder / "run")])
    return metrics, folder / "run", printed.getvalue()


@pytest.fixture(scope="module")
def losses(folder) -> list[float]:
    """Losses of a run that measures and logs nothing."""
    return run(["--config", str(folder / "tiny.yaml"), "--out", str(folder / "plain"), *QUIET])["losses"]


def run(arguments: list[str]) -> dict:
    return vqa.main(vqa.parse(arguments))


def parameters(folder) -> list[torch.Tensor]:
    return list(vv.VisionLanguageModel.from_pretrained(folder).parameters())


def test_a_run_writes_a_model_that_answers_and_figures_with_controls(folder, finished):
    metrics, out, printed = finished
    kept = json.loads((out / "metrics.json").read_text())
    assert kept["by_type"].keys() == {"what", "is"} and kept["counts"] == {"is": 3, "what": 3}
    for name in ("accuracy", "blind", "shuffled"):
        assert 0 <= kept[name] == metrics[name] <= 1
    assert kept["seconds"] > 0 and kept["blind_by_type"].keys() == kept["shuffled_by_type"].keys()
    assert kept["image_use"]["right"]["answers"] == 6 and kept["image_use"]["gradients"]["projector"] > 0
    assert "projector  full" in printed and "gradient norm:" in printed and (kept["warning"] or "uses its") in printed
    with Image.open(out / "contact_sheet.png") as sheet:
        assert sheet.width > 500
    assert len(metrics["losses"]) == 8 and metrics["losses"][-1] < metrics["losses"][0]
    model = vv.VisionLanguageModel.from_pretrained(out / "model")
    assert isinstance(model.answer(make_image(0, 16, 16), "what color ?", max_new_tokens=2), str)
    assert vqa.parse(["--config", str(out / "config.yaml")]) == vqa.parse(
        ["--config", str(folder / "tiny.yaml"), "--out", str(out)]
    )
    assert not list(out.glob(".*"))


KILLS = {
    "first step": ("vlm_vision.train.tasks.vqa", "answer_loss", 1),
    "before a checkpoint": ("vlm_vision.train.loop.resume", "_random_state", 1),
    "fifth step": ("vlm_vision.train.tasks.vqa", "answer_loss", 9),
    "while a checkpoint is written": ("vlm_vision.train.loop.resume", "_random_state", 2),
    "before it is in its place": ("os", "replace", 2),
    "before the one before it is gone": ("shutil", "rmtree", 3),
    "last step": ("vlm_vision.train.tasks.vqa", "answer_loss", 16),
    "while the model is written": ("vlm_vision.vlm.model", "VisionLanguageModel.save_pretrained", 1),
}
"""When -> which function of which module is killed at which of its calls."""


def killed(arguments: list[str], module: str, name: str, at: int) -> None:
    """The recipe in a process that ends itself at a call."""
    owner = __import__(module, fromlist=["*"])
    *path, last = name.split(".")
    for part in path:
        owner = getattr(owner, part)
    real, calls = getattr(owner, last), []

    def dies(*given, **options):
        calls.append(1)
        if len(calls) == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*given, **options)

    setattr(owner, last, dies)
    run(arguments)


def test_a_run_killed_anywhere_goes_on_as_if_it_had_not_been(settings, tmp_path):
    """With SIGKILL, in processes of their own; losses, weights and the tracker's figures are the same to the bit."""
    unasked = [*DROPOUT, "--data.test", ""]
    whole = run(settings("--out", str(tmp_path / "whole"), *unasked))["losses"]
    goes_on = {"fifth step": 3, "while a checkpoint is written": 3, "before it is in its place": 3}
    goes_on |= {"before the one before it is gone": 6, "last step": 6, "while the model is written": 6}
    for when, kill in KILLS.items():
        arguments = settings("--out", str(tmp_path / when), *unasked)
        child = start(killed, arguments, *kill, output=tmp_path / "child.txt")
        child.join(60)
        assert child.exitcode == -signal.SIGKILL, when
    for when in KILLS:
        rest = run(settings("--out", str(tmp_path / when), *unasked))
        assert rest["first_step"] == goes_on.get(when, 0), when
        assert rest["losses"] == whole[rest["first_step"] :], when
        for one, other in zip(parameters(tmp_path / "whole/model"), parameters(tmp_path / when / "model"), strict=True):
            assert torch.equal(one, other), when
        assert not (tmp_path / when / "checkpoints/writing").exists()
        logged = tracked(tmp_path / when, "loss")
        assert [step for step, _ in logged] == list(range(1, 9)) and logged == tracked(tmp_path / "whole", "loss"), when


def tracked(out, name: str) -> list[tuple[int, float]]:
    """(step, figure) as TensorBoard shows them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(out / "logs" / "vqa"))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


def test_figures_are_logged_by_step(settings, tmp_path):
    losses = run(settings("--eval_every", "4"))["losses"]
    out = tmp_path / "run"
    assert tracked(out, "loss") == [(i + 1, pytest.approx(loss)) for i, loss in enumerate(losses)]
    for group in ("vision", "projector", "language"):
        assert all(norm > 0 for _, norm in tracked(out, f"gradient_norm/{group}"))
    assert [rate for _, rate in tracked(out, "learning_rate/vision")][-1] == pytest.approx(0)
    assert [rate for _, rate in tracked(out, "learning_rate/projector")][0] == pytest.approx(1e-3)
    assert all(rate > 0 for _, rate in tracked(out, "answer_tokens_per_second"))
    for shown in ("right", "shuffled", "blank"):
        assert [step for step, _ in tracked(out, f"eval_loss/{shown}")] == [4, 8]
        assert [step for step, _ in tracked(out, f"eval_accuracy/{shown}")] == [4, 8]
    found = json.loads((out / "metrics.json").read_text())["image_use"]
    last = tracked(out, "eval_loss/right")[-1][1]
    assert last == pytest.approx(
        found["right"]["loss"] / found["right"]["tokens"], rel=1e-4
    )  # the model that was saved


def test_looking_and_logging_change_nothing_that_is_learned(settings, tmp_path):
    plain = run(settings("--out", str(tmp_path / "plain"), "--tracker", "none", *DROPOUT))["losses"]
    assert run(settings("--eval_every", "1", *DROPOUT))["losses"] == plain
    assert not (tmp_path / "plain" / "logs").exists()


def test_going_on_with_other_settings_is_refused(settings, finished, tmp_path):
    shutil.copytree(finished[1], tmp_path / "run")
    with pytest.raises(ValueError, match="belongs to another run: seed was 0 and is 1"):
        run(settings("--seed", "1"))
    assert run(settings("--eval_every", "2", "--tracker", "none"))["first_step"] == 6  # these change nothing


@pytest.mark.parametrize(
    "change", [["--gradient_checkpointing", "true"], ["--pack_length", "60"]], ids=lambda change: " ".join(change)
)
def test_a_step_is_the_same_however_it_is_computed(settings, losses, change):
    other = run(settings(*QUIET, *change))["losses"]
    torch.testing.assert_close(torch.tensor(other), torch.tensor(losses), rtol=1e-4, atol=1e-5)


def test_images_may_be_read_by_other_processes(settings, losses):
    assert run(settings(*QUIET, "--workers", "1"))["losses"] == losses


def test_a_frozen_tower_is_run_once_and_adapters_are_saved_and_merged(settings, tmp_path, monkeypatch):
    arguments = settings(*FROZEN, "--lr_language", "0.01", "--feature_dtype", "float32")
    cached = run(arguments)
    out = tmp_path / "run"
    assert len(list((out / "features").iterdir())) == 1
    merged = vv.VisionLanguageModel.from_pretrained(out / "model")
    assert not any("lora" in name for name, _ in merged.named_parameters())
    config = vqa.parse(arguments)
    training.set_seed(config.seed)
    base = build_model(config, read_conversations(config.data.train))
    batch = base.processor(text=["<image> is it red ?"], images=[make_image(0)], return_tensors="pt")
    with torch.no_grad():
        before = base(**batch).logits
        adapted = load_adapter(base, out / "adapter")(**batch).logits
        torch.testing.assert_close(merged(**batch).logits, adapted, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(before, adapted, atol=1e-3)
    without = run([*arguments, "--out", str(tmp_path / "without"), "--cache_features", "false"])
    torch.testing.assert_close(torch.tensor(without["losses"]), torch.tensor(cached["losses"]), rtol=1e-4, atol=1e-5)
    monkeypatch.setattr(vv.Encoder, "forward", lambda *a, **k: pytest.fail("the tower ran again"))
    shared = ["--feature_folder", str(out / "features"), "--data.test", ""]  # gray images are encoded to be compared
    again = run([*arguments, "--out", str(tmp_path / "again"), *shared, "--data.test", ""])
    assert again["losses"] == cached["losses"] and "accuracy" not in again


def test_a_merge_that_fails_writes_adapters_and_no_model(settings, tmp_path, monkeypatch):
    monkeypatch.setattr("vlm_vision.train.adapters.LARGEST_ERROR", -1.0)
    with pytest.raises(ValueError, match="these adapters cannot be merged"):
        run(settings(*FROZEN))
    assert (tmp_path / "run" / "adapter").is_dir() and not (tmp_path / "run" / "model").exists()


def test_the_encoder_can_train_by_adapters_alone(settings):
    metrics = run(settings("--train_vision", "lora", "--train_language", "frozen", "--lr_vision", "0.01"))
    assert metrics["losses"][-1] != metrics["losses"][0]


def test_a_run_begins_from_a_saved_model_with_its_own_layout_and_projector(folder, settings, tmp_path):
    layout = ["--layout", '{"name": "native", "max_patches": 16, "multiple": 2}']
    options = ["--projector", "pixel_shuffle", "--projector_options", '{"scale": 2}']
    run(settings(*layout, *options, *FROZEN, "--cache_features", "true"))
    saved = vv.VisionLanguageModel.from_pretrained(tmp_path / "run/model")
    assert saved.layout.to_dict() == {"name": "native", "max_patches": 16, "multiple": 2}
    assert saved.projector.options["scale"] == 2 and not (tmp_path / "run/features").exists()
    lines = (folder / "tiny.yaml").read_text().splitlines()
    kept = [line for line in lines if not line.startswith(("encoder:", "language:", "  "))]
    (tmp_path / "tiny.yaml").write_text("\n".join(kept))
    second = ["--config", str(tmp_path / "tiny.yaml"), "--out", str(tmp_path / "second")]
    second += ["--start", str(tmp_path / "run/model"), "--steps", "1"]
    config = vqa.parse(second)
    begun = build_model(config, [])
    assert all(torch.equal(a, b) for a, b in zip(begun.parameters(), saved.parameters(), strict=True))
    assert begun.language_model.dtype == torch.float32
    assert len(run(second)["losses"]) == 1
    with pytest.raises(ValueError, match="own encoder, language model, projector and layout: remove encoder"):
        vqa.parse([*second, "--encoder.source", "somewhere"])


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_learns_the_same_curve_and_goes_on(settings, losses, tmp_path, monkeypatch, precision):
    class Scaling(training.Accelerator):
        """accelerate has fp16 for GPUs alone; this one has it here."""

        def __init__(self, **options):
            super().__init__(**options)
            self.native_amp, self.scaler = True, torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=4)

    if precision == "fp16":
        monkeypatch.setattr(training, "Accelerator", Scaling)
    arguments = settings("--tracker", "none", "--out", str(tmp_path / "half"), "--mixed_precision", precision)
    half = run(arguments)["losses"]
    assert half != losses
    torch.testing.assert_close(torch.tensor(half), torch.tensor(losses), rtol=0.02, atol=0.02)
    if precision == "fp16":
        rest = torch.load(tmp_path / "half/checkpoints/step-00000006/rest.pt")
        assert rest["scaler"]["scale"] == 2048 and rest["scaler"]["_growth_tracker"] == 2
    assert run(arguments)["losses"] == half[6:]


@pytest.mark.parametrize("what", ["loss", "gradient norm"])
def test_a_step_that_is_no_number_stops_the_run_before_the_weights_change(settings, tmp_path, monkeypatch, what):
    from vlm_vision.train.tasks import vqa as answers

    real, models = answers.answer_loss, []

    def spoiled(model, batch):
        models.append((model, [weight.detach().clone() for weight in model.parameters()]))
        loss = real(model, batch)
        if what == "loss":
            return loss * float("nan")
        loss.register_hook(lambda gradient: gradient * float("inf"))
        return loss

    monkeypatch.setattr(answers, "answer_loss", spoiled)
    with pytest.raises(FloatingPointError, match=f"the {what} is (nan|inf) at step 0, first in") as caught:
        run(settings())
    assert ("the loss itself" if what == "loss" else ".weight:") in str(caught.value)
    assert resume._checkpoints(tmp_path / "run" / "failed") == [tmp_path / "run" / "failed" / "step-00000000"]
    assert all(torch.equal(a, b) for model, before in models for a, b in zip(model.parameters(), before, strict=True))
    assert not (tmp_path / "run" / "model").exists() and not resume._checkpoints(tmp_path / "run" / "checkpoints")


def test_an_error_keeps_the_figures_of_the_steps_before_it(settings, tmp_path, monkeypatch):
    from vlm_vision.train.tasks import vqa as answers

    def writers():
        return {thread for thread in threading.enumerate() if "AsyncWriter" in type(thread).__name__}  # TensorBoard's

    real, calls, before = answers.answer_loss, count(), writers()
    monkeypatch.setattr(answers, "answer_loss", lambda *batch: real(*batch) * (1.0 if next(calls) < 2 else math.nan))
    with pytest.raises(FloatingPointError, match="at step 2"):
        run(settings("--log_every", "1", "--micro_batch_size", "4"))
    assert [step for step, _ in tracked(tmp_path / "run", "loss")] == [1, 2]
    assert writers() <= before


WRONG = [
    (["--projector", "mpl"], "did you mean 'mlp'"),
    (["--projector_options", '{"depht": 2}'], "does not take these options"),
    (["--steps", "0"], "steps is 0"),
    (["--log_every", "0"], "log_every is 0"),
    (["--batch_size", "64"], "batch_size 64 is larger than the data set"),
    (["--data.train", "none.json"], "there is no file none.json"),
    (["--data.train", "nothing"], "'nothing' is not a source of conversations"),
    (["--encoder.source", "nowhere/at/all"], "there is no folder nowhere/at/all"),
    (["--stepz", "3"], "stepz"),
    (["--language.source", "nowhere/at/all"], "nowhere/at/all"),
    (["--data.images", "nowhere", "--train_vision", "frozen"], "image nowhere/0.png does not exist"),
    (["--train_vision", "thawed"], "thawed"),
    (["--layout", '{"name": "hole"}'], "the image layout {'name': 'hole'} is not known"),
    (["--tracker", "abacus"], "tracker is 'abacus': expected none or one of"),
    (["--tracker", "wandb"], "tracker wandb is not installed: pip install wandb"),
    (["--mixed_precision", "fp16"], "mixed_precision fp16 does not work on cpu"),
    (["--mixed_precision", "fp16", "--sharding", "fsdp2"], "no gradient scaler for fp16"),
    (["--out", "tests/conftest.py"], "tests/conftest.py"),
]


@pytest.mark.parametrize(("change", "says"), WRONG, ids=[" ".join(change) for change, _ in WRONG])
def test_wrong_settings_are_one_sentence_and_exit_code_2(settings, change, says, capsys, monkeypatch):
    monkeypatch.setattr("vlm_vision.train.start.get_available_trackers", lambda: ["tensorboard"])
    monkeypatch.setattr(logging, "basicConfig", lambda **_: None)
    with pytest.raises(SystemExit) as exit:
        run_cli("recipes.vqa", lambda: vqa.main(vqa.parse(settings(*change))))
    assert exit.value.code == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert says in said[-1] or "stepz" in says


def as_command(*arguments: str) -> None:
    """recipes.vqa as `python -m` runs it."""
    sys.argv = ["recipes.vqa", *arguments]
    runpy.run_module("recipes.vqa", run_name="__main__")


def test_the_command_says_so_too(settings, tmp_path):
    child = start(as_command, *settings("--steps", "0"), output=tmp_path / "child.txt")
    child.join(60)
    printed = (tmp_path / "child.txt").read_text()
    assert child.exitcode == 2 and "steps is 0" in printed and "Traceback" not in printed
