"""Layers of settings: which key overrides which, what a choice takes with it, and what is refused by name."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, TypedDict

import pytest

from vlm_vision.train.layers import check_keys, read_layers, replace_choices


class BlockFields(TypedDict, total=False):
    depth: int
    width: int


@dataclass
class Inner:
    source: str = ""
    fields: BlockFields = field(default_factory=BlockFields)


@dataclass
class Outer:
    steps: int = 1
    inner: Inner = field(default_factory=Inner)
    others: list[Inner] = field(default_factory=list)
    last: Inner | None = None
    free: dict[str, int] = field(default_factory=dict)

    REPLACES: ClassVar[dict[str, tuple[str, ...]]] = {"inner.source": ("inner.fields", "free")}


@pytest.fixture
def yaml(tmp_path: Path):
    """Writes a YAML file of a name and returns its path."""

    def write(text: str, name: str = "a.yaml") -> str:
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return write


def test_a_command_line_is_cut_at_its_files(yaml):
    file = yaml("steps: 2")
    layers = read_layers(["--steps", "1", "--config", file, "--inner.source=x", "--inner.fields.depth", "3"])
    assert [layer.name for layer in layers] == ["the command line", file, "the command line"]
    assert [layer.values for layer in layers] == [
        {"steps": "1"},
        {"steps": 2},
        {"inner": {"source": "x", "fields": {"depth": "3"}}},
    ]
    given = [argument for layer in layers for argument in layer.arguments]
    assert given == ["--steps", "1", "--config", file, "--inner.source=x", "--inner.fields.depth", "3"]


def test_a_value_of_a_flag_may_be_a_negative_number_or_a_mapping():
    (layer,) = read_layers(["--steps", "-2", "--inner", '{"fields": {"depth": 3}}', "--help"])
    assert layer.values == {"steps": "-2", "inner": {"fields": {"depth": 3}}, "help": ""}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--stepz", "1"], "--stepz, which is not a setting of this recipe; did you mean 'steps'?"),
        (
            ["--inner.fields.dpeth", "1"],
            "--inner.fields.dpeth, which is not a field of inner.fields; did you mean 'depth'?",
        ),
        (["--inner.fields", '{"dpeth": 1}'], "--inner.fields.dpeth"),
        (["--inner", '{"sourc": "x"}'], "--inner.sourc, which is not a setting of this recipe; did you mean 'source'?"),
        (["--last.fields.heigth", "1"], "--last.fields.heigth"),
        (["--old.key", "1"], "--old, whose name is now --inner"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest(arguments, says):
    (layer,) = read_layers(arguments)
    with pytest.raises(ValueError) as error:
        check_keys(layer, Outer, {"old": "inner"})
    assert says in str(error.value)


def test_a_key_of_a_file_is_named_with_the_file(yaml):
    file = yaml("others:\n- {source: x}\n- {sorce: y}")
    (layer,) = read_layers(["--config", file])
    with pytest.raises(ValueError, match=f"{file} has others.sorce, which is not a setting of this recipe"):
        check_keys(layer, Outer, {})


def test_known_keys_pass(yaml):
    text = "steps: 3\ninner: {source: x, fields: {depth: 1}}\nothers: [{source: a}]\nfree: {any: 1}\nlast: null"
    for layer in read_layers(["--config", yaml(text), "--free.thing", "2", "--help", "--print_config"]):
        check_keys(layer, Outer, {"steps": "steps"})


def test_a_choice_takes_its_options_with_it(yaml):
    file = yaml("inner: {source: x, fields: {depth: 1}}\nfree: {a: 1}\nsteps: 5")
    layers = read_layers(["--config", file, "--inner.source", "y", "--free.b", "2"])
    notes = replace_choices(layers, Outer.REPLACES)
    assert layers[0].values == {"inner": {"source": "x"}, "steps": 5}
    assert layers[1].values["free"] == {"b": "2"}  # what is given with the choice stays
    assert notes == [f"--inner.source y replaces inner.fields, free of {file}"]
    assert layers[0].arguments[0] == "--config" and "depth" not in layers[0].arguments[1]


@pytest.mark.parametrize("source", ["x", ""])
def test_the_same_choice_and_an_empty_one_replace_nothing(yaml, source):
    file = yaml("inner: {source: x, fields: {depth: 1}}")
    layers = read_layers(["--config", file, "--inner.source", source])
    assert replace_choices(layers, Outer.REPLACES) == []
    assert layers[0].values["inner"]["fields"] == {"depth": 1} and layers[0].arguments == ["--config", file]


def test_a_later_file_replaces_the_choice_of_an_earlier_one(yaml):
    first, second = yaml("inner: {fields: {depth: 1}}"), yaml("inner: {source: y}", "b.yaml")
    layers = read_layers(["--config", first, "--config", second])
    assert replace_choices(layers, Outer.REPLACES) == [f"inner.source y replaces inner.fields of {first}"]
    layers = read_layers(["--config", second, "--config", first])
    assert replace_choices(layers, Outer.REPLACES) == []


def test_a_file_that_is_missing_or_holds_no_keys_is_refused(yaml):
    with pytest.raises(ValueError, match="--config none.yaml: the file does not exist"):
        read_layers(["--config", "none.yaml"])
    with pytest.raises(ValueError, match="holds no keys"):
        read_layers(["--config", yaml("just words")])
