"""What `import vlm_vision` offers: every name when it is asked for, none before."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import vlm_vision as vv

FOLDER = Path(vv.__file__).parent


@pytest.mark.parametrize("name", vv.__all__)
def test_every_public_name_is_there(name):
    value = getattr(vv, name)
    assert value is vv.presets if name == "presets" else value.__name__ == name
    assert name in dir(vv)


def test_nothing_is_imported_before_it_is_asked_for():
    code = "import sys, vlm_vision; print(*(name for name in sys.modules if name.startswith(('vlm_vision', 'torch'))))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == {"vlm_vision", "vlm_vision.auto"}


def test_editors_are_told_the_same_names_and_places():
    stub = ast.parse((FOLDER / "__init__.pyi").read_text())
    imports = [node for node in stub.body if isinstance(node, ast.ImportFrom)]
    places = {alias.asname: node.module for node in imports for alias in node.names}
    assert places == vv._MODULE_OF | {"presets": "vlm_vision"}
    (names,) = (node.value for node in stub.body if isinstance(node, ast.Assign))
    assert sorted(ast.literal_eval(names)) == vv.__all__


def test_no_name_is_that_of_a_module():
    modules = {path.stem for path in FOLDER.iterdir()}
    assert not modules & set(vv._MODULE_OF), "importing the module would put it in the name's place"


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'lod'"):
        vv.lod  # noqa: B018
