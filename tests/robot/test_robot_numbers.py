"""Action tokens, statistics and normalization."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support.golden import golden_case

from vlm_vision.robot.action_tokens import ActionTokens
from vlm_vision.robot.normalize import Normalizer
from vlm_vision.robot.statistics import Statistics, choose_statistics, read_statistics


def test_action_tokens_are_openvlas() -> None:
    golden = load_file(golden_case("action_tokenizer") / "golden_float64.safetensors")  # edges among the actions
    tokens = ActionTokens(32000)
    assert torch.equal(tokens.encode(golden["actions"]), golden["token_ids"])
    for ids, decoded in (("token_ids", "decoded"), ("all_token_ids", "all_decoded")):
        torch.testing.assert_close(tokens.decode(golden[ids]), golden[decoded].float(), rtol=0, atol=0)
    assert tokens.encode(torch.tensor([-1.0, 1.0])).tolist() == [31999, 31744]


def test_decoding_what_was_encoded_is_within_half_a_bin() -> None:
    tokens = ActionTokens(1000, bins=64)
    actions = torch.rand(500, 7, generator=torch.Generator().manual_seed(0)) * 2 - 1
    ids = tokens.encode(actions)
    assert ids.min() >= 1000 - 64 and ids.max() < 1000
    assert (tokens.decode(ids) - actions).abs().max() <= 1 / 63 + 1e-6
    assert torch.equal(tokens.encode(tokens.decode(ids)), ids)
    assert torch.equal(tokens.encode(torch.tensor([-5.0, 5.0])), tokens.encode(torch.tensor([-1.0, 1.0])))
    with pytest.raises(ValueError, match="1 numbers of the actions are NaN"):
        tokens.encode(torch.tensor([0.0, torch.nan]))
    with pytest.raises(ValueError, match="more words than bins"):
        ActionTokens(100)


def rows() -> np.ndarray:
    drawn = np.random.default_rng(0).normal([0, 5, -3], [1, 0.1, 20], size=(400, 3))
    return np.column_stack([drawn, np.full(400, 7.0), np.arange(400) % 2])


MASK = np.array([True, True, True, True, False])


@pytest.mark.parametrize("kind", ["quantiles", "mean_std", "min_max"])
def test_inverting_gives_what_was_normalized(kind) -> None:
    statistics = Statistics.of(rows(), MASK)
    normalizer = Normalizer(kind, statistics)
    given = torch.from_numpy(rows())
    if kind == "quantiles":  # inside of what is not clipped
        given = given.clamp(torch.from_numpy(statistics.q01), torch.from_numpy(statistics.q99))
    found = normalizer(given)
    torch.testing.assert_close(normalizer.invert(found).double(), given, rtol=1e-5, atol=1e-5)
    assert (found[:, 3] == 0).all() and torch.equal(found[:, 4].double(), given[:, 4])
    if kind == "mean_std":
        torch.testing.assert_close(found[:, :3].std(0, correction=0), torch.ones(3), rtol=1e-4, atol=0)
    else:
        assert found[:, :3].abs().max() <= 1


def test_numbers_beyond_the_quantiles_are_clipped_and_the_formula_is_openvlas() -> None:
    normalizer = Normalizer("quantiles", Statistics(q01=np.array([0.0, -2.0]), q99=np.array([4.0, 2.0])))
    found = normalizer(torch.tensor([[1.0, 9.0], [-1.0, 0.0]]))
    torch.testing.assert_close(found, torch.tensor([[-0.5, 1.0], [-1.0, 0.0]]))
    torch.testing.assert_close(normalizer.invert(torch.tensor([0.5, -1.0])), torch.tensor([3.0, -2.0]))


@pytest.mark.parametrize("layout", ["openvla", "openvla_config", "openpi", "lerobot"])
def test_statistics_of_others_are_read(tmp_path, layout: str) -> None:
    action = Statistics.of(rows(), MASK)
    told = action.to_dict()
    image = {"mean": [[[0.5]], [[0.5]], [[0.5]]], "count": [10]}
    folder = tmp_path / "mine"
    (folder / "meta").mkdir(parents=True)
    other = replace(action, mask=None).to_dict()
    data = {"bridge": {"action": told, "num_transitions": 400}, "fractal": {"action": other, "proprio": other}}
    path, held = {
        "openvla": ("dataset_statistics.json", data),
        "openvla_config": ("config.json", {"model_type": "openvla", "norm_stats": data}),
        "openpi": ("norm_stats.json", {"norm_stats": {"actions": other, "state": other}}),
        "lerobot": ("meta/stats.json", {"action": other | {"count": [400]}, "observation.images.top": image}),
    }[layout]
    (folder / path).write_text(json.dumps(held))
    named = read_statistics(folder)
    if layout.startswith("openvla"):
        found = choose_statistics(named, "bridge")["action"]
        assert set(named["fractal"]) == {"action", "proprio"}
        np.testing.assert_array_equal(found.mask, MASK)
        with pytest.raises(ValueError, match="'mine' are not known: choose one of 'bridge', 'fractal'"):
            choose_statistics(named, "mine")
        with pytest.raises(ValueError, match="several data sets: choose one of 'bridge', 'fractal'"):
            choose_statistics(named, "")
    else:
        assert set(named) == {"mine"}
        found = choose_statistics(named, "")["actions" if layout == "openpi" else "action"]
        assert set(named["mine"]) == ({"actions", "state"} if layout == "openpi" else {"action"})
    for name in ("mean", "std", "min", "max", "q01", "q99"):
        np.testing.assert_array_equal(getattr(found, name), getattr(action, name))
    assert found.count == 400 and found.dim == 5


def test_what_cannot_be_used_is_said() -> None:
    statistics = Statistics.of(rows())
    normalizer = Normalizer("quantiles", statistics)
    with pytest.raises(ValueError, match=r"shape \(2, 7\) but the statistics have 5 dimensions"):
        normalizer(torch.zeros(2, 7))
    with pytest.raises(ValueError, match="1 of 5 numbers are NaN or Inf"):
        normalizer(torch.tensor([0.0, 0, 0, 0, torch.inf]))
    with pytest.raises(ValueError, match="needs q01 and q99, which the statistics lack"):
        Normalizer("quantiles", Statistics(mean=np.zeros(2), std=np.ones(2)))
    with pytest.raises(ValueError, match="1 of 3 rows hold NaN"):
        Statistics.of(np.array([[1.0], [np.nan], [2.0]]))
    with pytest.raises(ValueError, match="equal lengths, one number for each dimension"):
        Statistics(mean=np.zeros(2), std=np.zeros(3))


def test_a_file_without_statistics_is_refused(tmp_path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "config.json").write_text('{"model_type": "openvla"}')
    with pytest.raises(ValueError, match="holds no statistics"):
        read_statistics(tmp_path)
    with pytest.raises(ValueError, match="has no statistics: expected one of dataset_statistics.json"):
        read_statistics(tmp_path / "empty")
