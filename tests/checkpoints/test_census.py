"""Every model type of transformers with a vision part: its tower through `vv.load`, out of the whole folder and alone."""

import warnings
from operator import attrgetter

import pytest
import torch
from support.census.build import build
from support.census.case import Case
from support.census.cases import CASES

import vlm_vision as vv

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


@pytest.mark.parametrize("name", CASES)
@torch.inference_mode()
def test_a_tower_is_exact(name, tmp_path):
    case = CASES[name]
    whole = build(case.model_type, case.changes, case.model)
    tower = attrgetter(case.tower)(whole)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        whole.save_pretrained(tmp_path / "whole")
    assert_same(case, tower, vv.load(tmp_path / "whole", part=case.part))
    if case.bare:
        tower.save_pretrained(tmp_path / "bare")
        assert_same(case, tower, vv.load(tmp_path / "bare"))
