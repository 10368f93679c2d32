"""Laws of every recipe: what a run learns depends neither on processes, nor on micro-batches, nor on being stopped."""

import shutil

import pytest
import torch
from support.recipe_records.bench import RECIPES
from support.recipe_records.recipe import figures

from vlm_vision.train.command import run_cli
from vlm_vision.train.loop.step import Step


def every(field: str) -> list[tuple[str, str]]:
    """(recipe, name of a run) for all runs of a law."""
    return [(recipe, name) for recipe, laws in RECIPES.items() for name in getattr(laws, field)]


@pytest.mark.parametrize(("recipe", "name"), every("shared"))
def test_two_processes_equal_one(bench, recipe, name):
    at, shared = bench(recipe), RECIPES[recipe].shared[name]
    (one, out), two = at.alone(*shared.alone), at.together()[name]
    assert two["processes"] == 2 and one["processes"] == 1
    at.check_same(two, at.folder / f"two {name}", one, out)
    if shared.sharded_modules is not None:
        assert two["sharded_modules"] == shared.sharded_modules


@pytest.mark.parametrize(
    ("recipe", "name"), [(recipe, name) for recipe, name in every("shared") if RECIPES[recipe].shared[name].resumes]
)
def test_two_processes_resume_at_their_last_checkpoint(bench, recipe, name):
    """What the second run saved, over the first, is compared with the run in one process above."""
    at = bench(recipe)
    whole, rest, first = at.together()[name], at.together()[f"{name}, again"], RECIPES[recipe].shared[name].resumes
    assert (whole["first_step"], rest["first_step"]) == (0, first) and rest["losses"] == whole["losses"][first:]
    assert figures(at.laws, rest) == figures(at.laws, whole)


@pytest.mark.parametrize("recipe", [name for name, laws in RECIPES.items() if laws.half is not None])
def test_half_precision_in_two_processes_follows_the_same_curve(bench, recipe):
    at = bench(recipe)
    (one, _), half = at.alone(*at.laws.half[0]), at.together()["half precision"]
    assert half["losses"] != one["losses"]
    for key in ("losses", *at.laws.half_figures):
        assert half[key] == pytest.approx(one[key], **at.laws.half_tolerance), key


@pytest.mark.parametrize(
    ("recipe", "name", "size"),
    [(recipe, name, size) for recipe, name in every("cut") for size in RECIPES[recipe].cut[name][1]],
)
def test_micro_batches_of_any_size_give_the_same(bench, recipe, name, size):
    at, changes = bench(recipe), RECIPES[recipe].cut[name][0]
    whole, out = at.alone(*changes)
    cut, cut_out = at.alone(*changes, "--micro_batch_size", str(size))
    at.check_same(cut, cut_out, whole, out)


@pytest.mark.parametrize(("recipe", "name"), every("stopped"))
def test_a_stopped_run_resumes_as_if_it_had_not_been(bench, monkeypatch, recipe, name):
    at, stopped = bench(recipe), RECIPES[recipe].stopped[name]
    changes = (*stopped.changes, "--checkpoint_every", str(stopped.every))
    whole, whole_out = at.alone(*changes)
    take, out = Step.__call__, at.folder / f"stopped {name}"

    def stopping(self, index, micro_batches):
        if index == stopped.at:
            raise KeyboardInterrupt
        return take(self, index, micro_batches)

    monkeypatch.setattr(Step, "__call__", stopping)
    with pytest.raises(KeyboardInterrupt):
        at.laws.recipe.train(at.folder, out, *changes)
    monkeypatch.undo()
    rest = at.laws.recipe.train(at.folder, out, *changes, *stopped.then)
    assert rest["first_step"] == stopped.every and rest["losses"] == whole["losses"][stopped.every :]
    assert figures(at.laws, rest) == figures(at.laws, whole)
    ours, theirs = at.laws.state(out), at.laws.state(whole_out)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], value) for key, value in theirs.items())


@pytest.mark.parametrize(
    ("recipe", "change", "says"), [(name, *wrong) for name, laws in RECIPES.items() for wrong in laws.wrong]
)
def test_wrong_settings_are_one_sentence(bench, capsys, recipe, change, says):
    at, out = bench(recipe), "wrong"
    shutil.rmtree(at.folder / out, ignore_errors=True)
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        run_cli(f"recipes.{recipe}", lambda: at.laws.recipe.train(at.folder, out, *change))
    *bars, said = capsys.readouterr().err.strip().split("\n")
    assert end.value.code == 2 and says in said and all(bar.startswith("training:") for bar in bars)
    assert not (at.folder / out / "model").exists()


@pytest.mark.parametrize("recipe", [name for name, laws in RECIPES.items() if laws.bad is not None])
def test_bad_samples_are_counted_and_the_run_goes_on(bench, tmp_path, recipe):
    at = bench(recipe)
    metrics = at.laws.recipe.train(at.folder, tmp_path / "run", *at.laws.bad(at.folder, tmp_path))
    assert metrics["skipped"] > 0 and at.laws.bad_metrics(metrics)
    assert len(metrics["losses"]) == at.laws.steps
