"""The house: few files at the root, few modules in a folder, imports without circles, few rooms on few floors."""

import ast
from collections import Counter
from functools import cache
from graphlib import CycleError, TopologicalSorter
from importlib.util import find_spec
from pathlib import Path

import grimp

PACKAGES = ("projectors", "vlm_vision", "recipes", "benchmarks")
LIBRARY = ("projectors", "vlm_vision", "recipes")
ROOT_FILES, MODULES, ROOMS, FLOORS = 12, 15, 30, 12


def folder_of(package: str) -> Path:
    """Where the package is, in the checkout or installed."""
    spec = find_spec(package)
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent


@cache
def imports() -> dict[str, set[str]]:
    """Module -> modules of the house that it imports, inside functions too."""
    graph = grimp.build_graph(*PACKAGES, cache_dir=None)
    return {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}


def room(module: str) -> str:
    """A top-level package, or what lies directly in vlm_vision."""
    parts = module.split(".")
    return ".".join(parts[: 2 if parts[0] == "vlm_vision" else 1])


def rooms() -> dict[str, set[str]]:
    """Room -> rooms that it imports."""
    found: dict[str, set[str]] = {}
    for module, imported in imports().items():
        found.setdefault(room(module), set()).update(map(room, imported))
    return {name: others - {name} for name, others in found.items()}


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Names along one circle of the graph; none where there is no circle."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def floors(graph: dict[str, set[str]]) -> dict[str, int]:
    """Name -> length of the longest chain of imports that starts there."""
    height: dict[str, int] = {}
    for name in TopologicalSorter(graph).static_order():
        height[name] = 1 + max((height[other] for other in graph[name]), default=0)
    return height


def test_the_root_of_the_library_holds_few_files():
    files = sorted(path.name for path in folder_of("vlm_vision").glob("*.py"))
    assert 1 < len(files) <= ROOT_FILES, f"{len(files)} files at the root, at most {ROOT_FILES}: {files}"


def test_no_folder_of_the_library_holds_many_modules():
    root = folder_of("vlm_vision")
    sizes = Counter(str(path.parent.relative_to(root.parent)) for path in root.rglob("*.py"))
    large = {name: size for name, size in sizes.items() if size > MODULES}
    assert sizes and not large, f"modules in a folder, at most {MODULES}: {large}; all folders: {dict(sizes)}"


def test_no_imports_run_in_a_circle():
    assert len(imports()) > 200
    found = circle(imports())
    assert not found, " imports ".join(reversed(found))


def test_rooms_are_few_and_on_few_floors():
    graph = rooms()
    assert len(graph) > 10 and not circle(graph)
    height = floors(graph)
    plan = [f"{floor:2}: {' '.join(sorted(r for r in graph if height[r] == floor))}" for floor in set(height.values())]
    text = "\n".join([f"{len(graph)} rooms on {max(height.values())} floors", *reversed(plan)])
    assert len(graph) <= ROOMS and max(height.values()) <= FLOORS, text


def test_the_drawing_finds_circles_and_floors():
    tower = {"roof": {"hall", "cellar"}, "hall": {"cellar"}, "cellar": set[str]()}
    assert floors(tower) == {"cellar": 1, "hall": 2, "roof": 3} and not circle(tower)
    assert {"roof", "cellar"} <= set(circle(tower | {"cellar": {"roof"}}))


def test_no_class_name_occurs_twice():
    where: dict[str, list[str]] = {}
    for package in LIBRARY:
        root = folder_of(package)
        for path in sorted(root.rglob("*.py")):
            for node in ast.parse(path.read_text(encoding="utf-8")).body:
                if isinstance(node, ast.ClassDef):
                    where.setdefault(node.name, []).append(str(path.relative_to(root.parent)))
    twice = {name: files for name, files in where.items() if len(files) > 1}
    assert where and not twice, "\n".join(f"{name}: {', '.join(files)}" for name, files in sorted(twice.items()))
