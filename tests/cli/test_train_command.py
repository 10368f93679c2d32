"""`vlm-vision train` and the command line of the recipes."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import get_type_hints

import pytest

import vlm_vision
from vlm_vision.cli.commands import train
from vlm_vision.cli.main import main
from vlm_vision.train.command import settings_parser

RECIPES = Path(train._folder())


def test_a_recipe_runs_with_a_config_by_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    less = [
        "--steps",
        "2",
        "--batch_size",
        "4",
        "--micro_batch_size",
        "4",
        "--eval_limit",
        "4",
        "--eval_neighbors",
        "0",
        "--warmup_steps",
        "1",
    ]
    assert main(["train", "mae", "--config", "mae_smoke", "--out", str(tmp_path / "run"), *less]) == 0
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["final_loss"] > 0
    assert (tmp_path / "run" / "model" / "config.json").is_file()


def test_configs_are_given_by_name_by_file_name_or_by_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mae = train.recipe("mae")
    (tmp_path / "mine.yaml").write_text((RECIPES / "configs" / "mae_smoke.yaml").read_text() + "\nseed: 7\n")
    (tmp_path / "mae_smoke").mkdir()  # a folder of that name is no config
    ways = (
        ["--config", "mae_smoke"],
        ["--config=mae_smoke.yaml"],
        ["--config", str(RECIPES / "configs/mae_smoke.yaml")],
    )
    first, *others = [mae.parse(way) for way in ways]
    assert all(other == first for other in others)
    assert mae.parse(["--config", "mine.yaml", "--steps", "3"]).seed == 7


def test_a_misspelled_key_of_a_config_is_one_line(tmp_path, capsys):
    (tmp_path / "a.yaml").write_text("out: x\nmodel:\n  decoder:\n    depht: 3\n")
    with pytest.raises(SystemExit, match="2"):
        main(["train", "mae", "--config", str(tmp_path / "a.yaml"), "--data.train", "x"])
    says = capsys.readouterr().err
    assert says.count("\n") == 1
    assert "a.yaml has model.decoder.depht, which is not a setting of this recipe; did you mean 'depth'?" in says


def test_a_misspelled_flag_is_one_line_with_its_near_match(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["train", "mae", "--config", "mae_smoke", "--stepps", "5"])
    says = capsys.readouterr().err
    assert says.count("\n") == 1 and "--stepps, which is not a setting of this recipe; did you mean 'steps'?" in says


@pytest.mark.parametrize("name", train.names())
def test_every_setting_of_every_recipe_has_a_help_text(name):
    module = train.recipe(name)
    parser = settings_parser(get_type_hints(module.parse)["return"], name, module.__doc__)
    assert not [action.dest for action in parser._actions if not (action.help or "").strip()]
    assert module.__doc__
    commands = [line for line in module.__doc__.splitlines() if f"vlm-vision train {name}" in line]
    assert commands and all(line in parser.format_help() for line in commands)  # on lines of their own


@pytest.mark.parametrize("name", train.names())
def test_no_recipe_needs_to_be_called_recipes(name):
    tree = ast.parse((RECIPES / f"{name}.py").read_text())
    imports = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and not node.level}
    imports |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert not [module for module in imports if module and module.partition(".")[0] == "recipes"]


def test_another_package_called_recipes_is_never_used(tmp_path, monkeypatch):
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "__init__.py").write_text("")
    (tmp_path / "recipes" / "mae.py").write_text("raise RuntimeError('another package')")
    code = "from vlm_vision.cli.commands import train; print(train.recipe('mae').__file__)"
    places = os.pathsep.join([str(tmp_path), str(Path(vlm_vision.__file__).parents[1])])
    done = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, cwd=tmp_path,
                          env=os.environ | {"PYTHONPATH": places})  # fmt: skip
    assert done.stdout.strip() == str(RECIPES / "mae.py"), done.stderr
    if RECIPES.parent != Path(vlm_vision.__file__).parent:  # a checkout
        other = ModuleType("recipes")
        other.__file__ = str(tmp_path / "recipes" / "__init__.py")
        monkeypatch.setitem(sys.modules, "recipes", other)
        with pytest.raises(ValueError, match="another package called recipes is already imported"):
            train.recipe("mae")
