"""Packing: conversations in one row are the same as each in its own."""

import pytest
import torch
from support.models import LLMS, make_image, tiny_llm, tiny_tokenizer

import vlm_vision as vv
from vlm_vision.data.conversations.collate import Collator
from vlm_vision.data.conversations.labels import IGNORED
from vlm_vision.data.conversations.records import Conversation
from vlm_vision.tokens.training.build import build_features
from vlm_vision.train.loss import answer_loss, num_answer_tokens
from vlm_vision.train.packing import check_packing


@pytest.fixture
def talk(tmp_path) -> list[Conversation]:
    """Two images, none, one, one; one question or two."""
    paths = []
    for i, size in enumerate([(40, 36), (30, 90), (64, 64), (20, 70)]):
        paths.append(str(tmp_path / f"{i}.png"))
        make_image(i, *size).save(paths[-1])
    return [
        Conversation(tuple(paths[:2]), (("<image> what color is <image> ?", "red"), ("is it a cat ?", "yes it is"))),
        Conversation((), (("what is this ?", "an image of the cat"),)),
        Conversation((paths[2],), (("<image> is this a dog ?", "no"),)),
        Conversation((paths[3],), (("<image> what ?", "blue"),)),
    ]


def join(name: str, encoder, layout=None) -> vv.VisionLanguageModel:
    return vv.VisionLanguageModel.attach(encoder, tiny_llm(name), tokenizer=tiny_tokenizer(), layout=layout)


def gradients(vlm, batches) -> tuple[float, dict[str, torch.Tensor]]:
    vlm.zero_grad()
    total = sum(num_answer_tokens(batch) for batch in batches)
    loss = sum((answer_loss(vlm, batch) / total for batch in batches), torch.zeros(()))
    loss.backward()
    return loss.item(), {name: w.grad.clone() for name, w in vlm.named_parameters() if w.grad is not None}


@pytest.mark.parametrize("name", LLMS)
@pytest.mark.parametrize("length", [1, 60, 500])
def test_packed_rows_are_the_same_as_one_by_one(encoder, talk, name, length):
    vlm = join(name, encoder)
    expected = gradients(vlm, [Collator(vlm.processor)([one]) for one in talk])
    packed = Collator(vlm.processor, pack_length=length)(talk)
    assert packed["input_ids"].shape[0] == {1: 4, 60: 3, 500: 1}[length] and "attention_mask" not in packed
    found = gradients(vlm, [packed])
    assert found[0] == pytest.approx(expected[0], rel=1e-5)
    for weight, gradient in expected[1].items():
        torch.testing.assert_close(found[1][weight], gradient, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("layout", [vv.AnyRes(((32, 64), (64, 64))), vv.Native(20)], ids=lambda layout: layout.name)
def test_packing_and_padding_agree_in_every_layout(encoder, talk, layout):
    vlm = join("llama", encoder, layout)
    padded, packed = (gradients(vlm, [Collator(vlm.processor, pack_length=n)(talk)])[0] for n in (0, 300))
    assert packed == pytest.approx(padded, rel=1e-5)


def test_a_sliding_window_slides_within_each_conversation(encoder, talk):
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        "mistral",
        vocab_size=30,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=6,
    )
    llm = AutoModelForCausalLM.from_config(config)
    vlm = vv.VisionLanguageModel.attach(encoder, llm, tokenizer=tiny_tokenizer())
    alone = gradients(vlm, [Collator(vlm.processor)([one]) for one in talk])[0]
    assert gradients(vlm, [Collator(vlm.processor, pack_length=500)(talk)])[0] == pytest.approx(alone, rel=1e-5)


def test_positions_begin_again_and_labels_do_not_cross(vlm, talk):
    alone = [Collator(vlm.processor)([one]) for one in talk]
    packed = Collator(vlm.processor, pack_length=500)(talk)
    lengths = [batch["input_ids"].shape[1] for batch in alone]
    assert packed["position_ids"][0].tolist() == [i for length in lengths for i in range(length)]
    assert torch.equal(packed["input_ids"], torch.cat([batch["input_ids"] for batch in alone], dim=1))
    assert num_answer_tokens(packed) == sum(num_answer_tokens(batch) for batch in alone)
    starts = torch.tensor([0, *lengths]).cumsum(0)[:-1]
    assert (packed["labels"][0, starts] == IGNORED).all()


def test_a_language_model_that_carries_a_state_is_not_packed(encoder, vlm):
    from transformers import AutoConfig, AutoModelForCausalLM

    check_packing(vlm)
    config = AutoConfig.for_model("mamba", vocab_size=30, hidden_size=32, num_hidden_layers=1, state_size=4)
    stateful = vv.VisionLanguageModel.attach(
        encoder, AutoModelForCausalLM.from_config(config), tokenizer=tiny_tokenizer()
    )
    with pytest.raises(ValueError, match="MambaForCausalLM mixes packed conversations"):
        check_packing(stateful)


def test_stored_patch_tokens_give_the_same_loss_as_pixels(vlm, talk, tmp_path):
    paths = [path for one in talk for path in one.images]
    features = build_features(tmp_path / "features", vlm.encoder, paths, dtype="float32")
    seen = Collator(vlm.processor, features=features, pack_length=100)(talk)
    assert "pixel_values" not in seen
    torch.testing.assert_close(
        answer_loss(vlm, seen), answer_loss(vlm, Collator(vlm.processor, pack_length=100)(talk)), rtol=1e-5, atol=0
    )
    tiled = join("llama", vlm.encoder, vv.AnyRes(((32, 64),)))
    with pytest.raises(ValueError, match="need one canvas of one size"):
        Collator(tiled.processor, features=features)


def test_private_characters_in_a_text_are_kept_and_our_marks_are_refused(vlm):
    said = Conversation((), (("what \ue000 is \ue001", "a \ue001 cat \ue000"),), name="odd")
    labels = Collator(vlm.processor)([said])["labels"]
    assert (labels != IGNORED).sum() == 5  # with those two, and the end
    with pytest.raises(ValueError, match="odd holds U.FDD0"):
        Collator(vlm.processor)([Conversation((), (("what", "a \ufdd0"),), name="odd")])


def test_nothing_to_collate_is_said(vlm):
    with pytest.raises(ValueError, match="no conversations"):
        Collator(vlm.processor)([])
