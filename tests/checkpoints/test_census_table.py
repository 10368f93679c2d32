"""The table of all model types with a vision part, and those that are refused."""

import warnings
from importlib import util
from pathlib import Path

import pytest
import torch
import transformers
from support.census.build import build, towers
from support.census.cases import CASES
from support.census.sam import reference

import vlm_vision as vv
from vlm_vision.checkpoints.families.all import MODEL_TYPES, REFUSED, WHOLE_MODELS

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def hook():
    spec = util.spec_from_file_location("census_table", ROOT / "docs/hooks/census_table.py")
    assert spec is not None and spec.loader is not None
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def types() -> dict[str, str]:
    transformers.logging.set_verbosity_error()
    return towers()


def test_every_model_type_has_one_row(hook, types):
    rows = hook.rows(CASES.values(), REFUSED, types)
    assert [row.type for row in rows] == sorted(types)
    for row in rows:
        assert row.whole == (
            "exact"
            if any(case.model_type == row.type for case in CASES.values())
            else "refused"
            if row.type in REFUSED or row.tower in REFUSED
            else "unknown"
        )
        assert bool(row.reason) == (row.whole == "refused")


def test_the_page_is_the_one_of_its_transformers(hook):
    page = (ROOT / "docs/census.md").read_text()
    if f"transformers {transformers.__version__} " not in page:
        pytest.skip(f"docs/census.md was made with another transformers than {transformers.__version__}")
    assert page == hook.page(), "run: python docs/hooks/census_table.py"


def test_what_is_refused_is_not_known():
    assert not set(REFUSED) & (set(MODEL_TYPES) | set(WHOLE_MODELS))
    assert not set(REFUSED) & {case.model_type for case in CASES.values()}


@pytest.mark.parametrize("name", ["mllama", "unlimited_ocr"])
def test_a_refusal_says_why(name, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        build(name, {}).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"model_type '{name}'.*: its tower .*: expected"):
        vv.load(tmp_path)


@torch.inference_mode()
def test_the_sam_of_a_tower_of_two_loads_alone(tmp_path):
    small = dict(window_size=3, global_attn_indexes=[1])
    whole = build("unlimited_ocr", {"vision_config": {"sam_config": small}})
    stage = whole.vision_tower.sam_encoder
    stage.save_pretrained(tmp_path)
    encoder = vv.load(tmp_path)
    torch.manual_seed(2)
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(encoder(x).patch_tokens, reference(stage, x).tokens, rtol=0, atol=1e-5)
