"""A policy's look as CUDA graphs: what a capture needs, told without a GPU, and with one that it gives the same."""

import copy

import numpy as np
import pytest
import torch
from support.policies import HEADS, made, observation
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.utils import import_utils

import vlm_vision as vv
from vlm_vision.deploy.cpu_layout import PackedLinear
from vlm_vision.fused import add_film
from vlm_vision.new_models import new_encoder
from vlm_vision.vla import VLAPolicy
from vlm_vision.vla import runner as look
from vlm_vision.vla.batch import ObservationReader
from vlm_vision.vla.runner import GraphedRunner, PolicyRunner, RunnerCache

BOTH = [observation(1), observation(5, "push a block")]


def batch_of(model, seen=BOTH):
    read = ObservationReader(model)
    batch = read([one.instruction for one in seen], [read.images(one) for one in seen])
    states = torch.from_numpy(np.stack([one.state for one in seen]))
    return batch | {"state": model.normalizers("mine")[1](states)}


def again(stages, device):
    """In the place of graphs: what runs anew on the tensors that a graph would read, after the same warm-up."""
    for stage in (*stages, *stages):
        stage()
    return list(stages)


@pytest.mark.parametrize("head", HEADS)
def test_a_captured_look_reads_what_it_is_given(head, monkeypatch) -> None:
    monkeypatch.setattr(look, "capture_graphs", again)
    model = made(head)
    plain, first = PolicyRunner(model), batch_of(model)
    kept = GraphedRunner(model, first)
    other = batch_of(model, [observation(7), observation(8, "push a block")])
    found = {}
    with torch.no_grad():
        for name, batch in (("other", other), ("first", first)):
            for one in (plain, kept):
                one.encode(batch)
                one.prefill()
            found[name] = kept.decode().clone()
            torch.testing.assert_close(found[name], plain.decode(), rtol=0, atol=0)
    if head != "tokens":
        assert not torch.equal(found["first"], found["other"])
    assert torch.equal(first["pixel_values"], batch_of(model)["pixel_values"])  # what was given is not written to


def test_the_shapes_seen_last_are_kept(monkeypatch) -> None:
    monkeypatch.setattr(look, "capture_graphs", again)
    model = made("parallel")
    looks = RunnerCache(model)
    looks._graphs = 2  # which the CPU does not have
    batches = [batch_of(model, [observation(1)] * count) for count in (1, 2, 3)]
    one, two = looks(batches[0]), looks(batches[1])
    assert one is looks(batches[0]) and one is not two
    assert looks(batches[2]) is not one and looks(batches[0]) is one  # the second made room
    assert looks(batches[1]) is not two and len(looks._captured) == 2


class Barrier(TorchDispatchMode):
    """No tensor's numbers come to Python, and none of Python's become a tensor: what a capture on a GPU refuses."""

    refused = ("aten._local_scalar_dense", "aten.lift_fresh", "aten.nonzero", "aten.masked_select", "aten.equal")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        crosses = str(func).startswith(self.refused) and not ("lift" in str(func) and not args[0].numel())  # no bytes
        if str(func).startswith("aten.index.") and any(one is not None and one.dtype == torch.bool for one in args[1]):
            crosses = True  # how many are true decides the shape
        if crosses:
            raise AssertionError(f"{func} goes between host and device")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("seeing", ["plain", "fused", "film"])
@pytest.mark.parametrize("head", HEADS)
def test_nothing_goes_between_host_and_device(head, seeing, monkeypatch) -> None:
    fields = dict(image_size=32, patch_size=8, embed_dim=16, depth=1, num_heads=2, mlp_dim=32)
    encoder = new_encoder(fields)
    options = HEADS[head]
    if seeing == "fused":
        encoder = vv.FusedEncoder([encoder, new_encoder(fields)])
    elif seeing == "film":
        add_film(encoder, 32)
        options = {"style": "openvla_oft", "end_id": 3} if head == "parallel" else options
    model = made(head, encoder=encoder, head_options=options)
    plain, batch = PolicyRunner(model), batch_of(model)
    with torch.no_grad():
        plain.encode(batch)
        plain.prefill()
        expected = plain.decode()
        monkeypatch.setattr(import_utils, "is_cuda_stream_capturing", lambda: True)
        monkeypatch.delattr(torch, "from_numpy")
        with Barrier():
            plain.encode(batch)
            plain.prefill()
            found = plain.decode()
            for crossing in (lambda: bool(found.any()), lambda: found.new_tensor([1.0]), lambda: found[found > 0]):
                with pytest.raises(AssertionError, match="between host and device"):
                    crossing()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="this PyTorch has no MKL")
@pytest.mark.parametrize("head", HEADS)
def test_a_packed_policy_acts_the_same_at_its_shape_and_at_others(head) -> None:
    policy = VLAPolicy(made(head))
    packed = copy.deepcopy(policy)
    for wrong in ([], [observation(1, "")]):
        with pytest.raises(ValueError, match="there are no observations|the task in words"):
            packed.pack(wrong)
    assert not any(isinstance(part, PackedLinear) for part in packed.model.modules())  # nothing is half packed
    packed.pack(BOTH)
    decoder = packed.model.plain_vlm.get_decoder()
    assert isinstance(decoder.layers[1].mlp.down_proj, PackedLinear)
    if head == "flow":
        assert not isinstance(packed.model.head.state_in, PackedLinear)  # two rows
    for seen in (BOTH, [observation(9)], [observation(3), observation(4, "open drawer")]):
        np.testing.assert_allclose(packed.act(seen).values, policy.act(seen).values, rtol=0, atol=1e-5)


def test_graphs_that_cannot_be_are_refused() -> None:
    with pytest.raises(
        ValueError, match="^CUDA graphs need a policy on a CUDA device, but this one is on cpu: set graphs"
    ):
        VLAPolicy(made("parallel"), graphs=4)
    with pytest.raises(ValueError, match="graphs is -1: expected"):
        VLAPolicy(made("parallel"), graphs=-1)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("head", HEADS)
def test_graphs_give_the_same_actions(head) -> None:
    model = made(head).to("cuda")
    plain, graphed = VLAPolicy(model), VLAPolicy(model, graphs=2)
    for seen in (BOTH, [observation(9)], BOTH[::-1], [observation(3), observation(4)], [observation(2)] * 3):
        np.testing.assert_allclose(graphed.act(seen).values, plain.act(seen).values, rtol=0, atol=1e-5)
