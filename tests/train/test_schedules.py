"""What a self-supervised run changes over time and layers: schedules, the teacher's average, rates of layers."""

import copy
import math
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from support.processes import run_together
from torch import Tensor, nn

import vlm_vision as vv
from vlm_vision.new_models import new_encoder
from vlm_vision.objectives.dino import DinoHead
from vlm_vision.train.optim.ema import EmaTeacher
from vlm_vision.train.optim.layer_decay import layer_groups
from vlm_vision.train.optim.schedules import GroupSchedule, cosine, linear


def test_a_cosine_passes_through_its_landmarks():
    value = partial(cosine, start=4e-3, end=1e-6, steps=110, warmup_steps=10, warmup_start=1e-5)
    assert value(0) == 1e-5 and value(10) == 4e-3 and value(110) == value(1000) == 1e-6
    assert value(5) == pytest.approx((1e-5 + 4e-3) / 2) and value(60) == pytest.approx((4e-3 + 1e-6) / 2)
    assert value(35) == pytest.approx(1e-6 + (4e-3 - 1e-6) * (1 + math.sqrt(0.5)) / 2)
    momentum = [cosine(step, start=0.992, end=1.0, steps=50) for step in range(60)]
    assert momentum == sorted(momentum) and momentum[0] == 0.992 and momentum[50:] == [1.0] * 10


def test_it_is_the_schedule_of_mae_in_epochs():
    """adjust_learning_rate of facebookresearch/mae: linear from 0, half a cosine to min_lr."""
    lr, least, warmup, epochs, per_epoch = 1.5e-4, 1e-6, 4, 20, 7
    for step in range(per_epoch * epochs):
        epoch = step / per_epoch
        wanted = lr * epoch / warmup
        if epoch >= warmup:
            wanted = least + (lr - least) * 0.5 * (1 + math.cos(math.pi * (epoch - warmup) / (epochs - warmup)))
        found = cosine(step, start=lr, end=least, steps=epochs * per_epoch, warmup_steps=warmup * per_epoch)
        assert found == pytest.approx(wanted, rel=1e-12)


def test_a_line_goes_up_and_stays():
    found = [linear(step, start=0.04, end=0.07, steps=3) for step in range(5)]
    assert found == pytest.approx([0.04, 0.05, 0.06, 0.07, 0.07])
    assert linear(0, start=0.0, end=5e-5, steps=0) == 5e-5


def test_a_warm_up_longer_than_the_run_is_said():
    with pytest.raises(ValueError, match="warmup_steps is 11, more than the 10 steps"):
        cosine(0, start=1.0, end=0.0, steps=10, warmup_steps=11)


def scheduled() -> tuple[list[nn.Parameter], torch.optim.Optimizer, GroupSchedule]:
    weights = [nn.Parameter(torch.ones(2)) for _ in range(3)]
    optimizer = torch.optim.AdamW(
        [
            {"params": weights[:1], "lr": 0.1, "weight_decay": 0.04},
            {"params": weights[1:2], "lr": 0.01, "weight_decay": 0.0},
            {"params": weights[2:], "lr": 0.1, "weight_decay": 0.04, "frozen_steps": 3},
        ]
    )
    schedule = GroupSchedule(
        optimizer,
        lr=partial(cosine, start=1.0, end=0.1, steps=8, warmup_steps=2),
        weight_decay=partial(cosine, start=0.04, end=0.4, steps=8),
    )
    return weights, optimizer, schedule


def groups_of(optimizer: torch.optim.Optimizer) -> list[tuple[float, float]]:
    return [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups]


def take(weights: list[nn.Parameter], optimizer: torch.optim.Optimizer, schedule: GroupSchedule) -> None:
    sum((weight.square().sum() for weight in weights), torch.zeros(())).backward()
    optimizer.step()
    optimizer.zero_grad()
    schedule.step()


def test_groups_keep_their_own_rates_and_the_last_layer_waits():
    weights, optimizer, schedule = scheduled()
    for step in range(10):
        factor = cosine(step, start=1.0, end=0.1, steps=8, warmup_steps=2)
        decay = cosine(step, start=0.04, end=0.4, steps=8)
        last = 0.1 * factor if step >= 3 else 0.0
        assert groups_of(optimizer) == [(0.1 * factor, decay), (0.01 * factor, 0.0), (last, decay)]
        assert torch.equal(weights[2], torch.ones(2)) == (step <= 3)
        take(weights, optimizer, schedule)


@pytest.mark.parametrize("late", [False, True], ids=["schedule first", "optimizer first"])
def test_a_run_that_stops_goes_on_as_if_it_had_not(late):
    whole, first, second = scheduled(), scheduled(), scheduled()
    for _ in range(8):
        take(*whole)
    for _ in range(4):
        take(*first)
    assert first[2].state_dict() == {"step": 4}
    weights, optimizer, schedule = second
    for ours, theirs in zip(weights, first[0], strict=True):
        ours.data.copy_(theirs)
    optimizer.load_state_dict(copy.deepcopy(first[1].state_dict()))
    if late:
        schedule = GroupSchedule(optimizer, lr=schedule.lr, weight_decay=schedule.weight_decay)
    schedule.load_state_dict(first[2].state_dict())
    assert groups_of(optimizer) == groups_of(first[1])
    for _ in range(4):
        take(weights, optimizer, schedule)
    assert all(torch.equal(a, b) for a, b in zip(weights, whole[0], strict=True))


def student() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), DinoHead(6, 5, hidden_dim=7, bottleneck_dim=4))


def shaken(model: nn.Module, seed: int) -> None:
    """Other weights and buffers, the same in every process and however they are sharded."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in [*model.parameters(), *model.buffers()]:
            fresh = torch.randn(value.shape, generator=generator).to(value.dtype)
            value.copy_(
                distribute_tensor(fresh, value.device_mesh, value.placements) if isinstance(value, DTensor) else fresh
            )


MOMENTA = [0.9, 0.5, 0.99, 0.0, 0.996]


def closed_form() -> dict[str, Tensor]:
    """Of the parameters after the updates: sum of (1 - m_i) * product of later m_j, times student i; and last buffers."""
    model = student()
    weights = [math.prod(MOMENTA)]
    weights += [(1 - momentum) * math.prod(MOMENTA[i + 1 :]) for i, momentum in enumerate(MOMENTA)]
    states = [copy.deepcopy(model.state_dict())]
    for i in range(len(MOMENTA)):
        shaken(model, i)
        states.append(copy.deepcopy(model.state_dict()))
    names = dict(model.named_parameters())
    return {
        name: sum((w * state[name].double() for w, state in zip(weights, states, strict=True)), torch.zeros(())).float()
        if name in names
        else value
        for name, value in states[-1].items()
    }


def averaged(teacher: EmaTeacher, model: nn.Module) -> dict[str, Tensor]:
    from vlm_vision.train.loop.shard import gather_full_tensor

    for i, momentum in enumerate(MOMENTA):
        shaken(model, i)
        teacher.update(model, momentum)
    return {name: gather_full_tensor(value).clone() for name, value in teacher.module.state_dict().items()}


def test_the_average_is_the_closed_form():
    model = student()
    found, wanted = averaged(EmaTeacher(model), model), closed_form()
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(
            found[name], value, rtol=1e-6, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_momentum_one_keeps_the_teacher_and_zero_takes_the_student():
    model = student()
    teacher = EmaTeacher(model)
    before = copy.deepcopy(list(teacher.parameters()))
    shaken(model, 1)
    teacher.update(model, 1.0)
    assert all(torch.equal(a, b) for a, b in zip(teacher.parameters(), before, strict=True))
    teacher.update(torch.compile(model), 0.0)  # wrapped, never run
    for a, b in zip(teacher.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


def test_small_steps_are_not_lost_where_the_student_is_in_half_precision():
    model = nn.Linear(3, 3).bfloat16()
    teacher = EmaTeacher(model)
    assert teacher.module.weight.dtype == torch.float32
    first = teacher.module.weight.clone()
    with torch.no_grad():
        model.weight.add_(1.0)
    for _ in range(1000):
        teacher.update(model, 0.9999)
    wanted = first + (1 - 0.9999**1000) * (model.weight.float() - first)
    torch.testing.assert_close(teacher.module.weight, wanted, rtol=1e-3, atol=1e-3)


def test_a_teacher_has_no_gradients_and_stays_in_evaluation(encoder):
    model = nn.ModuleDict({"student": encoder, "teacher": EmaTeacher(encoder)}).train()
    assert model["student"].training and not any(part.training for part in model["teacher"].modules())
    out = model["teacher"](torch.randn(2, 3, 32, 32, requires_grad=True))
    assert isinstance(out, vv.VisionOutput) and not out.patch_tokens.requires_grad
    (model["student"](torch.randn(2, 3, 32, 32)).pooled.sum() + out.pooled.sum()).backward()
    model["teacher"].update(encoder, 0.9)
    assert all(w.grad is None and not w.requires_grad for w in model["teacher"].parameters())
    assert any(w.requires_grad for w in encoder.parameters())


def test_a_teachers_state_comes_back_bit_for_bit():
    model = student()
    teacher = EmaTeacher(model)
    shaken(model, 0)
    teacher.update(model, 0.7)
    again = EmaTeacher(model)
    again.load_state_dict(teacher.state_dict())
    for one in (teacher, again):
        shaken(model, 1)
        one.update(model, 0.3)
    ours, theirs = teacher.state_dict(), again.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_another_student_or_momentum_is_said():
    teacher = EmaTeacher(nn.Linear(3, 3))
    with pytest.raises(ValueError, match="momentum is 1.5, expected 0"):
        teacher.update(nn.Linear(3, 3), 1.5)
    for other in (nn.Linear(3, 4), nn.Linear(3, 3, bias=False)):
        with pytest.raises(ValueError, match="teacher and student differ at (bias|weight): update from the model"):
            teacher.update(other, 0.5)


@pytest.mark.parametrize("kind", ["copies", "parts"])
def test_a_wrapped_or_sharded_student_averages_the_same(apart, kind):
    for rank in range(2):
        found, wanted = apart[rank][kind], closed_form()
        assert found.keys() == wanted.keys()
        for name, value in wanted.items():
            torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-6)
        assert "differ at" in apart[rank]["half sharded"]


@pytest.fixture(scope="module")
def apart(tmp_path_factory) -> list[dict]:
    """What each of two processes finds."""
    folder = tmp_path_factory.mktemp("apart")
    run_together(in_each_process, folder, folder=folder)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def in_each_process(folder: Path) -> None:
    """In one of two processes."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.nn.parallel import DistributedDataParallel

    dist.init_process_group("gloo")
    mesh, done = init_device_mesh("cpu", (2,)), {}
    model = student()
    done["copies"] = averaged(EmaTeacher(model), DistributedDataParallel(model))
    model = student()
    teacher = EmaTeacher(model)
    for whole in (model, teacher.module):
        fully_shard(whole[0], mesh=mesh)
        fully_shard(whole, mesh=mesh)
    done["parts"] = averaged(teacher, model)
    try:
        EmaTeacher(student()).update(model, 0.5)
    except ValueError as error:
        done["half sharded"] = str(error)
    torch.save(done, folder / f"{dist.get_rank()}.pt")
    dist.destroy_process_group()


TOWERS = {
    "plain": dict(position_prefix=1),
    "registers": dict(num_registers=4, mask_token=True, layer_scale=1e-5, position="sincos2d"),
    "map": dict(class_token=False, pool="map", patch_norm=True, pre_norm=True, num_classes=5),
    "rotary": dict(position="rope2d", mlp="swiglu", norm="rms", pool_norm=True, final_norm=False, pool="mean"),
}


def tower(name: str) -> vv.Encoder:
    shape = dict(image_size=32, patch_size=8, embed_dim=32, depth=3, num_heads=4, mlp_dim=64)
    return new_encoder(shape | TOWERS[name])


@pytest.mark.parametrize("name", TOWERS)
def test_groups_hold_every_trainable_parameter_once_at_the_rate_of_its_layer(name):
    encoder = tower(name)
    model = encoder.model
    model.blocks[1].norm1.requires_grad_(False)
    groups = layer_groups(encoder, lr=0.1, weight_decay=0.04, decay=0.5, patch_embed=0.2)
    held = [id(weight) for group in groups for weight in group["params"]]
    assert len(held) == len(set(held))
    assert set(held) == {id(weight) for weight in encoder.parameters() if weight.requires_grad}
    of = {id(weight): group for group in groups for weight in group["params"]}
    for path, weight in model.named_parameters():
        if not weight.requires_grad:
            continue
        first = path.split(".")[0]
        after = first in ("norm", "pool", "pool_norm", "pool_head", "head")
        layer = 1 + int(path.split(".")[1]) if first == "blocks" else 4 if after else 0
        rate = 0.1 * 0.5 ** (4 - layer) * (0.2 if first == "patch_embed" else 1.0)
        plain = weight.ndim == 1 or path.endswith(("token", "registers", "table", "probe"))
        assert of[id(weight)]["lr"] == pytest.approx(rate), path
        assert of[id(weight)]["weight_decay"] == (0.0 if plain else 0.04), path
    torch.optim.AdamW(groups)


def test_a_decay_of_one_is_one_rate_and_the_model_in_the_encoder_is_the_same(encoder):
    groups = layer_groups(encoder, lr=0.1, weight_decay=0.04, decay=1.0)
    assert {group["lr"] for group in groups} == {0.1}
    assert str(layer_groups(encoder.model, lr=0.1, weight_decay=0.04, decay=1.0)) == str(groups)


def test_an_impossible_decay_and_a_frozen_model_are_said(encoder):
    for decay in (0.0, 1.1):
        with pytest.raises(ValueError, match=f"decay is {decay}, expected a factor"):
            layer_groups(encoder, lr=0.1, weight_decay=0.0, decay=decay)
    with pytest.raises(ValueError, match="nothing trains"):
        layer_groups(encoder.requires_grad_(False), lr=0.1, weight_decay=0.0, decay=0.9)
