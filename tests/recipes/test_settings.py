"""Settings of the recipes: how they are built, and that a choice on the command line goes with its own options."""

import json
from dataclasses import fields, is_dataclass
from importlib import import_module
from pathlib import Path
from typing import get_type_hints

import pytest
import torch
from support.models import make_image

import vlm_vision as vv
from recipes import align, vla, vqa
from vlm_vision.new_models import check_language_fields
from vlm_vision.train.layers import _groups
from vlm_vision.train.start import start_run
from vlm_vision.train.vlm import build_vlm

CONFIGS = Path(__file__).parents[2] / "recipes" / "configs"
RECIPES = "align contrastive distill mae probe self_distill supervised vla vla_eval vqa".split()
STAGE_TWO = sorted(
    file
    for file in CONFIGS.glob("*.yaml")
    if file.stem in ("demo", "real", "vqa_llava") or file.stem.startswith("vla_")
)
STAGE_TWO = [file for file in STAGE_TWO if not file.stem.startswith("vla_eval")]


def config_of(name: str) -> type:
    return get_type_hints(import_module(f"recipes.{name}").parse)["return"]


@pytest.mark.parametrize("name", RECIPES)
def test_a_config_derives_from_groups_that_derive_from_nothing(name):
    config = config_of(name)
    assert is_dataclass(config)
    for group in config.__bases__:
        assert group is object or group.__bases__ == (object,)
    for inner in (inner for hint in get_type_hints(config).values() for inner in _groups(hint) if is_dataclass(inner)):
        assert all(group is object or group.__bases__ == (object,) for group in inner.__bases__)


@pytest.mark.parametrize("name", RECIPES)
def test_a_key_that_replaces_others_exists_as_they_do(name):
    config = config_of(name)
    for key, replaced in getattr(config, "REPLACES", {}).items():
        for path in (key, *replaced):
            group = config
            for part in path.split("."):
                names = [f.name for f in fields(group)] if is_dataclass(group) else list(get_type_hints(group))
                assert part in names, path
                group = next(_groups(get_type_hints(group)[part]), None)


DEMO = ["--config", str(CONFIGS / "demo.yaml")]
ROBOT = ["--config", str(CONFIGS / "vla_metaworld.yaml")]


def test_options_of_a_projector_are_not_those_of_another():
    kept = vqa.parse([*DEMO, "--projector", "pixel_shuffle"])
    assert kept == vqa.parse(DEMO) and kept.projector_options == {"scale": 4}
    other = vqa.parse([*DEMO, "--projector", "mlp", "--projector_options.depth", "3"])
    assert (other.projector, other.projector_options) == ("mlp", {"depth": 3})
    assert vqa.parse([*DEMO, "--projector", "linear"]).projector_options == {}
    with pytest.raises(ValueError, match="'linear' does not take these options: scale; it takes out_norm, eps"):
        vqa.parse([*DEMO, "--projector", "linear", "--projector_options.scale", "2"])
    with pytest.raises(ValueError, match="'pixel_shuffle' does not take these options: depth; it takes scale"):
        vqa.parse([*DEMO, "--projector_options", '{"depth": 2}'])
    loaded = vqa.parse([*DEMO, "--projector_source", "a/policy"])
    assert (loaded.projector, loaded.projector_options) == ("mlp", {})


def test_options_of_an_action_head_are_not_those_of_another():
    assert vla.parse(ROBOT).head_options == {"hidden_dim": 256}
    assert vla.parse([*ROBOT, "--head", "flow"]).head_options == {}
    with pytest.raises(ValueError, match="action head 'parallel' has no 'width_'; did you mean 'width'"):
        vla.parse([*ROBOT, "--head_options", '{"width_": 1}'])


def test_fields_of_a_layout_are_not_those_of_another(tmp_path):
    (tmp_path / "a.yaml").write_text("data: {train: a}\nout: b\nlayout: {name: anyres, pinpoints: [[64, 128]]}")
    native = vqa.parse(["--config", str(tmp_path / "a.yaml"), "--layout.name", "native"])
    assert native.layout == {"name": "native"}


def test_a_loaded_part_takes_the_place_of_a_new_one_and_back():
    loaded = vla.parse([*ROBOT, "--encoder.source", "mini", "--language.source", "somewhere"])
    assert loaded.encoder.source == "mini" and not loaded.encoder.new and not loaded.language.new
    assert loaded.encoder.std == (0.5, 0.5, 0.5)
    new = dict(image_size=16, patch_size=8, embed_dim=16, depth=1, num_heads=2, mlp_dim=32)
    made = vqa.parse([*DEMO, "--encoder.new", json.dumps(new)])
    assert made.encoder.new == new and not made.encoder.source
    with pytest.raises(ValueError, match="encoder.source mini and encoder.new are two encoders"):
        vqa.parse([*DEMO, "--encoder.source", "mini", "--encoder.new", json.dumps(new)])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            ["--encoder.new.positoin", "rope2d"],
            "--encoder.new.positoin, which is not a field of encoder.new; did you mean 'position'",
        ),
        (["--encoder.new.position", "rope"], "Expected a typing.Literal"),
        (["--encoder.new.depth", "three"], "Expected a <class 'int'>. Got value: three"),
        (
            ["--encoder.new", '{"depth": 3}'],
            "ViTConfig needs image_size, patch_size, embed_dim, num_heads, mlp_dim too",
        ),
        (["--encoder.new.num_heads", "3"], "num_heads 3 does not divide embed_dim"),
        (
            ["--language.new.hidden_sise", "3"],
            "transformers' LlamaConfig has no 'hidden_sise'; did you mean 'hidden_size'",
        ),
        (["--language.new", '{"model_type": "lama"}'], "transformers has no model_type 'lama'; did you mean 'llama'"),
        (["--language.new", '{"hidden_size": 8}'], "needs a model_type"),
        (["--layout", '{"name": "hole"}'], "the image layout {'name': 'hole'} is not known"),
        (["--layout", '{"name": "native", "max_patch": 4}'], "not a field of layout; did you mean 'max_patches'"),
        (["--lr_hands", "1"], "--lr_hands, whose name is now --lr_action"),
        (["--lr_acton", "1"], "--lr_acton, which is not a setting of this recipe; did you mean 'lr_action'"),
    ],
)
def test_a_wrong_field_is_refused_before_anything_is_read(change, says):
    with pytest.raises(ValueError) as error:
        vla.parse([*ROBOT, *change])
    assert says in str(error.value) and "\n" not in str(error.value)


def test_fields_of_language_models_may_have_their_older_names():
    check_language_fields({"model_type": "llama", "rope_theta": 5.0, "torch_dtype": "float32"})
    check_language_fields({"model_type": "gpt2", "hidden_size": 8, "n_layer": 2})  # by its attribute map
    with pytest.raises(ValueError, match="GPT2Config has no 'n_layers'; did you mean 'n_layer'"):
        check_language_fields({"model_type": "gpt2", "n_layers": 2})


# Stage one, then stage two


@pytest.fixture(scope="module")
def aligned(tmp_path_factory) -> Path:
    """The folder of a run of stage one, with its data."""
    folder = tmp_path_factory.mktemp("aligned")
    records = []
    for i in range(8):
        make_image(i, 16, 16).save(folder / f"{i}.png")
        turns = [{"from": "human", "value": "<image>\nwhat ?"}, {"from": "gpt", "value": ["red", "blue"][i % 2]}]
        records.append({"image": f"{i}.png", "conversations": turns})
    (folder / "train.json").write_text(json.dumps(records))
    encoder = dict(image_size=16, patch_size=8, embed_dim=16, depth=2, num_heads=2, mlp_dim=32, class_token=False)
    language = dict(model_type="llama", hidden_size=16, intermediate_size=32, num_hidden_layers=1)
    language |= dict(num_attention_heads=2, num_key_value_heads=2)
    changes = ["--encoder.new", json.dumps(encoder | {"pool": "none"}), "--language.new", json.dumps(language)]
    config = ["--config", str(CONFIGS / "align_demo.yaml"), "--data.train", str(folder / "train.json")]
    sizes = ["--batch_size", "4", "--micro_batch_size", "4", "--steps", "2", "--tracker", "none"]
    align.main(align.parse([*config, *changes, *sizes, "--out", str(folder / "run")]))
    return folder


@pytest.mark.parametrize("file", STAGE_TWO, ids=lambda file: file.stem)
def test_stage_two_begins_where_stage_one_ended_with_every_config(aligned, file, tmp_path, caplog):
    recipe = vla if file.stem.startswith("vla_") else vqa
    start = str(aligned / "run/model")
    with caplog.at_level("INFO"):
        config = recipe.parse(["--config", str(file), "--start", start, "--out", str(tmp_path)])
    saved = vv.VisionLanguageModel.from_pretrained(start)
    begun = build_vlm(config, [])
    assert all(torch.equal(a, b) for a, b in zip(begun.parameters(), saved.parameters(), strict=True))
    replaced = [part for part in ("encoder", "language") if f"\n{part}:" in file.read_text()]
    assert not replaced or f"--start {start} replaces {', '.join(replaced)}" in caplog.text
    if recipe is vqa:
        small = [
            "--steps",
            "1",
            "--batch_size",
            "4",
            "--micro_batch_size",
            "4",
            "--warmup_steps",
            "0",
            "--tracker",
            "none",
        ]
        small += ["--mixed_precision", "no", "--sharding", "none", "--workers", "0", "--data.test", ""]
        small += ["--data.train", str(aligned / "train.json")]
        config = vqa.parse(["--config", str(file), "--start", start, "--out", str(tmp_path), *small])
        assert len(vqa.main(config)["losses"]) == 1 and (tmp_path / "model/config.json").is_file()


def test_a_start_that_is_no_saved_model_has_a_sentence_of_its_own(aligned, tmp_path):
    def begin(start: Path) -> None:
        build_vlm(vqa.parse([*DEMO, "--start", str(start)]), [])

    with pytest.raises(ValueError, match=r"run has no config.json: pass .*run/model, the saved model of the run"):
        begin(aligned / "run")
    with pytest.raises(ValueError, match="has no config.json: pass the folder that save_pretrained wrote"):
        begin(tmp_path)
    with pytest.raises(ValueError, match="there is no folder"):
        begin(tmp_path / "none")
    vv.load("mini").save_pretrained(tmp_path / "tower")
    with pytest.raises(
        ValueError, match="holds a model of type siglip_vision_model, which is not a vision-language model"
    ):
        begin(tmp_path / "tower")


def test_a_language_model_that_cannot_be_loaded_is_named(tmp_path):
    def build(source: Path) -> None:
        build_vlm(
            align.parse(
                ["--out", "o", "--data.train", "d", "--encoder.source", "mini", "--language.source", str(source)]
            ),
            [],
        )

    (tmp_path / "config.json").write_text('{"model_type": "dinov2"}')
    with pytest.raises(
        ValueError, match=r"^language.source \S+ cannot be loaded \(Unrecognized config[^\n]*\): pass a"
    ):
        build(tmp_path)
    (tmp_path / "config.json").unlink()
    (tmp_path / "weights.gguf").touch()
    with pytest.raises(ValueError, match="cannot be loaded .*: set language.gguf_file to weights.gguf"):
        build(tmp_path)


def test_a_run_whose_folder_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ValueError, match="file is a file: choose a folder to save to"):
            start_run(vqa.parse([*DEMO, "--out", str(out)]))


def test_start_and_parts_in_one_place_are_refused(tmp_path):
    (tmp_path / "a.yaml").write_text("data: {train: a}\nout: b\nstart: c\nprojector: linear\nencoder: {source: mini}")
    with pytest.raises(ValueError, match="start c has its own .*: remove encoder and projector, or remove start"):
        vqa.parse(["--config", str(tmp_path / "a.yaml")])
