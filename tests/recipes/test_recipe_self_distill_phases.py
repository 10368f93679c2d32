"""Self-distillation in phases: crops packed or not, runs that start from others, Gram anchoring that is refreshed."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from support.recipe_records.self_distill import CENTER, DINO, FIELDS, LARGER, OWN, RECIPE, model_and_batch

import vlm_vision as vv
from recipes import self_distill
from vlm_vision.data.images.batches import ImageDataset, collate
from vlm_vision.data.images.samples import read_samples
from vlm_vision.objectives.gram import gram_loss
from vlm_vision.train.loop.step import Step
from vlm_vision.train.tasks.self_distill import SelfDistillation, gram_teacher, pairwise_dino_loss, teacher_of, tensors
from vlm_vision.train.tasks.self_distill_gram import GramSettings, on_grid
from vlm_vision.train.tasks.self_distill_networks import load_networks, save_networks

train = RECIPE.train


@pytest.fixture(scope="module")
def folder(bench) -> Path:
    return bench("self_distill").folder


@pytest.fixture(scope="module")
def finished(folder) -> dict[str, str]:
    """Folders of finished runs, by how the teacher's logits are sharpened."""
    return {name: f"{folder}/done {name}" for name in ("sinkhorn", "center")}


CONFIGS = Path(__file__).resolve().parents[2] / "recipes" / "configs"
ROPE = FIELDS | {"position": "rope2d", "num_registers": 2, "key_bias": False, "norm_eps": 1e-5}


def gram_of(finished, *changes: str) -> list[str]:
    return ["--weights.gram", "2", "--gram.teacher", f"{finished['sinkhorn']}/model", *changes]


KINDS = {
    "learned positions": [],
    "registers": ["--student.fields", json.dumps(FIELDS | {"num_registers": 2})],
    "rotary positions": ["--student.fields", json.dumps(ROPE)],
    "two heads": OWN,
    "no small crops": ["--crops.small", "0"],
    "no masks": DINO,
}


@pytest.mark.parametrize("again", [False, True], ids=["kept", "computed again"])
@pytest.mark.parametrize("kind", KINDS)
def test_packed_crops_give_the_same_loss_and_gradients(folder, kind, again):
    model, batch = model_and_batch(folder, *KINDS[kind])
    model.train()
    model.student.encoder.model.gradient_checkpointing = again

    def learned(pack: bool) -> dict[str, torch.Tensor]:
        model.zero_grad()
        model.student.pack = pack
        mask = None if kind == "no masks" else batch["mask"]
        loss = model(batch["large"], 0.05, small=batch.get("small"), mask=mask)
        loss.backward()
        found = {
            name: weight.grad.clone() for name, weight in model.student.named_parameters() if weight.grad is not None
        }
        return found | {"the loss": loss.detach()} | model.loss_parts

    apart, packed = learned(False), learned(True)
    assert apart.keys() == packed.keys() and len(apart) > 40
    for name, value in apart.items():
        torch.testing.assert_close(
            packed[name], value, rtol=1e-4, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_a_run_that_starts_has_the_state_of_the_run_before(folder, finished):
    for name, changes in {"sinkhorn": [], "center": CENTER}.items():
        config = self_distill.parse(RECIPE.arguments(folder, "none", *changes))
        model = self_distill.model_of(config)
        load_networks(model, finished[name])
        left = load_file(f"{finished[name]}/networks.safetensors")
        assert left.keys() == model.state_dict().keys()
        assert all(torch.equal(value, left[key]) for key, value in model.state_dict().items())
        kept = vv.load(f"{finished[name]}/model").state_dict()
        ours = teacher_of(model).encoder.state_dict()
        assert kept.keys() == ours.keys() and all(torch.equal(value, ours[key]) for key, value in kept.items())
        assert (name == "center") == any(value.any() for key, value in left.items() if key.startswith("centers"))
        drawn = ImageDataset(read_samples(config.data.train), self_distill.views_of(config, model.student.encoder))
        rows: list = []
        taken = ImageDataset.__getitem__

        def noted(self, draw, rows=rows, taken=taken):
            rows.append(draw)
            return taken(self, draw)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ImageDataset, "__getitem__", noted)
            found = train(folder, f"more {name}", *changes, "--start", finished[name])
        batch = tensors(collate([drawn[row] for row in rows[:8]]), model.student.encoder, 0.04, config.masks)
        wanted = model.train()(batch["large"], 0.04, small=batch["small"], mask=batch["mask"])
        assert found["losses"][0] == pytest.approx(wanted.item(), abs=1e-6)


def test_a_student_may_start_as_the_teacher(folder, finished):
    model = self_distill.model_of(self_distill.parse(RECIPE.arguments(folder, "none")))
    load_networks(model, finished["sinkhorn"], student="teacher")
    teacher = teacher_of(model).state_dict()
    assert all(torch.equal(value, teacher[name]) for name, value in model.student.state_dict().items())
    assert any(
        not torch.equal(teacher[key.removeprefix("student.")], value) for key, value in left_by(finished).items()
    )


def left_by(finished) -> dict[str, torch.Tensor]:
    left = load_file(f"{finished['sinkhorn']}/networks.safetensors")
    return {key: value for key, value in left.items() if key.startswith("student.")}


def test_larger_images_start_with_positions_resized(folder, finished):
    config = self_distill.parse(RECIPE.arguments(folder, "none", "--student.fields", LARGER))
    model, before = self_distill.model_of(config), vv.load(f"{finished['sinkhorn']}/model")
    load_networks(model, finished["sinkhorn"])
    after, pixels = teacher_of(model).encoder, torch.randn(2, 3, 24, 24)
    assert after.config.grid == (6, 6) and after.model.position.table.shape[1] == 37
    with torch.no_grad():
        torch.testing.assert_close(after(pixels).patch_tokens, before(pixels).patch_tokens, rtol=1e-5, atol=1e-6)
    larger = ["--student.fields", LARGER, "--start", finished["sinkhorn"], "--steps", "2", "--crops.small_size", "12"]
    assert len(train(folder, "larger", *larger)["losses"]) == 2
    assert vv.load(folder / "larger" / "model").config.image_size == (24, 24)


def test_rotary_positions_need_nothing_and_load_as_dinov3(folder, tmp_path):
    from transformers import AutoModel

    fields, larger = json.dumps(ROPE), json.dumps(ROPE | {"image_size": 24})
    train(folder, tmp_path / "small", "--student.fields", fields, "--steps", "2")
    train(folder, tmp_path / "large", "--student.fields", larger, "--steps", "2", "--start", str(tmp_path / "small"))
    theirs, ours = AutoModel.from_pretrained(tmp_path / "large" / "model"), vv.load(tmp_path / "large" / "model")
    assert type(theirs).__name__ == "DINOv3ViTModel"
    pixels = torch.randn(2, 3, 24, 24)
    with torch.no_grad():
        hidden = theirs.eval()(pixels).last_hidden_state
        torch.testing.assert_close(ours(pixels).patch_tokens, hidden[:, 3:], rtol=1e-4, atol=1e-5)


def test_a_file_of_networks_cut_short_is_one_sentence(folder, finished, tmp_path):
    whole = (folder / "done sinkhorn" / "networks.safetensors").read_bytes()
    (tmp_path / "networks.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="is not a complete safetensors file"):
        load_networks(self_distill.model_of(self_distill.parse(RECIPE.arguments(folder, "none"))), tmp_path)


def test_the_earlier_teacher_becomes_the_teacher_when_it_is_due(folder, finished, tmp_path, monkeypatch):
    taken, after = Step.__call__, []

    def noted(self, index, micro_batches):
        earlier, teacher = gram_teacher(self.model), teacher_of(self.model).encoder
        after.append([{name: one.clone() for name, one in each.state_dict().items()} for each in (earlier, teacher)])
        return taken(self, index, micro_batches)

    monkeypatch.setattr(Step, "__call__", noted)
    train(folder, tmp_path, *gram_of(finished, "--gram.refresh", "2", "--gram.refreshes", "2"))
    source = vv.load(f"{finished['sinkhorn']}/model").state_dict()
    wanted = [source, source, after[2][1], after[2][1], after[4][1], after[4][1], after[4][1], after[4][1]]
    for (earlier, _), state in zip(after, wanted, strict=True):
        assert all(torch.equal(earlier[name], value) for name, value in state.items())
    assert not torch.equal(after[6][0]["model.cls_token"], after[6][1]["model.cls_token"])


def test_refreshes_are_every_so_many_steps_and_come_to_an_end():
    often, thrice = GramSettings("x", refresh=4), GramSettings("x", refresh=4, refreshes=3)
    assert [step for step in range(1, 21) if often.due(step)] == [4, 8, 12, 16, 20]
    assert [step for step in range(1, 21) if thrice.due(step)] == [4, 8, 12]
    assert not any(GramSettings("x").due(step) for step in range(1, 21))


def test_the_earlier_teacher_sees_the_same_part_larger_and_undistorted(folder, finished):
    changes = gram_of(finished, "--gram.image_size", "32", "--gram.negatives", "keep")
    config = self_distill.parse(RECIPE.arguments(folder, "none", *changes))
    model = self_distill.model_of(config)
    encoder, earlier = model.student.encoder, gram_teacher(model)
    views = self_distill.views_of(config, encoder)
    images = ImageDataset(read_samples(config.data.train), views, alike={4: 0, 5: 1})
    drawn = collate([images[row] for row in range(16)])
    assert [view.shape[-1] for view in drawn.views] == [16, 16, 8, 8, 32, 32]
    plain = ImageDataset(images.samples, [self_distill.View(crop=view.crop) for view in views], alike={4: 0, 5: 1})
    for row in range(16):
        seen = plain[row].views
        for small, large in ((seen[0], seen[4]), (seen[1], seen[5])):
            off = (F.avg_pool2d(large.float(), 2) - small.float()).abs().mean()
            assert off < 3  # of 255: only the edge between two colors differs
        assert torch.equal(seen[4], drawn.views[4][row])
    batch = tensors(drawn, encoder, 0.05, config.masks, earlier)
    assert batch["small"].shape[0] == 2
    with torch.no_grad():
        model(batch["large"], 0.05, small=batch["small"], mask=batch["mask"], undistorted=batch["undistorted"])
        told = earlier(batch["undistorted"].flatten(0, 1))
        square = told.patch_tokens.transpose(1, 2).reshape(32, 32, 8, 8)
        wanted = F.interpolate(square, size=(4, 4), mode="bicubic", align_corners=False).flatten(2).transpose(1, 2)
        seen = encoder(batch["large"].flatten(0, 1), mask=batch["mask"].flatten(0, 1)).patch_tokens
        torch.testing.assert_close(model.loss_parts["gram"], gram_loss(seen, wanted, negatives="keep"))
    assert on_grid(seen, (4, 4), (4, 4)) is seen


def test_the_pairs_of_small_crops_have_a_weight_of_their_own():
    student, teacher = torch.randn(5, 3, 7), torch.randn(2, 3, 7).softmax(dim=-1)
    one, half, none = (pairwise_dino_loss(student, teacher, weight) for weight in (1, 0.5, 0))
    torch.testing.assert_close(half, (one + none) / 2)
    torch.testing.assert_close(none, pairwise_dino_loss(student[:2], teacher) * 2 / 8)


def test_a_rate_that_is_kept_stays_after_the_warmup(folder, tmp_path, monkeypatch):
    seen, taken = [], Step.__call__

    def noted(self, index, micro_batches):
        seen.append(self.optimizer.param_groups[0]["lr"])
        return taken(self, index, micro_batches)

    monkeypatch.setattr(Step, "__call__", noted)
    train(folder, tmp_path, "--lr_end", "1", "--steps", "5")
    assert seen[0] == pytest.approx(seen[1] / 2) and seen[1:] == pytest.approx([seen[1]] * 4) and seen[1] > 0


def test_the_published_phases_follow_each_other(tmp_path):
    """With fewer channels, layers and prototypes: crops fit, heads and encoder are those that the next phase takes."""
    models = {}
    for name in ("gram", "high_res"):
        config = self_distill.parse(["--config", str(CONFIGS / f"dinov3_{name}.yaml")])
        assert config.patch_heads is not None and config.gram.image_size > config.student.fields["image_size"]
        narrow = config.student.fields | {"embed_dim": 32, "depth": 1, "num_heads": 2, "mlp_dim": 48}
        config = replace(
            config,
            student=replace(config.student, fields=narrow),
            heads=replace(config.heads, prototypes=8, hidden_dim=8, bottleneck_dim=4),
            patch_heads=replace(config.patch_heads, prototypes=6, hidden_dim=8, bottleneck_dim=4),
            gram=replace(config.gram, teacher=models["gram"]) if models else GramSettings(),
            weights=replace(config.weights, gram=1.0 if models else 0.0),
        )
        model = self_distill.model_of(config)
        assert len(self_distill.views_of(config, model.student.encoder)) == (12 if models else 10)
        if models:
            load_networks(model, tmp_path, student=config.start_student)
        teacher_of(model).encoder.save_pretrained(tmp_path / name)
        save_networks(model, tmp_path)
        models[name] = str(tmp_path / name)


def test_an_anchored_model_trains_the_student_alone(folder, finished):
    model, batch = model_and_batch(folder, *gram_of(finished))
    assert isinstance(model, SelfDistillation) and model.train().earlier is not None
    model(batch["large"], 0.05, small=batch["small"], mask=batch["mask"]).backward()
    assert {name.split(".")[0] for name, weight in model.named_parameters() if weight.grad is not None} == {"student"}
    assert not any(module.training for module in model.get_submodule("earlier").modules())
