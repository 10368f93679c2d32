"""Generation as transformers has it, with images: every way to decode greedily gives what plain greedy search gives."""

from threading import Thread

import pytest
import torch
from support.models import make_image, tiny_llm
from support.tiny_vlm import GREEDY, LAYOUTS, inputs, join, tower
from transformers import GenerationConfig, TextIteratorStreamer, pipeline

import vlm_vision as vv

ONE = ["<image> what color is <image>"]


@pytest.fixture(scope="module", params=LAYOUTS)
def seeing(request) -> vv.VisionLanguageModel:
    """A model of each layout, for tests that leave it as it is."""
    return join(layout=request.param)


def new(vlm: vv.VisionLanguageModel, texts: list[str] | None = None, **options) -> torch.Tensor:
    batch = inputs(vlm, texts) if texts else inputs(vlm)
    return vlm.generate(**batch, **(GREEDY | options))


def by_hand(vlm: vv.VisionLanguageModel, texts: list[str], steps: int = 6) -> torch.Tensor:
    """Greedy search without cache or `generate`: the whole sequence at every step, what is written embedded as words."""
    batch = inputs(vlm, texts)
    images = {name: value for name, value in batch.items() if name in ("pixel_values", "image_sizes")}
    embeds, mask, ids = vlm.embed(batch["input_ids"], **images), batch["attention_mask"], batch["input_ids"]
    for _ in range(steps):
        token = vlm(inputs_embeds=embeds, attention_mask=mask).logits[:, -1:].argmax(-1)
        embeds = torch.cat([embeds, vlm.get_input_embeddings()(token)], dim=1)
        ids, mask = torch.cat([ids, token], dim=1), torch.cat([mask, torch.ones_like(token)], dim=1)
    return ids


@torch.no_grad()
def test_greedy_search_is_the_same_however_it_is_done(seeing):
    expected = new(seeing)
    assert torch.equal(expected, by_hand(seeing, ["<image> what color is <image>", "is this a cat ?", "<image> the"]))
    for options in (
        dict(use_cache=False),
        dict(cache_implementation="static"),
        dict(prefill_chunk_size=5),
    ):
        assert torch.equal(new(seeing, **options), expected), options
    config = GenerationConfig(max_new_tokens=6, do_sample=False, eos_token_id=-1)
    assert torch.equal(seeing.generate(**inputs(seeing), generation_config=config), expected)
    length = inputs(seeing)["input_ids"].shape[1]
    assert torch.equal(
        seeing.generate(**inputs(seeing), max_length=length + 4, do_sample=False, eos_token_id=None), expected[:, :-2]
    )


@torch.no_grad()
def test_guesses_change_nothing(seeing):
    """Whoever makes them: the prompt, the model itself, another, a smaller one, one that sees nothing."""
    torch.manual_seed(1)
    other = join(layout=seeing.layout.name, seed=1)
    for weight in other.language_model.parameters():
        weight.add_(0.02 * torch.randn_like(weight))
    config = type(seeing.language_model.config)(**seeing.language_model.config.to_dict() | dict(hidden_size=16))
    narrow = vv.VisionLanguageModel.attach(
        tower(16), type(seeing.language_model)(config), tokenizer=seeing.processor.tokenizer, layout=seeing.layout
    )
    for texts in (ONE, ["the <image> is the <image> a"]):
        expected = by_hand(seeing, texts, steps=12)
        for options in (
            dict(prompt_lookup_num_tokens=3),
            dict(prompt_lookup_num_tokens=20),
            dict(assistant_model=seeing),
            dict(assistant_model=other),
            dict(assistant_model=narrow),
            dict(assistant_model=tiny_llm("llama")),
        ):
            assert torch.equal(new(seeing, texts, max_new_tokens=12, **options), expected), list(options)


@torch.no_grad()
def test_an_assistant_sees_the_images(seeing):
    """A twin's guesses are all right, so that several tokens are written at a time; a blind one's would not be."""
    twin, steps = join(layout=seeing.layout.name), []
    twin.generation_config.eos_token_id = None
    twin.generation_config.num_assistant_tokens = 5
    twin.generation_config.num_assistant_tokens_schedule = "constant"
    twin.generation_config.assistant_confidence_threshold = 0.0
    hook = seeing.language_model.register_forward_pre_hook(lambda *_: steps.append(1))
    new(seeing, ONE, max_new_tokens=12, assistant_model=twin)
    hook.remove()
    assert len(steps) == 2  # five guesses and a token of its own, twice


@torch.no_grad()
def test_sampling_repeats_with_its_seed_and_sequences_come_in_order(seeing):
    for options in (dict(), dict(num_beams=2), dict(num_return_sequences=3)):
        runs = []
        for _ in range(2):
            torch.manual_seed(3)
            runs.append(new(seeing, do_sample=True, **options))
        assert torch.equal(*runs)
        copies = options.get("num_return_sequences", 1)
        ids = inputs(seeing)["input_ids"].repeat_interleave(copies, dim=0)
        assert torch.equal(runs[0][:, : ids.shape[1]], ids)
    beams = new(seeing, num_beams=3, num_return_sequences=3)
    assert torch.equal(beams[::3], new(seeing, num_beams=3)) and len(beams) == 9


@torch.no_grad()
def test_beam_search_is_that_of_the_language_model(seeing):
    batch = inputs(seeing)
    images = {name: value for name, value in batch.items() if name in ("pixel_values", "image_sizes")}
    embeds = seeing.embed(batch["input_ids"], **images)
    options = GREEDY | dict(num_beams=3, length_penalty=0.5, pad_token_id=1)
    theirs = seeing.language_model.generate(inputs_embeds=embeds, attention_mask=batch["attention_mask"], **options)
    assert torch.equal(seeing.generate(**batch, **options)[:, -6:], theirs)
    ours = seeing.generate(inputs_embeds=embeds, attention_mask=batch["attention_mask"], **options)
    assert torch.equal(ours, theirs)


@torch.no_grad()
def test_a_cache_is_taken_up_again(seeing):
    batch, expected = inputs(seeing, ONE), new(seeing, ONE)

    def started():
        return seeing.generate(**batch, **GREEDY | dict(max_new_tokens=3), return_dict_in_generate=True)

    half = started()
    images = {name: value for name, value in batch.items() if name in ("pixel_values", "image_sizes")}
    more = GREEDY | dict(max_new_tokens=3)
    assert torch.equal(seeing.generate(half.sequences, past_key_values=half.past_key_values, **more), expected)
    half = started()
    assert torch.equal(
        seeing.generate(half.sequences, past_key_values=half.past_key_values, **images, **more), expected
    )
    half = started()
    rest = half.sequences[:, half.past_key_values.get_seq_length() :]
    mask = torch.ones_like(half.sequences)
    out = seeing.generate(rest, past_key_values=half.past_key_values, attention_mask=mask, **more)
    assert torch.equal(out[:, -3:], expected[:, -3:])


@torch.no_grad()
def test_the_next_turn_may_show_another_image(seeing):
    texts = ["<image> what", "<image> what red <image> is"]
    whole = inputs(seeing, texts[1:])
    expected = seeing.generate(**whole, **GREEDY)
    first = seeing.processor(text=texts[0], images=make_image(0, 40, 36))
    cache = seeing(**first, use_cache=True).past_key_values
    assert torch.equal(seeing.generate(**whole, past_key_values=cache, **GREEDY), expected)
    cache = seeing(**first, use_cache=True).past_key_values
    known = first["input_ids"].shape[1]
    second = seeing.processor.image_processor(make_image(1, 49, 36))
    ids, mask = whole["input_ids"][:, known:], whole["attention_mask"]
    out = seeing.generate(ids, attention_mask=mask, past_key_values=cache, **second, **GREEDY)
    assert torch.equal(out[:, -6:], expected[:, -6:])
    cache = seeing(**first, use_cache=True).past_key_values
    with pytest.raises(ValueError, match="image tokens but there are no pixel_values"):
        seeing.generate(whole["input_ids"], past_key_values=cache, **GREEDY)


@torch.no_grad()
def test_scores_hidden_states_and_attentions_come_along(seeing):
    seeing.set_attn_implementation("eager")
    wanted = dict.fromkeys(["output_scores", "output_logits", "output_hidden_states", "output_attentions"], True)
    try:
        out = new(seeing, return_dict_in_generate=True, **wanted)
    finally:
        seeing.set_attn_implementation("sdpa")
    length = inputs(seeing)["input_ids"].shape[1]
    assert torch.equal(out.sequences, new(seeing))
    assert [logits.argmax(-1).tolist() for logits in out.logits] == out.sequences[:, length:].T.tolist()
    assert [states[0].shape[1] for states in out.hidden_states] == [length] + [1] * 5
    assert [weights[0].shape[-1] for weights in out.attentions] == [length + i for i in range(6)]


@torch.no_grad()
def test_streaming_stopping_and_shaping(seeing):
    expected, length = new(seeing, ONE), inputs(seeing, ONE)["input_ids"].shape[1]
    streamer = TextIteratorStreamer(seeing.processor.tokenizer, skip_prompt=True)
    thread = Thread(target=new, args=(seeing, ONE), kwargs=dict(streamer=streamer))
    thread.start()
    assert "".join(streamer) == seeing.processor.tokenizer.decode(expected[0, length:])
    thread.join()
    stop = [lambda ids, scores, **_: torch.full((len(ids),), ids.shape[1] >= length + 2)]
    assert torch.equal(new(seeing, ONE, stopping_criteria=stop), expected[:, : length + 2])
    once = new(seeing, ONE, no_repeat_ngram_size=1)[0, length:].tolist()
    assert len(set(once)) == 6
    first = int(expected[0, length])
    assert first not in new(seeing, ONE, min_new_tokens=3, eos_token_id=first)[0, length : length + 3]
    assert (
        new(seeing, ["<image> what"], guidance_scale=1.0 + 1e-6)[0, -6:].tolist()
        == new(seeing, ["<image> what"])[0, -6:].tolist()
    )


@torch.no_grad()
def test_the_pipeline_of_transformers_answers(seeing):
    ask = pipeline("image-text-to-text", model=seeing, processor=seeing.processor)
    said = ask(images=make_image(), text="<image> what", max_new_tokens=4, do_sample=False, return_full_text=False)
    batch = seeing.processor(text="<image> what", images=make_image())
    out = seeing.generate(**batch, max_new_tokens=4, do_sample=False)[0, batch["input_ids"].shape[1] :]
    assert said[0]["generated_text"].strip() == seeing.processor.tokenizer.decode(out, skip_special_tokens=True).strip()
