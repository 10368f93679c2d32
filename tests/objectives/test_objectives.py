"""Every objective: its golden case, what holds in any number of processes and precisions, and formulas by hand."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from safetensors.torch import load_file
from support.golden import golden_case
from support.processes import run_together
from torch import Tensor

from vlm_vision.objectives.clip import clip_loss
from vlm_vision.objectives.dino import DinoHead, dino_loss
from vlm_vision.objectives.distill import feature_distillation_loss, hard_distillation_loss, soft_distillation_loss
from vlm_vision.objectives.gram import gram_loss
from vlm_vision.objectives.ibot import ibot_loss
from vlm_vision.objectives.koleo import koleo_loss
from vlm_vision.objectives.mae import mae_loss, patches
from vlm_vision.objectives.sharpen import Center, sinkhorn_knopp
from vlm_vision.objectives.siglip import siglip_loss

PROCESSES = 3


@dataclass(frozen=True)
class Case:
    """An objective on a batch of which each process has a part."""

    loss: Callable[..., Tensor]
    shapes: dict[str, tuple[int, ...]]
    """Of the inputs; () is a scalar that all processes share."""
    fixed: tuple[str, ...] = ()
    """Inputs without gradient."""
    split: int = 0
    """Dimension of the batch."""


PAIRS = {"image": (12, 8), "text": (12, 8), "scale": (), "bias": ()}
MASK = torch.tensor([[1, 0, 1, 0], [0, 0, 1, 1]] * 6).bool()


def pairs(loss: Callable[..., Tensor], **options) -> Case:
    def found(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        return loss(F.normalize(image, dim=-1), F.normalize(text, dim=-1), 3 * scale.exp(), bias, **options)

    return Case(found, PAIRS)


CASES = {
    "clip, own rows": pairs(clip_loss),
    "clip, all rows": pairs(clip_loss, rows="global"),
    "siglip, ring": pairs(siglip_loss),
    "siglip, ring in chunks": pairs(siglip_loss, chunk_size=3),
    "siglip, gathered": pairs(siglip_loss, exchange="gather"),
    "siglip, gathered in chunks": pairs(siglip_loss, chunk_size=1, exchange="gather"),
    "dino": Case(
        lambda student, teacher: dino_loss(student, teacher.softmax(-1)),
        {"student": (5, 12, 8), "teacher": (2, 12, 8)},
        fixed=("teacher",),
        split=1,
    ),
    "dino with sinkhorn": Case(
        lambda student, teacher: dino_loss(student, sinkhorn_knopp(teacher, 0.5)[None]),
        {"student": (3, 12, 8), "teacher": (12, 8)},
        fixed=("teacher",),
        split=-2,
    ),
    "ibot": Case(
        lambda student, teacher, mask: ibot_loss(student[mask > 0], teacher[mask > 0].softmax(-1), mask > 0),
        {"student": (12, 4, 8), "teacher": (12, 4, 8), "mask": (12, 4)},
        fixed=("teacher", "mask"),
    ),
    "koleo": Case(koleo_loss, {"features": (12, 8)}),
    "koleo, three nearest": Case(lambda features: koleo_loss(features, nearest=3), {"features": (12, 8)}),
    "gram": Case(gram_loss, {"student": (12, 5, 8), "teacher": (12, 5, 6)}, fixed=("teacher",)),
    "gram, whole batch": Case(
        lambda student, teacher: gram_loss(student, teacher, level="batch"),
        {"student": (12, 5, 8), "teacher": (12, 5, 6)},
        fixed=("teacher",),
    ),
    "mae": Case(
        lambda predicted, pixels: mae_loss(predicted, pixels, torch.ones(predicted.shape[:2]), patch_size=2),
        {"predicted": (12, 4, 12), "pixels": (12, 3, 4, 4)},
        fixed=("pixels",),
    ),
    "soft distillation": Case(
        lambda student, teacher: soft_distillation_loss(student, teacher, temperature=3.0),
        {"student": (12, 8), "teacher": (12, 8)},
        fixed=("teacher",),
    ),
    "hard distillation": Case(hard_distillation_loss, {"student": (12, 8), "teacher": (12, 8)}, fixed=("teacher",)),
    "feature distillation": Case(
        feature_distillation_loss, {"student": (12, 5, 8), "teacher": (12, 5, 8)}, fixed=("teacher",)
    ),
}


def inputs(case: Case) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    made = {name: torch.randn(shape, generator=generator) for name, shape in case.shapes.items()}
    return made | ({"mask": MASK.float()} if "mask" in made else {})


def found(case: Case, given: dict[str, Tensor]) -> dict[str, Tensor]:
    """Loss and gradients."""
    given = {name: value.clone().requires_grad_(name not in case.fixed) for name, value in given.items()}
    loss = case.loss(**given)
    loss.backward()
    gradients = {name: value.grad for name, value in given.items() if value.grad is not None}
    return {"loss": loss.detach()} | gradients


def part(case: Case, value: Tensor) -> Tensor:
    """What this process has of an input."""
    return value.chunk(PROCESSES, dim=case.split)[dist.get_rank()] if value.ndim else value


UNEVEN = ((0, 7), (7, 12), (12, 12))
"""Rows of the teacher in each process: masked patches are as many as they are."""


def in_each_process(folder: Path) -> None:
    """In one of several processes."""
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    done = {name: found(case, {k: part(case, v) for k, v in inputs(case).items()}) for name, case in CASES.items()}
    logits = inputs(CASES["dino with sinkhorn"])["teacher"][slice(*UNEVEN[rank])]
    center = Center(8)
    center.update(logits)
    done["uneven"] = {"sinkhorn": sinkhorn_knopp(logits, 0.5), "center": center.center}
    torch.save(done, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def apart(tmp_path_factory) -> list[dict[str, dict[str, Tensor]]]:
    """What each of several processes finds."""
    folder = tmp_path_factory.mktemp("apart")
    run_together(in_each_process, folder, folder=folder, count=PROCESSES)
    return [torch.load(folder / f"{rank}.pt") for rank in range(PROCESSES)]


@pytest.mark.parametrize("name", CASES)
def test_processes_together_equal_one(apart, name):
    case, wanted = CASES[name], found(CASES[name], inputs(CASES[name]))
    each = [one[name] for one in apart]
    for key, value in wanted.items():
        parts = [one[key] for one in each]
        if value.ndim:
            together = torch.cat(parts, dim=case.split) / PROCESSES  # as DDP averages gradients
        else:
            together = torch.stack(parts).mean()
        torch.testing.assert_close(together, value, rtol=1e-5, atol=1e-6, msg=lambda text, key=key: f"{key}: {text}")


def test_teachers_see_all_rows_also_where_processes_have_unlike_many(apart):
    logits = inputs(CASES["dino with sinkhorn"])["teacher"]
    together = torch.cat([one["uneven"]["sinkhorn"] for one in apart])
    torch.testing.assert_close(together, sinkhorn_knopp(logits, 0.5))
    center = Center(8)
    center.update(logits)
    for one in apart:
        torch.testing.assert_close(one["uneven"]["center"], center.center)


@pytest.mark.parametrize("name", CASES)
def test_under_autocast_and_in_half_precision_it_is_computed_in_float32(name):
    case = CASES[name]
    half = {key: value.bfloat16() for key, value in inputs(case).items()}
    wanted = found(case, {key: value.float() for key, value in half.items()})
    with torch.autocast("cpu", torch.bfloat16):
        again = found(case, {key: value.float() for key, value in half.items()})
        short = found(case, half)
    if name.startswith(("clip", "siglip", "dino", "ibot")):  # whose lambdas compute outside the objective
        torch.testing.assert_close(short["loss"].float(), wanted["loss"], rtol=0.05, atol=0.05)
    else:
        torch.testing.assert_close(short["loss"], wanted["loss"])
    torch.testing.assert_close(again["loss"], wanted["loss"])
    assert all(value.isfinite().all() for value in short.values())


@pytest.fixture(scope="module")
def golden() -> Callable[[str], dict[str, Tensor]]:
    return lambda name: load_file(golden_case(name) / "golden.safetensors")


def same(ours: Tensor, reference: Tensor) -> None:
    assert ours.shape == reference.shape
    assert (ours - reference).abs().max() <= 1e-5 * reference.abs().max()


@pytest.mark.parametrize("tag", ["clip", "clip_bias", "siglip", "siglip_chunked"])
def test_contrastive_losses_are_open_clips(golden, tag):
    reference = golden("open_clip_losses")
    image, text = (reference[f"{name}_features"].requires_grad_() for name in ("image", "text"))
    scale, bias = torch.tensor(12.0, requires_grad=True), torch.tensor(-4.0, requires_grad=True)
    if tag.startswith("siglip"):
        loss = siglip_loss(image, text, scale, bias, **({"chunk_size": 4} if "chunked" in tag else {}))
    else:
        loss = clip_loss(image, text, scale, bias if tag == "clip_bias" else None)
    loss.backward()
    same(loss.detach(), reference[f"{tag}.loss"])
    for name, value in {"image": image, "text": text, "scale": scale}.items():
        same(value.grad, reference[f"{tag}.grad_{name}"])
    if tag.startswith("siglip"):
        same(bias.grad, reference[f"{tag}.grad_bias"])


def test_dino_and_ibot_are_dinov2s(golden):
    reference = golden("dinov2_losses")
    teacher = sinkhorn_knopp(reference["dino.teacher_logits"], 0.05)
    same(teacher, reference["dino.sinkhorn"])
    center = Center(24)
    center.center.copy_(reference["dino.center0"][0])
    same(center(reference["dino.teacher_logits"], 0.05), reference["dino.softmax_center"])
    center.update(reference["dino.teacher_logits"])
    same(center.center[None], reference["dino.center1"])

    local = reference["dino.student_local"].requires_grad_()
    loss = dino_loss(local.unflatten(0, (3, 6)), teacher.unflatten(0, (2, 6))) * 6  # it sums over pairs
    loss.backward()
    same(loss.detach(), reference["dino.loss_local"])
    same(local.grad, reference["dino.grad_local"])
    whole = reference["dino.student_global"].requires_grad_()
    loss = dino_loss(whole[None], teacher[None])
    loss.backward()
    same(loss.detach(), reference["dino.loss_global"])
    same(whole.grad, reference["dino.grad_global"])

    masks = reference["ibot.masks"].bool()
    teacher = sinkhorn_knopp(reference["ibot.teacher_masked_logits"], 0.05)
    same(teacher, reference["ibot.sinkhorn"])
    masked = reference["ibot.student_masked"].requires_grad_()
    loss = ibot_loss(masked, teacher, masks)
    loss.backward()
    same(loss.detach(), reference["ibot.loss_masked"])
    same(masked.grad, reference["ibot.grad_masked"])
    center.center.copy_(reference["ibot.center0"][0, 0])
    teacher = center(reference["ibot.teacher_full"], 0.05)
    same(teacher, reference["ibot.softmax_center"])
    center.update(reference["ibot.teacher_full"])
    same(center.center[None, None], reference["ibot.center1"])
    full = reference["ibot.student_full"].requires_grad_()
    loss = ibot_loss(full[masks], teacher[masks], masks)
    loss.backward()
    same(loss.detach(), reference["ibot.loss_full"])
    same(full.grad, reference["ibot.grad_full"])


def test_dino_and_ibot_are_dinov3s(golden):
    reference = golden("dinov3_losses")
    teacher = sinkhorn_knopp(reference["dino.teacher_logits"], 0.06)
    same(teacher, reference["dino.sinkhorn"])
    teacher = teacher.unflatten(0, (2, 5))
    for student, suffix, options in (
        ("dino.student", "", {}),
        ("dino.student_global", "_ignore_diagonal", {"same_crops": True}),
    ):
        logits = reference[student].requires_grad_()
        loss = dino_loss(logits, teacher, **options)
        loss.backward()
        same(loss.detach(), reference[f"dino.loss{suffix}"])
        same(logits.grad, reference[f"dino.grad{suffix}"])
    teacher = sinkhorn_knopp(reference["ibot.teacher_masked_logits"], 0.06)
    same(teacher, reference["ibot.sinkhorn"])
    masked = reference["ibot.student_masked"].requires_grad_()
    loss = ibot_loss(masked, teacher, reference["ibot.masks"])
    loss.backward()
    same(loss.detach(), reference["ibot.loss_masked"])
    same(masked.grad, reference["ibot.grad_masked"])


@pytest.mark.parametrize("level", ["image", "batch"])
@pytest.mark.parametrize(
    ("setting", "options"),
    [
        ("default", {}),
        ("no_norm", {"normalize": False, "negatives": "keep"}),
        ("keep_neg", {"negatives": "keep"}),
        ("teacher_neg", {"negatives": "clip_teacher"}),
    ],
)
def test_gram_anchoring_is_dinov3s(golden, setting, options, level):
    reference = golden("dinov3_losses")
    tag = f"gram.{setting}.{level}"
    student = reference[f"{tag}.student"].requires_grad_()
    loss = gram_loss(student, reference[f"{tag}.teacher"], level=level, **options)
    loss.backward()
    same(loss.detach(), reference[f"{tag}.loss"])
    same(student.grad, reference[f"{tag}.grad"])


@pytest.mark.parametrize(
    ("case", "tag", "nearest"),
    [("dinov2", "koleo", 1), ("dinov3", "koleo", 1), ("dinov3", "koleo_topk1", 1), ("dinov3", "koleo_topk2", 2)],
)
def test_koleo_is_the_references(golden, case, tag, nearest):
    reference = golden(f"{case}_losses")
    features = reference["koleo.x"].requires_grad_()
    loss = koleo_loss(features, nearest=nearest)
    loss.backward()
    same(loss.detach(), reference[f"{tag}.loss"])
    same(features.grad, reference[f"{tag}.grad"])


@pytest.mark.parametrize("run", ["native", "large", "nonsquare"])
def test_the_loss_of_masked_pixels_is_transformers(golden, run):
    reference = golden("hf_vit_mae")
    loss = mae_loss(
        reference[f"mae_logits.{run}"], reference[f"pixel_values.{run}"], reference[f"mae_mask.{run}"], patch_size=8
    )
    same(loss, reference[f"mae_loss.{run}"])


def test_the_head_is_dinov2s(golden):
    reference = golden("dinov2_head")
    head = DinoHead(32, 20, hidden_dim=48, bottleneck_dim=24)
    head.load_state_dict(torch.load(golden_case("dinov2_head") / "dino_head.pth", weights_only=True))
    x = reference["x"].requires_grad_()
    y = head(x)
    same(y.detach(), reference["y"])
    y.square().sum().backward()
    same(x.grad, reference["grad_x_of_sum_y2"])


def test_sinkhorn_uses_every_prototype_equally_and_no_logit_is_too_large():
    logits = torch.randn(64, 8)
    used = sinkhorn_knopp(logits, 0.2, iterations=50)
    torch.testing.assert_close(used.sum(dim=1), torch.ones(64))
    torch.testing.assert_close(used.sum(dim=0), torch.full((8,), 8.0), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(sinkhorn_knopp(logits + 1e4, 1.0), sinkhorn_knopp(logits, 1.0), rtol=1e-2, atol=1e-3)
    assert sinkhorn_knopp(logits * 1e4, 0.04).isfinite().all()
    assert sinkhorn_knopp(logits[:0], 0.04).shape == (0, 8)


@pytest.mark.parametrize("features", [torch.ones(1, 4), torch.ones(2, 4), torch.zeros(3, 4), torch.eye(4)])
def test_koleo_is_finite_where_neighbors_are_few_or_the_same(features):
    features.requires_grad_()
    loss = koleo_loss(features, nearest=2)
    loss.backward()
    assert loss.isfinite() and features.grad.isfinite().all()


def test_an_image_without_masked_patches_counts_as_zero():
    student, mask = torch.randn(2, 4, 8), torch.tensor([[True, True, False, False], [False] * 4])
    alone = ibot_loss(student[mask], student.softmax(-1)[mask], mask)
    one = ibot_loss(student[0, :2], student[0, :2].softmax(-1), mask[:1])
    torch.testing.assert_close(alone, one / 2)
    nothing = torch.zeros(2, 4, dtype=torch.bool)
    assert ibot_loss(student[nothing], student[nothing], nothing) == 0


def test_patches_are_in_reading_order():
    pixels = torch.arange(2 * 4 * 6).reshape(1, 2, 4, 6)
    cells = patches(pixels, 2)
    assert cells.shape == (1, 6, 8)
    assert cells[0, 4].tolist() == [x for y in (2, 3) for x2 in (2, 3) for x in (y * 6 + x2, 24 + y * 6 + x2)]


def test_distillation_is_the_formula():
    student, teacher = torch.randn(3, 5), torch.randn(3, 5)
    theirs = (teacher / 2).softmax(-1)
    wanted = 4 * (theirs * (theirs.log() - (student / 2).log_softmax(-1))).sum() / 15
    torch.testing.assert_close(soft_distillation_loss(student, teacher, temperature=2.0), wanted)
    wanted = -student.log_softmax(-1)[range(3), teacher.argmax(-1)].mean()
    torch.testing.assert_close(hard_distillation_loss(student, teacher), wanted)
    assert feature_distillation_loss(teacher, 3 * teacher, smooth_l1=0.0).abs() < 1e-6
    wanted = 0.1 * F.smooth_l1_loss(student, teacher)
    torch.testing.assert_close(feature_distillation_loss(student, teacher, cosine=0.0), wanted)


def test_what_does_not_belong_together_is_refused():
    with pytest.raises(ValueError, match=r"image is \(3, 4\) and text \(2, 4\), expected \(B, E\)"):
        siglip_loss(torch.ones(3, 4), torch.ones(2, 4), torch.ones(()), torch.ones(()))
    with pytest.raises(ValueError, match="chunk_size is 0"):
        siglip_loss(torch.ones(3, 4), torch.ones(3, 4), torch.ones(()), torch.ones(()), chunk_size=0)
    with pytest.raises(ValueError, match="4 rows of the student and 4 of the teacher for 3 masked patches"):
        ibot_loss(torch.ones(4, 2), torch.ones(4, 2), torch.tensor([[True, True, True, False]]))
    with pytest.raises(ValueError, match="pixels are 6x4, expected multiples of the patch size 4"):
        patches(torch.ones(1, 3, 6, 4), 4)
