"""Learning to act: however a batch is cut, stopped and not, and what is saved acts as what was learned."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support.two_processes import launch

from recipes import vla
from vlm_vision.data.lerobot import read_dataset, write_dataset
from vlm_vision.robot.episode import Episode
from vlm_vision.train.command import run_cli
from vlm_vision.train.loop.step import Step
from vlm_vision.vla import load_policy

TINY = """
encoder:
  new: {image_size: 16, patch_size: 8, embed_dim: 16, depth: 1, num_heads: 2, mlp_dim: 32, class_token: false, pool: none}
language:
  new: {model_type: llama, hidden_size: 32, intermediate_size: 48, num_hidden_layers: 2, num_attention_heads: 4,
        num_key_value_heads: 2, tie_word_embeddings: true}
head_options: {hidden_dim: 24}
chunk: 3
area: 0.81
train_language: full
lr_vision: 2.0e-3
lr_projector: 2.0e-3
lr_language: 2.0e-3
lr_action: 2.0e-3
steps: 8
batch_size: 8
micro_batch_size: 8
warmup_steps: 2
tracker: none
"""
WAYS = {"left": -1.0, "right": 1.0}


def episode(number: int) -> Episode:
    """A bright square on one side of the image: the hand goes there, as fast as the words say."""
    rng = np.random.default_rng(number)
    side, fast = list(WAYS)[rng.integers(2)], bool(rng.integers(2))
    length = 5 + number % 3
    images = rng.integers(0, 40, (length, 16, 16, 3), dtype=np.uint8)
    images[:, 4:12, slice(1, 7) if side == "left" else slice(9, 15)] = 230
    states = rng.normal(size=(length, 1)).astype(np.float32)
    actions = np.column_stack([np.full(length, WAYS[side]), rng.uniform(0.5, 1, length) if fast else np.zeros(length)])
    return Episode("go fast" if fast else "go slow", {"top": images}, actions.astype(np.float32), states)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("robot")
    write_dataset(folder / "data", (episode(number) for number in range(24)), fps=10, video=False)
    (folder / "tiny.yaml").write_text(TINY)
    return folder


def arguments(folder: Path, out: Path | str, *changes: str) -> list[str]:
    given = ["--config", f"{folder}/tiny.yaml", "--out", str(folder / out), "--data.test_episodes", "6"]
    return [*given, "--data.train", json.dumps({"mine": str(folder / "data")}), *changes]


def trained(folder: Path, out: Path | str, *changes: str) -> dict:
    return vla.main(vla.parse(arguments(folder, out, *changes)))


HEADS = {
    "parallel": [],
    "tokens": ["--head", "tokens", "--head_options", '{"bins": 8}'],
    "flow": ["--head", "flow", "--head_options", '{"width": 16, "mlp_dim": 32, "steps": 3}'],
}


@pytest.fixture(scope="module")
def alone(folder) -> dict[str, dict]:
    return {head: trained(folder, f"one {head}", *given) for head, given in HEADS.items()}


def action_modules(folder: Path, name: Path | str) -> torch.Tensor:
    """What a saved policy does at three moments."""
    policy, data = load_policy(folder / name / "model"), read_dataset(folder / "data")
    return torch.from_numpy(policy.act([data.frame(i).observation for i in (0, 20, 40)]).values)


SHARED = {
    "parallel": ["--micro_batch_size", "2"],
    "flow": [*HEADS["flow"], "--micro_batch_size", "4", "--sharding", "fsdp2", "--eval_every", "4"],
}
"""What two processes do: copies of one head, parts of the other, whose expert looks into the language model's layers."""


@pytest.fixture(scope="module")
def together(folder) -> dict[str, dict]:
    runs = [{"recipe": "vla", "arguments": arguments(folder, f"two {head}", *given)} for head, given in SHARED.items()]
    done = launch(folder, "two", runs)
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(zip(SHARED, json.loads((folder / "two.out.json").read_text()), strict=True))


@pytest.mark.parametrize("head", SHARED)
def test_two_processes_equal_one(folder, together, alone, head):
    found = together[head]
    assert found["processes"] == 2
    assert found["losses"] == pytest.approx(alone[head]["losses"], rel=1e-4)
    kept = json.loads((folder / f"two {head}/metrics.json").read_text())
    for name in ("right", "shuffled", "blank"):
        assert kept[f"action_error/{name}"] == pytest.approx(alone[head][f"action_error/{name}"], rel=1e-3)
    torch.testing.assert_close(
        action_modules(folder, f"two {head}"), action_modules(folder, f"one {head}"), rtol=1e-2, atol=5e-3
    )


@pytest.mark.parametrize("head", HEADS)
def test_micro_batches_of_any_size_give_the_same(folder, alone, head):
    found = trained(folder, f"cut {head}", "--micro_batch_size", "2", *HEADS[head])
    assert found["losses"] == pytest.approx(alone[head]["losses"], rel=1e-4)


@pytest.mark.parametrize("how", ["full", "lora"])
def test_a_run_that_was_stopped_goes_on_as_if_it_was_not(folder, tmp_path, monkeypatch, how):
    changes = ["--checkpoint_every", "3", "--train_language", how, "--lora_rank", "2", "--train_vision", how]
    whole = trained(folder, tmp_path / "whole", *changes)
    taken = Step.__call__

    def stopped(self, index, micro_batches):
        if index == 5:
            raise KeyboardInterrupt
        return taken(self, index, micro_batches)

    monkeypatch.setattr(Step, "__call__", stopped)
    with pytest.raises(KeyboardInterrupt):
        trained(folder, tmp_path / "part", *changes)
    monkeypatch.undo()
    rest = trained(folder, tmp_path / "part", *changes)
    assert rest["first_step"] == 3 and rest["losses"] == whole["losses"][3:]
    assert torch.equal(action_modules(folder, tmp_path / "part"), action_modules(folder, tmp_path / "whole"))


def test_what_was_shown_is_learned_and_images_and_words_are_used(folder, tmp_path):
    metrics = trained(
        folder,
        tmp_path / "run",
        "--data.read_state",
        "false",
        "--steps",
        "150",
        "--warmup_steps",
        "10",
        "--batch_size",
        "16",
        "--micro_batch_size",
        "16",
    )
    assert metrics["action_error/right"] < 0.7 * metrics["action_error/shuffled"]
    assert metrics["action_error/right"] < 0.7 * metrics["action_error/blank"]
    policy, data = load_policy(tmp_path / "run/model", statistics="mine"), read_dataset(folder / "data")
    seen = data.frame(0).observation
    assert policy.spec.fps == 10 and policy.spec.state_dim == 0 and policy.model.crop_config.area == 0.81
    side = np.sign(data.column("action")[0, 0])
    fast, slow = (policy.act([replace(seen, instruction=words)]).values[0, 0] for words in ("go fast", "go slow"))
    assert fast[0] * side > 0.5 and slow[0] * side > 0.5 and fast[1] > 0.4 and slow[1] < 0.2


def test_settings_that_cannot_be_are_said_in_one_sentence(folder, tmp_path, capsys):
    cases = {
        "leave some to learn from": ["--data.test_episodes", "24"],
        "has no camera 'wrist': it has 'top'": ["--data.cameras", '{"wrist": "wrist"}'],
        "raw_actions names [7]": ["--data.raw_actions", "[7]"],
        "choose train_vision lora": ["--film", "true", "--train_vision", "frozen"],
        "action head 'parallel' has no 'colour'": ["--head_options", '{"colour": 1}'],
        "there is no folder nowhere": ["--data.train", '{"mine": "nowhere"}'],
        "data.train names no data": ["--data.train", "{}"],
        "memory is -1": ["--data.memory", "-1"],
        "leave encoder.mean and encoder.std out": ["--encoder.source", "mini", "--encoder.std", "[0.1, 0.1, 0.1]"],
    }
    for sentence, changes in cases.items():
        with pytest.raises(SystemExit) as stopped:
            run_cli("recipes.vla", lambda changes=changes: trained(folder, tmp_path / "wrong", *changes))
        told = capsys.readouterr().err
        assert stopped.value.code == 2 and sentence in told, (sentence, told)
        assert told.count("\n") == 1


def test_adapters_beside_film_are_merged(folder, tmp_path):
    changes = ["--film", "true", "--train_vision", "lora", "--train_language", "lora", "--lora_rank", "2"]
    losses = trained(folder, tmp_path / "film", *changes, "--steps", "2")["losses"]
    assert np.isfinite(losses).all() and action_modules(folder, tmp_path / "film").isfinite().all()
    seeing = load_policy(tmp_path / "film/model").model.plain_vlm.encoder
    films = {name: part for name, part in seeing.named_parameters() if ".film." in name}
    assert len(films) == 4 and all(part.abs().max() > 0 for part in films.values())  # biases too: in full


BEGUN = ["--encoder.new", "{}", "--language.new", "{}", "--start"]


@pytest.mark.parametrize("head", HEADS)
def test_a_policy_goes_on_from_what_it_learned(folder, tmp_path, alone, head):
    still = [word for part in ("vision", "projector", "language", "action") for word in (f"--lr_{part}", "0")]
    changes = [*HEADS[head], *BEGUN, str(folder / f"one {head}/model"), "--steps", "1"]
    trained(folder, tmp_path / "on", *changes, *still)
    assert torch.equal(action_modules(folder, tmp_path / "on"), action_modules(folder, f"one {head}"))
    trained(folder, tmp_path / "new", *changes, *still, "--new_head", "true")
    if head != "tokens":  # which is its words, but for the state's token
        assert not torch.allclose(
            action_modules(folder, tmp_path / "new"), action_modules(folder, f"one {head}"), atol=1e-3
        )


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (["--chunk", "4"], "chunk 3 there, 4 here"),
        (["--data.read_state", "false"], "state_dim 1 there, 0 here"),
        (
            ["--head_options", '{"hidden_dim": 8}'],
            "head {'name': 'parallel', 'hidden_dim': 24, .* there, .*'hidden_dim': 8",
        ),
        (HEADS["tokens"], "head {'name': 'parallel', .* there, {'name': 'tokens'"),
    ],
)
def test_a_policy_with_other_hands_is_not_gone_on_from_in_silence(folder, tmp_path, alone, changes, says):
    given = [*BEGUN, str(folder / "one parallel/model"), "--steps", "1", *changes]
    with pytest.raises(
        ValueError, match=f"head and state of .* are others .{says}.*ask for the same, or begin with new"
    ):
        trained(folder, tmp_path / "on", *given)
    trained(folder, tmp_path / "new", *given, "--new_head", "true")
    assert action_modules(folder, tmp_path / "new").isfinite().all()


def test_an_expert_cannot_look_into_layers_that_are_computed_again(folder, tmp_path):
    with pytest.raises(ValueError, match="switch gradient checkpointing off"):
        trained(folder, tmp_path / "again", *HEADS["flow"], "--gradient_checkpointing", "true", "--steps", "1")


def test_numbers_that_are_not_normalized_pass(folder, tmp_path):
    trained(folder, tmp_path / "raw", "--data.raw_actions", "[1]", "--data.read_state", "false", "--steps", "2")
    policy = load_policy(tmp_path / "raw/model")
    assert policy.spec.state_dim == 0
    values = torch.tensor([[0.3, 0.7]])
    assert policy.action(values)[0, 1] == values[0, 1]
