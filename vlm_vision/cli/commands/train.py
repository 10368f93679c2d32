"""`vlm-vision train`: the recipes, which a wheel carries as `vlm_vision.recipes` and a checkout as its folder `recipes`."""

import argparse
import sys
from pathlib import Path
from types import ModuleType

import vlm_vision
from vlm_vision.cli.parser import hint


def add_to(parser: argparse.ArgumentParser) -> None:
    """Its arguments."""
    parser.usage = "vlm-vision train NAME [--config NAME_OR_FILE] [--key value ...]"
    parser.add_argument(
        "name",
        metavar="NAME",
        help=f"name of the recipe, before its settings: {', '.join(names()) or 'none is installed'}",
    )
    settings = parser.add_argument(
        "settings",
        metavar="SETTINGS",
        nargs=argparse.REMAINDER,
        help="settings of the recipe; vlm-vision train NAME --help lists them",
    )
    settings.required = False


def run(options: argparse.Namespace) -> None:
    if options.name not in names():
        what = hint(options.name, names(), f"expected one of {', '.join(names())}")
        raise ValueError(f"there is no recipe {options.name}: {what}")
    module = recipe(options.name)

    from vlm_vision.train.command import run_cli

    run_cli(f"vlm-vision train {options.name}", lambda: module.main(module.parse(options.settings)))


def names() -> list[str]:
    """The recipes."""
    return sorted(file.stem for file in _folder().glob("*.py") if file.stem != "__init__")


def recipe(name: str) -> ModuleType:
    """The module of a recipe, of this installation and of no other package called `recipes`.

    Raises:
        ValueError: another `recipes` was imported before.
    """
    from importlib import import_module

    folder = _folder()
    if folder.parent == Path(vlm_vision.__file__).parent:
        return import_module(f"vlm_vision.recipes.{name}")
    if str(folder.parent) not in sys.path[:1]:
        sys.path.insert(0, str(folder.parent))  # for the processes that the recipe starts, too
    package = import_module("recipes")
    if Path(package.__file__ or "").parent != folder:
        raise ValueError(f"another package called recipes is already imported, {package.__file__}: expected {folder}")
    return import_module(f"recipes.{name}")


def _folder() -> Path:
    """Folder of the recipes."""
    package = Path(vlm_vision.__file__).parent
    inside = package / "recipes"
    return inside if inside.is_dir() else package.parent / "recipes"
