"""Self-distillation: however a batch is shared, stopped and not, the parts of its loss, its teacher, for transformers."""

import csv
import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from support.two_processes import launch
from transformers import AutoModel

import vlm_vision as vv
from recipes import self_distill
from vlm_vision.data.images.batches import ImageDataset, collate
from vlm_vision.data.images.samples import read_samples
from vlm_vision.new_models import new_encoder
from vlm_vision.objectives.gram import gram_loss
from vlm_vision.objectives.ibot import ibot_loss
from vlm_vision.objectives.koleo import koleo_loss
from vlm_vision.objectives.sharpen import Center, sinkhorn_knopp
from vlm_vision.train.command import run_cli
from vlm_vision.train.loop.step import Step
from vlm_vision.train.tasks.self_distill import (
    BlockMaskSettings,
    SelfDistillation,
    masks_of,
    pairwise_dino_loss,
    student_of,
    teacher_of,
    tensors,
)

COLORS = {"red": (220, 30, 30), "green": (20, 180, 40), "blue": (30, 40, 230), "yellow": (240, 220, 20)}
FIELDS = dict(image_size=16, patch_size=4, embed_dim=32, depth=2, num_heads=2, mlp_dim=128, layer_scale=1.0)
TINY = f"""
student: {{fields: {json.dumps(FIELDS)}, crop_ratio: 1.0}}
crops: {{small: 2, small_size: 8}}
heads: {{prototypes: 24, hidden_dim: 32, bottleneck_dim: 16}}
temperature_steps: 4
momentum: [0.8, 1.0]
steps: 8
batch_size: 8
micro_batch_size: 8
base_lr: 0.05
warmup_steps: 2
frozen_steps: 2
eval_neighbors: 12
log_every: 3
tracker: none
"""
OWN = ["--patch_heads", json.dumps({"prototypes": 20, "hidden_dim": 16, "bottleneck_dim": 8})]
CENTER = ["--teacher", "center", *OWN]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Sixteen images of two colors, side by side, labeled by the left one."""
    folder = tmp_path_factory.mktemp("pictures")
    rows = []
    for left, value in COLORS.items():
        for right, other in COLORS.items():
            image = Image.new("RGB", (24, 20), value)
            image.paste(other, (14, 0, 24, 20))
            image.save(folder / f"{left}-{right}.png")
            rows.append({"picture": f"{left}-{right}.png", "label": left})
    with (folder / "train.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["picture", "label"])
        writer.writeheader()
        writer.writerows(rows)
    (folder / "tiny.yaml").write_text(TINY)
    return folder


def arguments(folder: Path, out: Path | str, *changes: str) -> list[str]:
    data = ["--data.train", f"{folder}/train.csv", "--data.test", f"{folder}/train.csv"]
    return ["--config", f"{folder}/tiny.yaml", *data, "--out", str(folder / out), *changes]


def trained(folder: Path, out: Path | str, *changes: str) -> dict:
    return self_distill.main(self_distill.parse(arguments(folder, out, *changes)))


def made(folder: Path, *changes: str) -> tuple[SelfDistillation, dict]:
    """A model whose teacher differs from the student, and a batch of all images."""
    config = self_distill.parse(arguments(folder, "none", *changes))
    torch.manual_seed(0)
    model = self_distill.model_of(config)
    for weight in model.student.parameters():
        weight.data += 0.05 * torch.randn_like(weight)
    images = ImageDataset(read_samples(config.data.train), self_distill.views_of(config, model.student.encoder))
    drawn = collate([images[row] for row in range(16)])
    return model, tensors(drawn, model.student.encoder, 0.05, config.masks)


SHARED = {
    "copies": [],
    "parts": ["--sharding", "fsdp2", "--checkpoint_every", "3", "--eval_every", "3"],
    "parts by center": [*CENTER, "--sharding", "fsdp2", "--gradient_checkpointing", "true", "--checkpoint_every", "3"],
}
"""What two processes do, each with half of every batch."""


@pytest.fixture(scope="module")
def together(folder) -> dict[str, dict]:
    runs = {name: arguments(folder, f"two {name}", "--micro_batch_size", "4", *SHARED[name]) for name in SHARED}
    runs |= {f"{name}, again": runs[name] for name in ("parts", "parts by center")}  # from their last checkpoints
    half = ["--sharding", "fsdp2", "--mixed_precision", "bf16", "--eval_every", "4", "--micro_batch_size", "4"]
    runs["half parts"] = arguments(folder, "two half parts", *half)
    done = launch(folder, "two", [{"recipe": "self_distill", "arguments": given} for given in runs.values()])
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(zip(runs, json.loads((folder / "two.out.json").read_text()), strict=True))


@pytest.fixture(scope="module")
def alone(folder) -> dict[str, dict]:
    return {"sinkhorn": trained(folder, "one sinkhorn"), "centre": trained(folder, "one center", *CENTER)}


@pytest.mark.parametrize("name", SHARED)
def test_two_processes_equal_one(folder, together, alone, name):
    kind = "centre" if "centre" in name else "sinkhorn"
    assert together[name]["processes"] == 2 and alone[kind]["processes"] == 1
    torch.testing.assert_close(together[name]["losses"], alone[kind]["losses"], rtol=1e-4, atol=1e-5)
    ours, theirs = (vv.load(folder / out / "model").state_dict() for out in (f"two {name}", f"one {kind}"))
    for key, value in theirs.items():
        torch.testing.assert_close(ours[key], value, rtol=1e-2, atol=2e-3, msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.parametrize("name", ["parts", "parts by center"])
def test_a_run_in_parts_goes_on_as_if_it_was_not_stopped(together, name):
    first, again = together[name], together[f"{name}, again"]
    assert (first["first_step"], again["first_step"]) == (0, 6) and again["losses"] == first["losses"][6:]


def test_half_precision_follows_the_same_curve(together, alone):
    half, whole = together["half parts"]["losses"], alone["sinkhorn"]["losses"]
    assert half != whole
    torch.testing.assert_close(half, whole, rtol=0.03, atol=0.03)


@pytest.mark.parametrize("changes", [[], CENTER], ids=["sinkhorn", "centre"])
def test_a_run_that_was_stopped_goes_on_as_if_it_was_not(folder, tmp_path, monkeypatch, changes):
    changes = [*changes, "--checkpoint_every", "3", "--micro_batch_size", "4", "--frozen_steps", "5"]
    whole = trained(folder, tmp_path / "whole", *changes)
    taken = Step.__call__

    def stopped(self, index, micro_batches):
        if index == 5:
            raise KeyboardInterrupt
        return taken(self, index, micro_batches)

    monkeypatch.setattr(Step, "__call__", stopped)
    with pytest.raises(KeyboardInterrupt):
        trained(folder, tmp_path / "stopped", *changes)
    monkeypatch.undo()
    rest = trained(folder, tmp_path / "stopped", *changes, "--eval_every", "2")
    assert rest["first_step"] == 3 and rest["losses"] == whole["losses"][3:]
    ours, theirs = (vv.load(tmp_path / name / "model").state_dict() for name in ("stopped", "whole"))
    assert all(torch.equal(ours[key], value) for key, value in theirs.items())


@pytest.mark.parametrize("changes", [[], OWN], ids=["one head", "two heads"])
@torch.no_grad()
def test_the_loss_is_that_of_its_parts_by_hand(folder, changes):
    model, batch = made(folder, *changes)
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
    model, batch = made(folder)
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


def test_gram_anchoring_holds_to_an_earlier_teacher(folder, alone):
    weights = ["--weights.gram", "2", "--gram.teacher", f"{folder}/one sinkhorn/model"]
    model, batch = made(folder, *weights)
    with torch.no_grad():
        model(batch["large"], 0.05, small=batch["small"], mask=batch["mask"])
        earlier = vv.load(folder / "one sinkhorn" / "model", tap=vv.Tap())
        seen = model.student.encoder(batch["large"].flatten(0, 1), mask=batch["mask"].flatten(0, 1))
        wanted = gram_loss(seen.patch_tokens, earlier(batch["large"].flatten(0, 1)).patch_tokens)
    torch.testing.assert_close(model.loss_parts["gram"], wanted, rtol=1e-4, atol=1e-6)
    assert model.train().earlier is not None and not any(
        one.requires_grad for one in model.get_submodule("earlier").parameters()
    )
    assert len(trained(folder, "anchored", *weights, "--steps", "2")["losses"]) == 2


def test_masks_are_an_image_s_own_and_hide_their_share():
    masks = masks_of(range(300), (8, 8), BlockMaskSettings(share=0.5, ratios=(0.25, 0.5)))
    assert masks.shape == (2, 300, 64)
    assert torch.equal(masks_of([7], (8, 8), BlockMaskSettings(ratios=(0.25, 0.5)))[:, 0], masks[:, 7])
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
    trained(folder, "noted", "--steps", "4")
    lr = 0.05 * (8 / 1024) ** 0.5
    assert [step[0][0] for step in seen] == pytest.approx([0, 0, lr, lr / 2])
    assert [step[1][0] for step in seen] == pytest.approx([lr / 2, lr, lr, lr / 2])
    decay = [0.4 - 0.36 * (1 + c) / 2 for c in (1, 0.5**0.5, 0, -(0.5**0.5))]
    assert [step[1][1] for step in seen] == pytest.approx(decay) and not any(step[2][1] for step in seen)


DINO = ["--weights", '{"dino": 1.0, "ibot": 0.0, "koleo": 0.0}']
LAYOUTS = {
    "Dinov2Model": [],
    "Dinov2WithRegistersModel": ["--student.fields", json.dumps(FIELDS | {"num_registers": 2, "drop_path": 0.1})],
    "ViTModel": [*DINO, "--student.fields", json.dumps(FIELDS | {"layer_scale": None})],
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_transformers_loads_the_teacher_with_equal_features(folder, tmp_path, name):
    trained(folder, tmp_path, "--steps", "3", *LAYOUTS[name])
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
    found = trained(folder, tmp_path, *changes)
    _, batch = made(folder)
    with torch.no_grad():
        logits = teacher_of(kept[0])(batch["large"], mask=None, at=None).crops.flatten(0, 1)
    if kept[0].centers is not None:
        logits = kept[0].centers["crops"](logits, 0.04)
    used = len(logits.argmax(dim=-1).unique())  # of 24, by 32 crops
    assert used == 1 if sharpen == "still center" else used >= 5
    told = json.loads((tmp_path / "metrics.json").read_text())
    assert told == {name: value for name, value in found.items() if name != "losses"}
    assert set(told["neighbors"]) == {"encoder", "random weights", "pixels", "most frequent class"}


def test_bad_images_are_counted_and_the_run_goes_on(folder, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no image")
    (tmp_path / "train.csv").write_text((folder / "train.csv").read_text() + f"{tmp_path}/bad.png,red\n")
    data = ["--data.train", f"{tmp_path}/train.csv", "--data.images", str(folder)]
    found = trained(folder, tmp_path / "run", *data)
    assert found["skipped"] > 0 and len(found["losses"]) == 8


def changed(**fields) -> list[str]:
    return ["--student.fields", json.dumps(FIELDS | fields)]


WRONG = [
    (["--student.fields", "{}"], "there is no student: give student.fields"),
    (changed(width=3), "width, which is no field of student.fields"),
    (changed(class_token=False, position_prefix=0, pool="mean"), "leave out the class token or the mask token"),
    (changed(pre_norm=True), "this layout cannot express the architecture"),
    (changed(image_size=18), "crops of 18 pixels are no whole number of patches of 4: choose 16 or 20"),
    (["--crops.small_size", "6"], "crops of 6 pixels are no whole number of patches of 4: choose 4 or 8"),
    (["--crops.small", "-1"], "crops.small is -1: expected at least 0"),
    (["--weights.ibot", "-1"], "expected weights of at least 0"),
    (["--masks.share", "2"], "expected shares from 0 to 1"),
    (["--heads.prototypes", "0"], "expected whole numbers of at least 1"),
    (["--temperature", "[0, 0.1]"], "expected two positive numbers"),
    (["--momentum", "[0.9, 2]"], "expected two numbers from 0 to 1"),
    (["--weights.gram", "1"], "weights.gram and gram.teacher belong together"),
    (["--layer_decay", "2"], "decay is 2.0, expected a factor"),
    (["--batch_size", "40", "--micro_batch_size", "40"], "batch_size 40 is larger than the data set of 16 records"),
]


@pytest.mark.parametrize(("change", "says"), WRONG)
def test_wrong_settings_are_one_sentence(folder, tmp_path, capsys, change, says):
    with pytest.raises(SystemExit, match="2"):
        run_cli("recipes.self_distill", lambda: trained(folder, tmp_path / "run", *change))
    told = capsys.readouterr().err.strip()
    assert says in told and "\n" not in told
    assert not (tmp_path / "run" / "model").exists()


def test_weights_choose_the_parts(folder):
    model, batch = made(folder, *DINO)
    model(batch["large"], 0.05, small=batch["small"])
    assert set(model.loss_parts) == {"dino"} and model.student.patch_head is None
