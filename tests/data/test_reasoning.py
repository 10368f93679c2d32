"""Answers with reasoning, which chat templates move, keep or drop: what is kept is trained on, and no mark stays."""

import pytest
from support.models import CHAT, tiny_llm, tiny_tokenizer

import vlm_vision as vv
from vlm_vision.data.conversations.labels import IGNORED, ChatLabels
from vlm_vision.data.conversations.records import Conversation
from vlm_vision.measure.answers import blind_answers, each_question, evaluate

THINK = "<think>shows red dog</think>\n\nred"
# as Qwen3's: reasoning is written apart from the answer, and only in the last turn
MOVES = (
    "{% for m in messages %}{% if m.role == 'assistant' %}"
    "{% set parts = m.content.split('</think>') %}{% set last = loop.last %}"
    "{{ '<s>assistant: ' }}{% if parts|length > 1 and last %}{{ ' In ' + parts[0].split('<think>')[-1] + ' Out ' }}{% endif %}"
    "{{ parts[-1].strip() + '</s>' }}{% else %}{{ '<s>' + m.role + ': ' + m.content + '</s>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<s>assistant: ' }}{% endif %}"
)
# as R1's: the generation prompt opens the reasoning, which a finished turn does not have
OPENS = MOVES.replace("{% if add_generation_prompt %}{{ '<s>assistant: ' }}", "{% if add_generation_prompt %}{{ '<s>assistant: <think>' }}")
# written as it stands, unless it begins with reasoning
BEGINS = (
    "{% for m in messages %}{{ '<s>' + m.role + ': ' }}"
    "{% if m.role == 'assistant' and m.content.startswith('<think>') %}{{ m.content.split('</think>')[-1].strip() }}"
    "{% else %}{{ m.content }}{% endif %}{{ '</s>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<s>assistant: ' }}{% endif %}"
)


def chat(encoder, template: str) -> ChatLabels:
    vlm = vv.VisionLanguageModel.attach(encoder, tiny_llm("llama"), tokenizer=tiny_tokenizer(chat_template=template))
    return ChatLabels(vlm.processor)


def trained(labels: ChatLabels, *turns: tuple[str, str]) -> str:
    example = labels(Conversation((), turns, name="record 7"), [])
    text = labels.tokenizer.decode(example.input_ids)
    assert "\ufdd0" not in text and "\ufdd1" not in text
    return " ".join(labels.tokenizer.convert_ids_to_tokens([i for i in example.labels if i != IGNORED]))


def test_reasoning_that_a_template_moves_is_trained_on_where_it_is_kept(encoder):
    labels = chat(encoder, MOVES)
    assert trained(labels, ("what ?", THINK)) == "In shows red dog Out red </s>"
    assert trained(labels, ("what ?", THINK), ("is it ?", "no")) == "red </s> no </s>"
    assert trained(labels, ("what ?", "red"), ("is it ?", THINK)) == "red </s> In shows red dog Out red </s>"
    assert trained(labels, ("what ?", "red")) == "red </s>"


def test_reasoning_that_a_template_drops_is_not_trained_on(encoder):
    assert trained(chat(encoder, BEGINS), ("what ?", THINK)) == "red </s>"


def test_reasoning_that_a_template_keeps_is_trained_on(encoder):
    answer = trained(chat(encoder, CHAT), ("what ?", THINK))
    assert answer.endswith("red </s>") and "shows red dog" in answer


def test_a_template_that_rewrites_its_own_prompt_is_one_sentence(encoder):
    labels = chat(encoder, MOVES)
    labels.processor.chat_template = OPENS
    with pytest.raises(ValueError, match="record 7: the chat template rewrites this answer, as those do that move or drop <think>"):
        trained(labels, ("what ?", THINK))


def test_every_question_of_a_conversation_is_scored(vlm):
    said = (("what color ?", "red"), ("is it a cat ?", "no"))
    test = [Conversation((), said, "a", str(i)) for i in range(3)]
    asked = list(each_question(test))
    assert len(asked) == 6 and [one.turns[-1][1] for one in asked[:2]] == ["red", "no"] and asked[1].turns == said
    report, answers = evaluate(vlm, asked, test)
    assert report.counts == {"a": 6} and len(answers) == 6 and report.blind == 1.0
    assert blind_answers(asked, test) == ["red", "no"] * 3 and "all                    6" in report.table()


def test_images_go_with_the_questions_that_name_them_and_captions_are_not_scored():
    turns = (("<image>", "a red dog"), ("what is <image> ?", "a cat"), ("is it ?", "yes"))
    one, two = each_question([Conversation(("a.png", "b.png"), turns)])
    assert one.images == two.images == ("a.png", "b.png") and one.turns == turns[:2]
    (first,) = each_question([Conversation(("a.png", "b.png"), (("<image> what ?", "x"), ("<image>", "y")))])
    assert first.images == ("a.png",)
