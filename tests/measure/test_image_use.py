"""Does the model use its images: one that does, ones that do not, and each figure against its definition."""

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from support.models import make_image, tiny_llm, tiny_tokenizer

import vlm_vision as vv
from vlm_vision.data.conversations.collate import Collator
from vlm_vision.data.conversations.records import Conversation
from vlm_vision.measure.answers import answers, is_correct, teacher_forced
from vlm_vision.measure.image_use import LARGEST_RATIO, blank_batch, gradient_norms, image_use, token_ratio
from vlm_vision.tokens.training.build import build_features
from vlm_vision.train.loss import answer_loss, num_answer_tokens
from vlm_vision.train.trainable import group_modules, set_trainable
from vlm_vision.vlm.layout import AnyRes, Native

COLORS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220)}


@pytest.fixture
def talk(tmp_path) -> list[Conversation]:
    """Twelve nearly plain images whose color is asked for."""
    found = []
    for i in range(12):
        name = list(COLORS)[i % 3]
        path = tmp_path / f"{i}.png"
        Image.blend(Image.new("RGB", (36, 40 + i), COLORS[name]), make_image(i, 40 + i, 36), 0.1).save(path)
        found.append(Conversation((str(path),), (("<image>\nwhat color is this ?", name),), name=str(i)))
    return found


def learn(model: vv.VisionLanguageModel, talk: list[Conversation], steps: int = 40) -> None:
    batch = Collator(model.processor)(talk)
    optimizer = torch.optim.AdamW([w for w in model.parameters() if w.requires_grad], lr=3e-3)
    model.train()
    for _ in range(steps):
        (answer_loss(model, batch) / num_answer_tokens(batch)).backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


def test_a_model_that_uses_its_images_shows_a_gap_and_gets_no_warning(vlm, talk):
    learn(vlm, talk)
    found = image_use(vlm, talk, batch_size=5)
    assert found.warning is None and found.right.accuracy == 1 and found.right.answers == 12
    assert found.shuffled.loss_per_token > found.right.loss_per_token + 0.5 and found.shuffled.accuracy < 1
    assert found.blank.loss_per_token > found.right.loss_per_token + 0.5 and found.blank.accuracy <= 0.5
    assert found.table().splitlines()[1].split() == ["right", f"{found.right.loss_per_token:.4f}", "100.0%"]


@pytest.mark.parametrize(
    ("spoiled", "gradient"),
    [(lambda out: 0 * out, "No gradient reaches the projector"), (lambda out: out.detach(), "No gradient"), (torch.zeros_like, "")],
    ids=["multiplied by zero", "detached", "constant"],
)  # fmt: skip
def test_a_model_that_cannot_use_its_images_is_told_so(vlm, talk, spoiled, gradient):
    if spoiled is torch.zeros_like:
        vlm.encoder.register_forward_pre_hook(lambda _, given: (torch.zeros_like(given[0]),))  # a covered lens
    else:
        vlm.projector.register_forward_hook(lambda _, __, out: spoiled(out))
    learn(vlm, talk, steps=10)
    found = image_use(vlm, talk)
    warning = found.warning or ""
    assert gradient in warning
    if gradient != "No gradient":  # where only the gradient is cut, other images still are other noise
        assert "ignores its images" in warning and found.right.loss == pytest.approx(found.shuffled.loss)


@torch.no_grad()
def test_the_size_of_image_tokens_is_their_rms_over_that_of_words(vlm, talk):
    batch = Collator(vlm.processor)(talk[:3])
    tokens = vlm.projector(vlm.encoder(batch["pixel_values"]).patch_tokens, (4, 4))
    words = batch["attention_mask"].bool() & (batch["input_ids"] != vlm.config.image_token_id)
    embeds = vlm.get_input_embeddings()(batch["input_ids"])[words]
    assert token_ratio(vlm, batch) == pytest.approx((tokens.square().mean() / embeds.square().mean()).sqrt().item())


def test_large_image_tokens_are_a_reason_for_ignored_images_and_no_fault_of_a_model_that_uses_them(vlm, talk):
    vlm.projector.register_forward_hook(lambda _, __, out: 100 * out)
    learn(vlm, talk)
    good = image_use(vlm, talk)
    assert good.token_ratio > LARGEST_RATIO and good.right.accuracy == 1 and good.warning is None
    vlm.encoder.register_forward_pre_hook(lambda _, pixels: (torch.zeros_like(pixels[0]),))  # a covered lens
    bad = image_use(vlm, talk).warning or ""
    assert "ignores its images" in bad and "times as large as words" in bad


@pytest.mark.parametrize("steps", [0, 6, 40])
def test_teacher_forced_answers_are_right_where_greedy_ones_are(vlm, talk, steps):
    asked = talk + [Conversation(one.images, (("<image>\nis it a cat ?", "no it is a dog"),)) for one in talk[:5]]
    learn(vlm, asked, steps)
    given = answers(vlm, asked, max_new_tokens=8)
    hits = [is_correct(answer, one.turns[0][1]) for answer, one in zip(given, asked, strict=True)]
    found = teacher_forced(vlm, Collator(vlm.processor)(asked))
    assert (found.right, found.answers) == (sum(hits), len(asked))


def test_teacher_forcing_counts_answers_and_loss_however_the_rows_are_laid(vlm, talk):
    several = [
        Conversation(talk[0].images, (("<image>\nwhat ?", "red"), ("is it a cat ?", "no it is a dog"))),
        Conversation((), (("what is this ?", "an image of the cat"),)),
        talk[1],
    ]
    learn(vlm, several, 12)
    collate = Collator(vlm.processor)
    batch = collate(several)
    whole = teacher_forced(vlm, batch)
    with torch.no_grad():
        logits = vlm(**{name: value for name, value in batch.items() if name != "labels"}).logits
    expected = answer_loss(vlm, batch).item()
    assert whole.loss == pytest.approx(expected, rel=1e-5) and whole.tokens == num_answer_tokens(batch)
    hits, run = [], []
    for row, labels in zip(logits, batch["labels"], strict=True):
        for i, label in enumerate(labels.tolist()[1:] + [-100]):
            if label != -100:
                run.append(row[i].argmax().item() == label)
            elif run:
                hits.append(all(run))
                run = []
    assert (whole.right, whole.answers) == (sum(hits), 4) == (sum(hits), len(hits))
    assert 0 < whole.right
    parts = [teacher_forced(vlm, collate([one])) for one in several]
    packed = teacher_forced(vlm, Collator(vlm.processor, pack_length=200)(several))
    left = {name: value.flip(1) if value.ndim == 2 else value for name, value in batch.items()}
    lengths = batch["attention_mask"].sum(dim=1)
    for name in ("input_ids", "labels", "attention_mask"):
        left[name] = torch.stack([row.roll(len(row) - int(n)) for row, n in zip(batch[name], lengths, strict=True)])
    for other in (parts[0] + parts[1] + parts[2], packed, teacher_forced(vlm, left)):
        assert (other.right, other.answers, other.tokens) == (whole.right, whole.answers, whole.tokens)
        assert other.loss == pytest.approx(whole.loss, rel=1e-4)


def test_gradient_norms_are_those_of_a_backward_and_leave_no_trace(vlm, talk):
    batch = Collator(vlm.processor)(talk[:4])
    vlm.train()
    vlm.language_model.model.layers[0].eval()
    modes = [module.training for module in vlm.modules()]
    found = gradient_norms(vlm, batch)
    assert [module.training for module in vlm.modules()] == modes
    assert all(weight.grad is None for weight in vlm.parameters())
    vlm.eval()
    labels = batch.pop("labels")
    logits = vlm(**batch).logits[:, :-1]
    F.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten()).backward()
    for name, group in group_modules(vlm).items():
        by_hand = torch.cat([weight.grad.flatten() for weight in group.parameters() if weight.grad is not None]).norm()
        assert found[name] == pytest.approx(by_hand.item(), rel=1e-4)


def test_frozen_groups_are_not_measured_but_the_projector_always_is(vlm, talk):
    batch = Collator(vlm.processor)(talk[:4])
    whole = gradient_norms(vlm, batch)
    set_trainable(vlm, vision="frozen", projector="frozen", language="frozen")
    found = gradient_norms(vlm, batch)
    assert found["vision"] is None and found["language"] is None
    assert found["projector"] == pytest.approx(whole["projector"], rel=1e-4)
    assert not any(weight.requires_grad for weight in vlm.parameters())


def test_stored_tokens_give_the_same_figures(vlm, talk, tmp_path):
    learn(vlm, talk, 10)
    images = [path for one in talk for path in one.images]
    features = build_features(tmp_path / "features", vlm.encoder, images, dtype="float32")
    one, other = image_use(vlm, talk, features=features), image_use(vlm, talk)
    for name in ("right", "shuffled", "blank"):
        assert getattr(one, name).loss == pytest.approx(getattr(other, name).loss, rel=1e-4)
    assert one.gradients["vision"] is None and one.gradients["language"] == pytest.approx(other.gradients["language"])


@pytest.mark.parametrize("layout", [AnyRes(((32, 64), (64, 32))), Native(max_patches=24)], ids=["anyres", "native"])
def test_every_layout_is_measured_and_answered(encoder, talk, layout):
    vlm = vv.VisionLanguageModel.attach(encoder, tiny_llm("llama"), tokenizer=tiny_tokenizer(), layout=layout)
    learn(vlm, talk, 40)
    found = image_use(vlm, talk, batch_size=5)
    given = answers(vlm, talk, batch_size=4, max_new_tokens=4)
    assert found.right.right == sum(is_correct(a, one.turns[0][1]) for a, one in zip(given, talk, strict=True))
    assert found.shuffled.loss > found.right.loss
    assert found.gradients["projector"]


@torch.no_grad()
def test_blank_is_what_the_preprocessing_makes_of_gray(vlm, talk, tmp_path):
    Image.new("RGB", (50, 20), (128, 128, 128)).save(tmp_path / "grey.png")
    collate = Collator(vlm.processor)
    gray = collate([Conversation((str(tmp_path / "grey.png"),), talk[0].turns)])
    torch.testing.assert_close(blank_batch(vlm, collate(talk[:1])), gray)


def test_images_that_cannot_be_exchanged_are_refused(vlm, talk):
    with pytest.raises(ValueError, match="2 conversations have no two different images"):
        image_use(vlm, [talk[0], talk[0]])


def test_a_model_without_a_processor_is_told_so(vlm, talk):
    vlm.processor = None
    with pytest.raises(ValueError, match="no processor"):
        image_use(vlm, talk)
    with pytest.raises(ValueError, match="no processor"):
        answers(vlm, talk)
