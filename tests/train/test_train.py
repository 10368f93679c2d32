"""Laws of training: the order of data, the weight of tokens, the groups of the optimizer."""

import pytest
import torch
from support.models import make_image

import projectors
from vlm_vision.data.conversations.collate import Collator
from vlm_vision.data.conversations.labels import ChatLabels, pad
from vlm_vision.data.conversations.records import Conversation
from vlm_vision.measure.answers import blind_answers, evaluate, is_correct, other_images
from vlm_vision.train.loop.sampler import StepBatches
from vlm_vision.train.loss import answer_loss, num_answer_tokens
from vlm_vision.train.optim.groups import parameter_groups, warmup_cosine
from vlm_vision.train.tasks.vqa import EnsureImage


def batches(**options) -> list[list[int]]:
    return list(StepBatches(**(dict(num_records=23, batch_size=8, micro_batch_size=2, steps=6, seed=3) | options)))


def steps(pieces: list[list[int]], per_step: int) -> list[set[int]]:
    return [set(sum(pieces[i : i + per_step], [])) for i in range(0, len(pieces), per_step)]


def test_an_epoch_shows_each_record_at_most_once_and_epochs_differ():
    seen = steps(batches(), 4)
    assert len(seen) == 6 and all(len(step) == 8 for step in seen)
    assert not seen[0] & seen[1] and seen[0] | seen[1] != seen[2] | seen[3]


def test_going_on_at_a_step_is_the_same_as_having_come_there():
    assert batches(first_step=3) == batches()[12:]


@pytest.mark.parametrize(("world", "micro"), [(1, 8), (2, 2), (4, 2), (1, 1)])
def test_a_step_holds_the_same_records_however_it_is_cut(world, micro):
    whole = steps(batches(), 4)
    parts = [batches(micro_batch_size=micro, rank=rank, world_size=world) for rank in range(world)]
    per_step = 8 // (micro * world)
    cut = [steps(part, per_step) for part in parts]
    assert [set().union(*(part[i] for part in cut)) for i in range(6)] == whole


def test_batches_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="batch_size 24 is larger than the data set of 23"):
        StepBatches(23, batch_size=24, micro_batch_size=2, steps=1)
    with pytest.raises(ValueError, match="no multiple of micro_batch_size 3 x 2 processes"):
        StepBatches(23, batch_size=8, micro_batch_size=3, steps=1, world_size=2)


@pytest.fixture
def batch(vlm):
    chat = ChatLabels(vlm.processor)
    talk = [
        Conversation(("0",), (("<image> what color is this ?", "red"), ("is it a cat ?", "yes it is"))),
        Conversation(("1",), (("<image> is this a dog ?", "no"),)),
        Conversation((), (("what is this ?", "an image of the cat"),)),
        Conversation(("2",), (("<image> what ?", "blue"),)),
    ]
    examples = [chat(one, [16] * len(one.images)) for one in talk]
    rows = [pad([example], 1) for example in examples]
    together = pad(examples, 1)
    pixels = vlm.encoder.preprocess([make_image(i) for i in range(3)])
    together["pixel_values"] = pixels
    for row, own in zip(rows, ([0], [1], [], [2]), strict=True):
        if own:
            row["pixel_values"] = pixels[own]
    return together, rows


def test_the_loss_of_a_step_does_not_depend_on_how_it_is_cut(vlm, batch):
    together, rows = batch
    total = num_answer_tokens(together)
    assert total == sum(num_answer_tokens(row) for row in rows)
    (answer_loss(vlm, together) / total).backward()
    whole = {name: weight.grad.clone() for name, weight in vlm.named_parameters() if weight.grad is not None}
    vlm.zero_grad()
    pieces = []
    for row in rows:
        loss = answer_loss(vlm, row) / total
        loss.backward()
        pieces.append(loss.detach())
    torch.testing.assert_close(sum(pieces), (answer_loss(vlm, together) / total).detach())
    for name, weight in vlm.named_parameters():
        if name in whole:
            torch.testing.assert_close(weight.grad, whole[name], rtol=1e-4, atol=1e-6)


def test_the_loss_is_the_language_models_own(vlm, batch):
    together, _ = batch
    inputs = {name: value for name, value in together.items() if name != "labels"}
    expected = vlm(**inputs, labels=together["labels"]).loss
    torch.testing.assert_close(answer_loss(vlm, together) / num_answer_tokens(together), expected)


@pytest.mark.parametrize("pack_length", [0, 90])
@pytest.mark.parametrize("words", [3, 80])
def test_a_batch_without_an_image_is_shown_one_that_weighs_nothing(vlm, tmp_path, pack_length, words):
    """So that every process runs every part, and the step is the same."""
    make_image().save(tmp_path / "0.png")
    witness = Conversation((str(tmp_path / "0.png"),), (("<image> what color ?", "red"),))
    talk = [Conversation((), (("what is this ?", "cat " * words),)), Conversation((), (("is it a dog ?", "no"),))]
    plain = Collator(vlm.processor, pack_length=pack_length)
    collate = EnsureImage(plain, witness)
    without, batch = plain(talk), collate(talk)
    assert "pixel_values" not in without and len(batch["pixel_values"]) == 1
    assert num_answer_tokens(batch) == num_answer_tokens(without)
    gradients = []
    for one in (without, batch):
        vlm.zero_grad()
        loss = answer_loss(vlm, one)
        loss.backward()
        gradients.append((loss.detach(), [weight.grad for weight in vlm.language_model.parameters()]))
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-5)
    assert all(weight.grad is not None and not weight.grad.any() for weight in vlm.projector.parameters())
    seen, same = collate([witness, talk[1]]), plain([witness, talk[1]])
    assert seen.keys() == same.keys() and all(torch.equal(seen[name], same[name]) for name in same)


def test_vectors_and_embeddings_do_not_decay_and_frozen_weights_do_not_train(vlm):
    vlm.encoder.requires_grad_(False)
    groups = parameter_groups([(vlm.projector, 1e-3), (vlm.language_model, 1e-4)], weight_decay=0.1)
    assert [(g["lr"], g["weight_decay"]) for g in groups] == [(1e-3, 0.1), (1e-3, 0.0), (1e-4, 0.1), (1e-4, 0.0)]
    assert all(weight.ndim == 2 for g in groups if g["weight_decay"] for weight in g["params"])
    embedding = vlm.get_input_embeddings().weight
    assert any(weight is embedding for weight in groups[3]["params"])
    assert sum(len(g["params"]) for g in groups) == sum(weight.requires_grad for weight in vlm.parameters())
    vlm.requires_grad_(False)
    with pytest.raises(ValueError, match="nothing trains"):
        parameter_groups([(vlm, 1.0)], weight_decay=0.0)


def test_learned_tokens_and_positions_do_not_decay(encoder):
    perceiver = projectors.build("perceiver", in_dim=32, out_dim=32, num_heads=2, num_kv_heads=2, head_dim=16)
    groups = parameter_groups([(encoder, 1e-3), (perceiver, 1e-3)], weight_decay=0.1)
    decayed = {id(weight) for group in groups if group["weight_decay"] for weight in group["params"]}
    named = [*encoder.named_parameters(), *perceiver.named_parameters()]
    plain = {name.rpartition(".")[2] for name, weight in named if id(weight) not in decayed}
    assert plain == {"weight", "bias", "table", "cls_token", "latents"}
    assert {name for name, weight in named if id(weight) in decayed and not name.endswith(".weight")} == set()


def test_the_schedule_warms_up_and_ends_at_nothing():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    schedule, rates = warmup_cosine(optimizer, warmup_steps=4, steps=20), []
    for _ in range(20):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates[:4] == [0.5, 1.0, 1.5, 2.0] and rates[3] == max(rates)
    assert rates[4:] == sorted(rates[4:], reverse=True) and optimizer.param_groups[0]["lr"] == pytest.approx(0)


QUESTIONS = [
    Conversation(("a",), (("<image>\nwhat ?", "red"),), "color"),
    Conversation(("b",), (("<image>\nwhat ?", "blue"),), "color"),
    Conversation(("c",), (("<image>\nis it ?", "no"),), "yes/no"),
]


def test_blind_answers_are_the_most_frequent_ones():
    train = [*QUESTIONS[:2], Conversation(("d",), (("what ?", "blue"), ("new ?", "red"), ("other", "red")))]
    assert blind_answers(QUESTIONS, train) == ["blue", "blue", "red"]


def test_shuffled_images_are_all_other_images():
    asked = [Conversation((f"{i % 7}",), (("<image> ?", "a"),)) for i in range(50)]
    other = other_images(asked, seed=1)
    assert all(one.images != shown for one, shown in zip(asked, other, strict=True))
    assert {shown for shown in other} == {one.images for one in asked}
    single = [Conversation(("a",), (("<image> ?", "a"),)), Conversation((), (("?", "a"),))]
    assert other_images(single, seed=1) == [None, None]


@pytest.mark.parametrize(
    ("given", "wanted", "verdict"), [("Red.", "red", True), (" red ", "red", True), ("redder", "red", False)]
)
def test_an_answer_is_right_but_for_case_and_full_stop(given, wanted, verdict):
    assert is_correct(given, wanted) is verdict


def test_evaluation_counts_each_type_and_weighs_them_by_number(vlm, tmp_path, monkeypatch):
    asked = []
    for i, one in enumerate(QUESTIONS):
        make_image(i).save(tmp_path / f"{i}.png")
        asked.append(Conversation((str(tmp_path / f"{i}.png"),), one.turns, one.kind))
    import vlm_vision.measure.answers as module

    given = iter([["red", "red", "no"], ["blue", "cat", "yes"]])
    monkeypatch.setattr(module, "answers", lambda *a, **k: next(given))
    report, said = evaluate(vlm, asked, asked)
    assert said == ["red", "red", "no"]
    assert report.by_type == {"color": 0.5, "yes/no": 1.0} and report.accuracy == pytest.approx(2 / 3)
    assert report.shuffled == 0 and report.blind == pytest.approx(2 / 3)
    assert "66.7%" in report.table()
