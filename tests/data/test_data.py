"""From conversations to labels, and features on disk."""

import json
from pathlib import Path

import pytest
import torch
from support.models import CHAT, make_image, tiny_llm, tiny_tokenizer

import vlm_vision as vv
from vlm_vision.data.conversations.labels import IGNORED, ChatLabels, pad
from vlm_vision.data.conversations.records import Conversation, easy_vqa, llava_json, regroup

ONE = Conversation(("a.png",), (("<image>\nwhat color is this ?", "red"), ("is it a cat ?", "yes it is")))


def labeled(chat: ChatLabels, conversation: Conversation, tokens: int = 16) -> list[str]:
    """The words that the loss is on."""
    example = chat(conversation, [tokens] * len(conversation.images))
    return chat.tokenizer.convert_ids_to_tokens([i for i in example.labels if i != IGNORED])


def vlm_with(encoder: vv.Encoder, template: str | None, **tokenizer) -> vv.VisionLanguageModel:
    return vv.VisionLanguageModel.attach(
        encoder, tiny_llm("llama"), tokenizer=tiny_tokenizer(chat_template=template, **tokenizer)
    )


@pytest.mark.parametrize("template", [None, CHAT])
def test_the_loss_is_on_the_answers_and_their_end_alone(encoder, template):
    chat = ChatLabels(vlm_with(encoder, template).processor)
    assert labeled(chat, ONE) == ["red", "</s>", "yes", "it", "is", "</s>"]


@pytest.mark.parametrize("template", [None, CHAT])
@pytest.mark.parametrize("bos", [True, False])
def test_what_stands_before_the_answer_is_the_prompt_of_generation(encoder, template, bos):
    vlm = vlm_with(encoder, template, bos=True) if template else vlm_with(encoder, template, bos=bos)
    chat = ChatLabels(vlm.processor)
    example = chat(ONE, [vlm.num_image_tokens(32, 32)])
    first = next(i for i, label in enumerate(example.labels) if label != IGNORED)
    prompt = vlm.processor.apply_chat_template([ONE.messages()[0]], add_generation_prompt=True)
    batch = vlm.processor(text=prompt, images=make_image(), return_tensors="pt")
    assert example.input_ids[:first] == batch["input_ids"][0].tolist()


def test_an_answer_counts_from_the_generation_prompt_on(encoder):
    thinking = CHAT.replace(
        "'<s>' + m['role'] + ': '", "'<s>' + m['role'] + ': ' + ('. , ' if m['role'] == 'assistant' else '')"
    )
    chat = ChatLabels(vlm_with(encoder, thinking).processor)
    assert labeled(chat, ONE)[:4] == [".", ",", "red", "</s>"]


def test_a_template_that_cannot_be_trained_on_is_refused(encoder):
    with pytest.raises(ValueError, match="no special token after an answer"):
        ChatLabels(vlm_with(encoder, CHAT.replace("<s>", "").replace("</s>", " . ")).processor)
    other_prompt = CHAT.replace("{{ '<s>assistant: ' }}", "{{ '<s>cat: ' }}")
    with pytest.raises(ValueError, match="does not continue its own generation prompt"):
        ChatLabels(vlm_with(encoder, other_prompt).processor)


def test_a_template_that_ends_only_the_last_answer_is_refused_for_several(encoder):
    last = (
        "{% for m in messages %}{{ m['role'] + ' : ' + m['content'] + ' . ' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant : ' }}{% else %}{{ '</s>' }}{% endif %}"
    )
    chat = ChatLabels(vlm_with(encoder, last).processor)
    assert labeled(chat, Conversation((), (("is it ?", "no"),)), 0) == ["no", ".", "</s>"]
    with pytest.raises(ValueError, match="ends only the last of several answers"):
        chat(ONE, [16])


def test_truncation_keeps_image_tokens_and_answers(encoder):
    processor = vlm_with(encoder, None).processor
    whole = ChatLabels(processor)(ONE, [16])
    cut = ChatLabels(processor, max_length=len(whole.input_ids) - 3)(ONE, [16])
    assert cut.input_ids == whole.input_ids[:-3] and cut.labels == whole.labels[:-3]
    with pytest.raises(ValueError, match="max_length 12 would cut image tokens"):
        ChatLabels(processor, max_length=12)(ONE, [16])
    with pytest.raises(ValueError, match="no answer token within max_length 20"):
        ChatLabels(processor, max_length=20)(ONE, [16])


def test_padding_carries_no_loss_and_no_attention(encoder):
    chat = ChatLabels(vlm_with(encoder, None).processor)
    short = Conversation((), (("is it ?", "no"),))
    batch = pad([chat(ONE, [16]), chat(short, [])], 1)
    length = batch["attention_mask"].sum(dim=1)
    assert batch["input_ids"].shape == batch["labels"].shape and length[0] > length[1]
    assert (batch["labels"][1, length[1] :] == IGNORED).all() and not batch["attention_mask"][1, length[1] :].any()


def test_llava_files_are_read(tmp_path):
    turns = [{"from": "human", "value": "<image>\nwhat ?"}, {"from": "gpt", "value": "cat"}]
    records = [
        {"id": "x", "image": "a.png", "conversations": turns, "type": "object"},
        {"conversations": [{"from": "human", "value": "is it ?"}, {"from": "gpt", "value": "no"}] * 2},
        {"image": ["a.png", "b.png"], "conversations": [{"from": "human", "value": "<image><image>"}, turns[1]]},
    ]
    (tmp_path / "data.json").write_text(json.dumps(records))
    one, two, three = llava_json(tmp_path / "data.json", tmp_path)
    assert (
        one.images == (str(tmp_path / "a.png"),) and one.turns == (("<image>\nwhat ?", "cat"),) and one.kind == "object"
    )
    assert two.images == () and len(two.turns) == 2 and two.kind == "all"
    assert three.images == (str(tmp_path / "a.png"), str(tmp_path / "b.png"))


@pytest.mark.parametrize(
    ("record", "says"),
    [
        ({"id": 7, "image": "a", "conversations": [{"from": "human", "value": "<image>"}]}, "record 7: conversations must alternate"),
        ({"conversations": [{"from": "gpt", "value": "a"}, {"from": "human", "value": "b"}]}, "must alternate human, gpt"),
        ({"conversations": [{"from": "human", "value": "b"}, {"from": "gpt", "value": "<image>"}]}, "record 0 has <image> in an answer"),
        ({"conversations": [{"from": "human", "value": 3}, {"from": "gpt", "value": "c"}]}, "record 0: every question and answer must be text"),
        ({"image": "a", "conversations": [{"from": "human", "value": "b"}, {"from": "gpt", "value": "c"}]}, "0 <image> in the questions but 1 images"),
        ({"image": {"path": "a"}, "conversations": [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "c"}]}, "a dict as image"),
    ],
)  # fmt: skip
def test_a_bad_record_is_named(tmp_path, record, says):
    (tmp_path / "data.json").write_text(json.dumps([record]))
    with pytest.raises(ValueError, match=says):
        llava_json(tmp_path / "data.json", tmp_path)


@pytest.mark.parametrize(
    "record", ["text", {"conversations": 3}, {"conversations": [{"from": "human"}, {"from": "gpt"}]}]
)
def test_a_record_of_another_kind_is_named(tmp_path, record):
    (tmp_path / "data.json").write_text(json.dumps([record]))
    with pytest.raises(ValueError, match="data.json, record 0 is not in LLaVA's form"):
        llava_json(tmp_path / "data.json", tmp_path)


def test_a_file_that_is_no_list_is_refused(tmp_path):
    with pytest.raises(ValueError, match="there is no file"):
        llava_json(tmp_path / "none.json", tmp_path)
    (tmp_path / "data.json").write_text("{}")
    with pytest.raises(ValueError, match="no JSON list"):
        llava_json(tmp_path / "data.json", tmp_path)


def test_easy_vqa_is_the_published_set():
    train, test = easy_vqa("train"), easy_vqa("test")
    assert (len(train), len(test)) == (38575, 9673)
    counts = {kind: sum(one.kind == kind for one in test) for kind in ("yes/no", "shape", "color")}
    assert counts == {"yes/no": 7136, "shape": 1257, "color": 1280}
    with pytest.raises(ValueError, match="no split 'val'"):
        easy_vqa("val")


def test_regrouping_keeps_every_question_once_and_each_image_alone():
    train = easy_vqa("train")[:500]
    joined = regroup(train, 8, seed=0)
    questions = [(one.images, q.replace("<image>\n", ""), a) for one in joined for q, a in one.turns]
    assert sorted(questions) == sorted(
        (one.images, one.turns[0][0].replace("<image>\n", ""), one.turns[0][1]) for one in train
    )
    assert all(sum(q.count("<image>") for q, _ in one.turns) == 1 and len(one.turns) <= 8 for one in joined)
    assert regroup(train, 8, seed=0) == joined != regroup(train, 8, seed=1)
    alone = [Conversation((), (("a ?", "b"),)), Conversation((), (("c ?", "d"),))]
    assert regroup(alone, 8, seed=0) == alone
