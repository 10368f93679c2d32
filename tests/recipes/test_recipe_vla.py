"""Learning to act: images, instruction and state are used, and a saved policy acts and goes on as it learned."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support.recipe_records.vla import HEADS, RECIPE, actions

from vlm_vision.data.lerobot import read_dataset
from vlm_vision.vla import load_policy

train = RECIPE.train


@pytest.fixture(scope="module")
def folder(bench) -> Path:
    return bench("vla").folder


@pytest.fixture(scope="module")
def alone(bench) -> dict[str, Path]:
    """Folders of a run with each head."""
    return {head: bench("vla").alone(*changes)[1] for head, changes in HEADS.items()}


def test_what_was_shown_is_learned_and_images_and_words_are_used(folder, tmp_path):
    metrics = train(
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


def test_adapters_beside_film_are_merged(folder, tmp_path):
    changes = ["--film", "true", "--train_vision", "lora", "--train_language", "lora", "--lora_rank", "2"]
    losses = train(folder, tmp_path / "film", *changes, "--steps", "2")["losses"]
    assert np.isfinite(losses).all() and actions(tmp_path / "film", folder).isfinite().all()
    seeing = load_policy(tmp_path / "film/model").model.plain_vlm.encoder
    films = {name: part for name, part in seeing.named_parameters() if ".film." in name}
    assert len(films) == 4 and all(part.abs().max() > 0 for part in films.values())  # biases too: in full


BEGUN = ["--encoder.new", "{}", "--language.new", "{}", "--start"]


@pytest.mark.parametrize("head", HEADS)
def test_a_policy_goes_on_from_what_it_learned(folder, tmp_path, alone, head):
    still = [word for part in ("vision", "projector", "language", "action") for word in (f"--lr_{part}", "0")]
    changes = [*HEADS[head], *BEGUN, str(alone[head] / "model"), "--steps", "1"]
    train(folder, tmp_path / "on", *changes, *still)
    assert torch.equal(actions(tmp_path / "on", folder), actions(alone[head]))
    train(folder, tmp_path / "new", *changes, *still, "--new_head", "true")
    if head != "tokens":  # which is its words, but for the state's token
        assert not torch.allclose(actions(tmp_path / "new", folder), actions(alone[head]), atol=1e-3)


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
    given = [*BEGUN, str(alone["parallel"] / "model"), "--steps", "1", *changes]
    with pytest.raises(ValueError, match=f"head and state of .* differ .{says}.*choose the same, or start with new"):
        train(folder, tmp_path / "on", *given)
    train(folder, tmp_path / "new", *given, "--new_head", "true")
    assert actions(tmp_path / "new", folder).isfinite().all()


def test_numbers_that_are_not_normalized_pass(folder, tmp_path):
    train(folder, tmp_path / "raw", "--data.raw_actions", "[1]", "--data.read_state", "false", "--steps", "2")
    policy = load_policy(tmp_path / "raw/model")
    assert policy.spec.state_dim == 0
    values = torch.tensor([[0.3, 0.7]])
    assert policy.action(values)[0, 1] == values[0, 1]
