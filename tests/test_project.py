"""The project as a stranger finds it: README, configs, wheel."""

import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import get_type_hints

import pytest

from recipes import align, contrastive, distill, mae, probe, self_distill, supervised, vla, vla_eval, vqa

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def test_readme_opens_with_the_two_commands():
    commands = re.findall(r"^pip install .*$", README, flags=re.MULTILINE)
    assert commands == [
        "pip install -e '.[demo]' && python -m recipes.vqa --config recipes/configs/demo.yaml",
        "pip install -e '.[test]' && pytest",
    ]


def test_files_named_in_the_readme_exist():
    for name in re.findall(r"`((?:recipes|projectors|benchmarks|vlm_vision)/[\w/.]+)`", README):
        assert (ROOT / name).exists(), name


@pytest.mark.parametrize("file", sorted((ROOT / "recipes" / "configs").glob("*.yaml")), ids=lambda file: file.name)
def test_every_config_fits_its_recipe(file, tmp_path):
    named = {
        "align": align,
        "mini": contrastive,
        "contrastive": contrastive,
        "probe": probe,
        "siglip": contrastive,
        "mae": mae,
    }
    named |= {
        "supervised": supervised,
        "deit": supervised,
        "self": self_distill,
        "dinov2": self_distill,
        "dinov3": self_distill,
    }
    named |= {"distill": distill}
    named |= {"vla": vla_eval if file.stem.startswith("vla_eval") else vla}
    recipe = named.get(file.stem.split("_")[0], vqa)
    assert type(recipe.parse(["--config", str(file), "--out", str(tmp_path)])) is get_type_hints(recipe.parse)["return"]


def test_the_wheel_ships_two_packages_with_the_recipes_inside_and_nothing_else(tmp_path):
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        names = wheel.namelist()
    top = {name.split("/")[0] for name in names if ".dist-info" not in name}
    assert top == {"vlm_vision", "projectors"}
    assert {"vlm_vision/py.typed", "projectors/py.typed", "vlm_vision/mini/model.safetensors"} <= set(names)
    inside = {name.removeprefix("vlm_vision/") for name in names if name.startswith("vlm_vision/recipes/")}
    files = (ROOT / "recipes").rglob("*.*")
    assert inside == {str(file.relative_to(ROOT)) for file in files if file.suffix in (".py", ".yaml")}
    assert {"vlm_vision/cli/models.txt", "vlm_vision/cli/formats.txt", "vlm_vision/__init__.pyi"} <= set(names)


def test_no_file_is_too_long_to_read():
    files = [file for package in ("vlm_vision", "projectors", "recipes") for file in (ROOT / package).rglob("*.py")]
    assert files and not {file.name for file in files if len(file.read_text().splitlines()) > 425}
