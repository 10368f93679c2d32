"""Self-distillation: the parts of its loss, its teacher, its rates, and what it saves for transformers."""

import json
from pathlib import Path

import pytest
import torch
from support.recipe_records.self_distill import DINO, FIELDS, OWN, RECIPE, model_and_batch
from transformers import AutoModel

import vlm_vision as vv
from recipes import self_distill
from vlm_vision.new_models import new_encoder
from vlm_vision.objectives.gram import gram_loss
from vlm_vision.objectives.ibot import ibot_loss
from vlm_vision.objectives.koleo import koleo_loss
from vlm_vision.objectives.sharpen import Center, sinkhorn_knopp
from vlm_vision.train.loop.step import Step
from vlm_vision.train.tasks.self_distill import (
    BlockMaskSettings,
    pairwise_dino_loss,
    seeded_masks,
    student_of,
    teacher_of,
)

train = RECIPE.train


@pytest.fixture(scope="module")
def folder(bench) -> Path:
    return bench("self_distill").folder


@pytest.mark.parametrize("changes", [[], OWN], ids=["one head", "two heads"])
@torch.no_grad()
def test_the_loss_is_that_of_its_parts_by_hand(folder, changes):
    model, batch = model_and_batch(folder, *changes)
    large, small, mask = batch["large"], batch["small"], batch["mask"]
    found = model(large, 0.05, small=small, mask=mask)
    student, teacher = model.student, teacher_of(model)
    own = {net: net.patch_head or net.head for net in (student, teacher)}
    seen = [student.encoder(view, mask=masked) for view, masked in zip(large, mask, strict=True)]
    told = [teacher.encoder(view) for view in large]
    wanted = sinkhorn_knopp(torch.cat([teacher.head(out.cls_token) for out in told]), 0.05).chunk(2)
    logits = [student.head(out.cls_token) for out in seen] + [
        student.head(student.encoder(view).cls_token) for view in small
    ]
    pairs = [(s, t) for s in range(4) for t in range(2) if s != t]
    crosses = [-(wanted[t] * (logits[s] / 0.1).log_softmax(dim=-1)).sum(dim=-1).mean() for s, t in pairs]
    dino = torch.stack(crosses).mean()
    patches = [torch.cat([out.patch_tokens[m] for out, m in zip(outs, mask, strict=True)]) for outs in (seen, told)]
    chosen = sinkhorn_knopp(own[teacher](patches[1]), 0.05)
    ibot = ibot_loss(own[student](patches[0]), chosen, mask.flatten(0, 1))
    koleo = koleo_loss(seen[0].cls_token) + koleo_loss(seen[1].cls_token)
    for name, part in {"dino": dino, "ibot": ibot, "koleo": koleo}.items():
        torch.testing.assert_close(model.loss_parts[name], part, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found, dino + ibot + 0.1 * koleo, rtol=1e-4, atol=1e-5)


def test_pairs_without_small_crops_are_those_of_the_large_ones():
    student, teacher = torch.randn(2, 3, 5), torch.randn(2, 3, 5).softmax(dim=-1)
    crosses = [-(teacher[1 - i] * (student[i] / 0.1).log_softmax(dim=-1)).sum(dim=-1).mean() for i in range(2)]
    torch.testing.assert_close(pairwise_dino_loss(student, teacher), torch.stack(crosses).mean())


def test_the_teacher_has_no_gradient_and_moves_by_the_closed_form(folder):
    model, batch = model_and_batch(folder)
    model.train()
    model(batch["large"], 0.05, small=batch["small"], mask=batch["mask"]).backward()
    assert all(weight.grad is None for weight in model.teacher.parameters())
    assert all(weight.grad is not None for weight in model.student.parameters())
    start = {name: value.clone() for name, value in model.teacher.module.named_parameters()}
    student = dict(student_of(model).named_parameters())
    model.teacher.update(model.student, 0.9)
    model.teacher.update(model.student, 0.8)
    for name, value in teacher_of(model).named_parameters():
        torch.testing.assert_close(value.data, 0.72 * start[name] + 0.28 * student[name].data)


def test_gram_anchoring_holds_to_an_earlier_teacher(folder):
    weights = ["--weights.gram", "2", "--gram.teacher", f"{folder}/done sinkhorn/model"]
    model, batch = model_and_batch(folder, *weights)
    with torch.no_grad():
        model(batch["large"], 0.05, small=batch["small"], mask=batch["mask"])
        earlier = vv.load(folder / "done sinkhorn" / "model", tap=vv.Tap())
        seen = model.student.encoder(batch["large"].flatten(0, 1), mask=batch["mask"].flatten(0, 1))
        wanted = gram_loss(seen.patch_tokens, earlier(batch["large"].flatten(0, 1)).patch_tokens)
    torch.testing.assert_close(model.loss_parts["gram"], wanted, rtol=1e-4, atol=1e-6)
    assert model.train().earlier is not None and not any(
        one.requires_grad for one in model.get_submodule("earlier").parameters()
    )
    assert len(train(folder, "anchored", *weights, "--steps", "2")["losses"]) == 2


def test_masks_are_an_image_s_own_and_hide_their_share():
    masks = seeded_masks(range(300), (8, 8), BlockMaskSettings(share=0.5, ratios=(0.25, 0.5)))
    assert masks.shape == (2, 300, 64)
    assert torch.equal(seeded_masks([7], (8, 8), BlockMaskSettings(ratios=(0.25, 0.5)))[:, 0], masks[:, 7])
    assert not torch.equal(masks[0], masks[1])
    counts = masks.sum(dim=-1)
    assert ((counts == 0) | ((counts >= 16) & (counts <= 32))).all()
    assert (counts > 0).float().mean().item() == pytest.approx(0.5, abs=0.08)  # four deviations
    assert counts[counts > 0].float().mean().item() == pytest.approx(24, abs=1)


def test_rates_and_weight_decay_are_functions_of_the_step(folder, monkeypatch):
    seen, taken = [], Step.__call__

    def noted(self, index, micro_batches):
        head = self.model.student.head
        of = {id(weight): group for group in self.optimizer.param_groups for weight in group["params"]}
        weights = (head.last_layer.parametrizations.weight.original1, head.mlp[0].weight, head.mlp[0].bias)
        seen.append([(of[id(weight)]["lr"], of[id(weight)]["weight_decay"]) for weight in weights])
        before = weights[0].detach().clone()
        found = taken(self, index, micro_batches)
        assert torch.equal(before, weights[0]) == (index < 2)
        return found

    monkeypatch.setattr(Step, "__call__", noted)
    train(folder, "noted", "--steps", "4")
    lr = 0.05 * (8 / 1024) ** 0.5
    assert [step[0][0] for step in seen] == pytest.approx([0, 0, lr, lr / 2])
    assert [step[1][0] for step in seen] == pytest.approx([lr / 2, lr, lr, lr / 2])
    decay = [0.4 - 0.36 * (1 + c) / 2 for c in (1, 0.5**0.5, 0, -(0.5**0.5))]
    assert [step[1][1] for step in seen] == pytest.approx(decay) and not any(step[2][1] for step in seen)


LAYOUTS = {
    "Dinov2Model": [],
    "Dinov2WithRegistersModel": ["--student.fields", json.dumps(FIELDS | {"num_registers": 2, "drop_path": 0.1})],
    "ViTModel": [*DINO, "--student.fields", json.dumps(FIELDS | {"layer_scale": None})],
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_transformers_loads_the_teacher_with_equal_features(folder, tmp_path, name):
    train(folder, tmp_path, "--steps", "3", *LAYOUTS[name])
    theirs, info = AutoModel.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert type(theirs).__name__ == name
    assert not [key for key in info["missing_keys"] if "pooler" not in key] and not info["unexpected_keys"]
    ours, pixels = vv.load(tmp_path / "model"), torch.randn(2, 3, 16, 16)
    assert isinstance(ours, vv.Encoder)
    with torch.no_grad():
        out, hidden = ours(pixels), theirs.eval()(pixels).last_hidden_state
    torch.testing.assert_close(out.patch_tokens, hidden[:, ours.config.num_prefix_tokens :], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(out.cls_token, hidden[:, 0], rtol=1e-4, atol=1e-5)
    assert ours.preprocess.mean == (0.485, 0.456, 0.406) and ours.preprocess.output_size == (16, 16)


def test_uniform_drop_path_drops_every_block_at_the_same_rate():
    fields = FIELDS | {"depth": 3, "drop_path": 0.3}
    models = [new_encoder(fields | {"drop_path_ramp": ramp}).model for ramp in (True, False)]
    rates = [[model.get_submodule(f"blocks.{i}.residual1").drop_path for i in range(3)] for model in models]
    assert rates[0] == pytest.approx([0, 0.15, 0.3]) and rates[1] == pytest.approx([0.3] * 3)


LONGER = ["--steps", "40", "--batch_size", "16", "--micro_batch_size", "16", "--base_lr", "0.01"]


@pytest.mark.parametrize("sharpen", ["sinkhorn", "center", "still center"])
def test_the_teacher_collapses_without_sharpening_alone(folder, tmp_path, sharpen, monkeypatch):
    kept, made_of = [], self_distill.model_of
    monkeypatch.setattr(self_distill, "model_of", lambda config: kept.append(made_of(config)) or kept[-1])
    if sharpen == "still center":
        monkeypatch.setattr(Center, "update", lambda self, logits: None)
    changes = [*LONGER, "--temperature", "[0.04, 0.04]", "--teacher", sharpen.removeprefix("still ")]
    found = train(folder, tmp_path, *changes)
    _, batch = model_and_batch(folder)
    with torch.no_grad():
        logits = teacher_of(kept[0])(batch["large"], mask=None, at=None).crops.flatten(0, 1)
    if kept[0].centers is not None:
        logits = kept[0].centers["crops"](logits, 0.04)
    used = len(logits.argmax(dim=-1).unique())  # of 24, by 32 crops
    assert used == 1 if sharpen == "still center" else used >= 5
    told = json.loads((tmp_path / "metrics.json").read_text())
    assert told == {name: value for name, value in found.items() if name != "losses"}
    assert set(told["neighbors"]) == {"encoder", "random weights", "pixels", "most frequent class"}


def test_weights_choose_the_parts(folder):
    model, batch = model_and_batch(folder, *DINO)
    model(batch["large"], 0.05, small=batch["small"])
    assert set(model.loss_parts) == {"dino"} and model.student.patch_head is None
