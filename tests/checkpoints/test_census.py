"""Every model type of transformers with a vision part: its tower through `vv.load`, out of the whole folder and alone."""

import json
import re
import warnings
from operator import attrgetter

import pytest
import torch
import transformers
from safetensors.torch import save_file
from support.census.build import build
from support.census.case import Case
from support.census.cases import CASES

import vlm_vision as vv
from projectors import Projector
from vlm_vision.checkpoints.families.all import FAMILIES, REFUSED


def video_of(case: Case, frames: int, size: tuple[int, int]) -> torch.Tensor:
    torch.manual_seed(2)
    return torch.randn(2, *((frames,) if frames else ()), 3, *size)


def assert_same(case: Case, tower: torch.nn.Module, encoder: vv.Encoder) -> None:
    """The encoder gives the tower's tokens, to 1e-5 of their scale, at each size and for a video."""
    inputs = [video_of(case, 0, size) for size in case.sizes]
    if case.frames:
        inputs.append(video_of(case, case.frames, case.sizes[-1]))
    for x in inputs:
        expected = case.reference(tower, x)
        out = encoder(x, tap=case.tap)
        for ours, theirs in zip(
            (out.patch_tokens, *out.deepstack), (expected.tokens, *expected.deepstack), strict=True
        ):
            assert ours.shape == theirs.shape
            assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()


def assert_same_projection(case: Case, whole: torch.nn.Module, encoder: vv.Encoder, projector: Projector) -> None:
    """The projector makes of the encoder's tokens what the connector of the whole model does, to 1e-5 of their scale."""
    assert case.connector is not None
    for size in case.sizes if case.wide_connector else case.sizes[:1]:
        x = video_of(case, 0, size)
        outputs = [encoder(x, tap=tap) for tap in case.connector_taps or (case.tap,)]
        tokens, grid = torch.cat([out.patch_tokens for out in outputs], dim=-1), outputs[0].grid
        ours, theirs = projector(tokens, grid), case.connector(whole, tokens, grid)
        assert ours.shape == theirs.shape and ours.shape[1] == projector.num_tokens(grid)
        assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()


@pytest.mark.parametrize("name", CASES)
@torch.inference_mode()
def test_a_tower_is_exact(name, tmp_path):
    case = CASES[name]
    whole = build(case.model_type, case.changes, case.model)
    tower = attrgetter(case.tower)(whole)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        whole.save_pretrained(tmp_path / "whole")
    encoder = vv.load(tmp_path / "whole", part=case.part)
    assert_same(case, tower, encoder)
    projector = None if case.connector is None else vv.load_projector(tmp_path / "whole")
    if projector is not None:
        assert_same_projection(case, whole, encoder, projector)
    if case.bare:
        tower.save_pretrained(tmp_path / "bare")
        assert_same(case, tower, vv.load(tmp_path / "bare"))
    encoder.save_pretrained(tmp_path / "back", into=tmp_path / "whole", projector=projector, part=case.part)
    for file in (tmp_path / "whole").iterdir():
        assert file.read_bytes() == (tmp_path / "back" / file.name).read_bytes(), file.name
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its preprocessing may be one that transformers has only a near one of
        encoder.save_pretrained(tmp_path / "written", format="hf")
    again = vv.load(tmp_path / "written")
    for name, weight in encoder.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name]), name
    assert again.config == encoder.config
    architecture = json.loads((tmp_path / "written/config.json").read_text())["architectures"][0]
    if hasattr(transformers, architecture):
        _, loading = getattr(transformers, architecture).from_pretrained(tmp_path / "written", output_loading_info=True)
        family = FAMILIES[encoder.origin.family]
        missing = [name.removeprefix(family.prefix) for name in loading["missing_keys"]]
        assert not [name for name in missing if not name.startswith(family.connector)]
        assert not loading["mismatched_keys"]


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_names_the_model_type_and_the_reason(name, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": name, "vision_config": {}}))
    save_file({"weight": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=re.escape(f"config.json has model_type '{name}': {REFUSED[name]}")):
        vv.load(tmp_path)
