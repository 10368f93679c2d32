"""A `VisionLanguageModel` keeps the promises of a transformers model: configuration, weights, names, outputs."""

import inspect
import json

import pytest
import torch
from safetensors.torch import load_file
from support.models import make_image, tiny_llm, tiny_tokenizer
from support.tiny_vlm import GREEDY, LAYOUTS, inputs, join, tower
from transformers import AutoConfig, AutoModelForImageTextToText

import vlm_vision as vv
from vlm_vision.vlm.config import VisionLanguageConfig


@pytest.fixture(scope="module", params=LAYOUTS)
def seeing(request) -> vv.VisionLanguageModel:
    """A model of each layout, for tests that leave it as it is."""
    return join(layout=request.param)


# ---- configuration and weights


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_configuration_survives_dict_json_and_folder(layout, tmp_path):
    config = join(layout=layout).config
    config.save_pretrained(tmp_path)
    kind = type(config)
    for again in (
        kind.from_dict(config.to_dict()),
        kind.from_json_file(tmp_path / "config.json"),
        AutoConfig.from_pretrained(tmp_path),
    ):
        assert type(again) is kind and again.to_dict() | {"_name_or_path": ""} == config.to_dict()
    assert VisionLanguageConfig().to_dict()["model_type"] == "vlm_vision"


@pytest.mark.parametrize("layout", LAYOUTS)
@torch.no_grad()
def test_shards_hold_the_same_model(layout, tmp_path):
    vlm = join(layout=layout)
    vlm.save_pretrained(tmp_path, max_shard_size="20KB")
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 5 and index["weight_map"].keys() == vlm.state_dict().keys()
    again = vv.VisionLanguageModel.from_pretrained(tmp_path)
    assert torch.equal(again(**inputs(again)).logits, vlm(**inputs(vlm)).logits)


def test_the_dtype_is_kept_or_as_asked_for(tmp_path):
    join().to(torch.bfloat16).save_pretrained(tmp_path)
    assert {weight.dtype for weight in load_file(tmp_path / "model.safetensors").values()} == {torch.bfloat16}
    for asked, given in (
        ({}, torch.bfloat16),
        ({"dtype": "auto"}, torch.bfloat16),
        ({"dtype": torch.float32}, torch.float32),
    ):
        vlm = AutoModelForImageTextToText.from_pretrained(tmp_path, **asked)
        assert {weight.dtype for weight in vlm.parameters()} == {given} == {vlm.dtype}
        assert vlm.config.dtype == vlm.config.text_config.dtype == given
        assert vlm(**inputs(vlm)).logits.dtype == given


@pytest.mark.parametrize("llm", ["llama", "llama_tied", "gpt2", "gemma"])
@torch.no_grad()
def test_the_vocabulary_grows_and_shrinks(llm, tmp_path):
    vlm = join(llm)
    before = vlm(**inputs(vlm)).logits[..., :28]
    tied = vlm.config.text_config.tie_word_embeddings
    for rows in (50, 28):
        vlm.resize_token_embeddings(rows)
        assert vlm.config.text_config.vocab_size == vlm.language_model.config.vocab_size == rows
        assert vlm.language_model.vocab_size == rows
        words, head = vlm.get_input_embeddings().weight, vlm.get_output_embeddings().weight
        assert len(words) == len(head) == rows and (words is head) == tied
        batch = inputs(vlm)
        torch.testing.assert_close(vlm(**batch).logits[..., :28], before)
        assert vlm(**batch, labels=batch["input_ids"]).loss.isfinite()
        vlm.save_pretrained(tmp_path)
        again = vv.VisionLanguageModel.from_pretrained(tmp_path)
        assert torch.equal(again.generate(**batch, **GREEDY), vlm.generate(**batch, **GREEDY))
        assert (again.get_input_embeddings().weight is again.get_output_embeddings().weight) == tied
    with pytest.raises(ValueError, match="new_num_tokens is 27, but the image token has id 27: keep at least 28"):
        vlm.resize_token_embeddings(27)


def test_a_model_from_its_configuration_alone_is_whole(tmp_path):
    config = join(layout="anyres").config
    with torch.device("meta"):
        shell = vv.VisionLanguageModel(config)
    assert {tensor.device.type for tensor in [*shell.parameters(), *shell.buffers()]} == {"meta"}
    config.save_pretrained(tmp_path)
    with torch.device("meta"), pytest.raises(RuntimeError, match="use the context manager or global device with"):
        vv.VisionLanguageModel.from_pretrained(tmp_path)
    made = AutoModelForImageTextToText.from_config(config)
    assert all(weight.isfinite().all() and weight.abs().max() < 10 for weight in made.parameters())
    half = AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16)
    assert {weight.dtype for weight in half.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_loading_leaves_nothing_as_memory_happened_to_be(layout, tmp_path):
    vlm = join(layout=layout)
    vlm.save_pretrained(tmp_path)
    again, info = vv.VisionLanguageModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    held = again._processor.image_processor
    assert again.processor.image_processor is held
    saved, loaded = ({**dict(one.named_parameters()), **dict(one.named_buffers())} for one in (vlm, again))
    assert saved.keys() == loaded.keys()
    for name in saved:
        assert loaded[name].device.type == "cpu" and torch.equal(saved[name], loaded[name]), name
    assert not again.training


def test_only_the_language_models_sizes_may_be_forgiven(tmp_path):
    join().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["text_config"]["vocab_size"] = 40
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="has mismatched keys"):
        vv.VisionLanguageModel.from_pretrained(tmp_path)
    vlm = vv.VisionLanguageModel.from_pretrained(tmp_path, ignore_mismatched_sizes=True)
    assert vlm.get_input_embeddings().weight.shape == (40, 32)
    assert 0 < vlm.get_input_embeddings().weight.abs().max() < 1
    config["encoder_config"]["architecture"]["mlp_dim"] = 48
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="has mismatched keys: .*encoder.model.blocks.0.mlp"):
        vv.VisionLanguageModel.from_pretrained(tmp_path, ignore_mismatched_sizes=True)


def test_what_is_not_installed_is_said_in_transformers_words(tmp_path):
    from transformers import BitsAndBytesConfig

    join().save_pretrained(tmp_path)
    with pytest.raises(ImportError, match="FlashAttention2"):
        vv.VisionLanguageModel.from_pretrained(tmp_path, attn_implementation="flash_attention_2")
    with pytest.raises(ImportError, match="bitsandbytes"):
        vv.VisionLanguageModel.from_pretrained(tmp_path, quantization_config=BitsAndBytesConfig(load_in_4bit=True))
    with pytest.raises(ValueError, match='"attn_implementation=sdpa"'):
        vv.VisionLanguageModel.from_pretrained(tmp_path, attn_implementation="none")


def test_parts_go_by_the_names_that_transformers_has_for_them():
    vlm = join()
    assert vlm.get_encoder() is vlm.get_encoder(modality="image") is vlm.get_encoder(modality="video") is vlm.encoder
    assert vlm.get_encoder(modality="audio") is vlm
    decoder = vlm.get_decoder()
    assert decoder is vlm.language_model.model
    other = join().get_decoder()
    vlm.set_decoder(other)
    assert vlm.get_decoder() is other is vlm.language_model.model
    assert vlm.base_model is vlm and vlm.can_generate() and vlm.is_backend_compatible()
    names = list(inspect.signature(vlm.forward).parameters)
    assert names[:2] == ["input_ids", "pixel_values"] and names[-1] == "kwargs"
    every = sum(weight.numel() for weight in vlm.parameters())
    assert vlm.num_parameters() == every and vlm.num_parameters(exclude_embeddings=True) == every - 30 * 32
    vlm.encoder.requires_grad_(False)
    assert vlm.num_parameters(only_trainable=True) == every - sum(w.numel() for w in vlm.encoder.parameters())


# ---- outputs


@pytest.mark.parametrize("layout", LAYOUTS)
@torch.no_grad()
def test_attention_implementations_agree(layout, tmp_path):
    vlm = join(layout=layout)
    vlm.save_pretrained(tmp_path)
    batch = inputs(vlm)
    seen = batch["attention_mask"].bool()
    loaded = {
        name: vv.VisionLanguageModel.from_pretrained(tmp_path, attn_implementation=name) for name in ("eager", "sdpa")
    }
    for name, one in loaded.items():
        configs = (one.config, one.config.text_config, one.language_model.config)
        assert [config._attn_implementation for config in configs] == [name] * 3
    expected = loaded["sdpa"](**batch).logits[seen]
    torch.testing.assert_close(loaded["eager"](**batch).logits[seen], expected, rtol=1e-4, atol=1e-5)
    loaded["sdpa"].set_attn_implementation("eager")
    assert loaded["sdpa"].language_model.config._attn_implementation == "eager"
    assert torch.equal(loaded["sdpa"](**batch).logits, loaded["eager"](**batch).logits)
    language = tiny_llm("llama")
    language.set_attn_implementation("eager")
    attached = vv.VisionLanguageModel.attach(tower(), language, tokenizer=tiny_tokenizer())
    assert attached.config._attn_implementation == "eager"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_hidden_states_and_attentions_keep_their_gradients(layout):
    vlm = join(layout=layout)
    vlm.set_attn_implementation("eager")
    batch = inputs(vlm)
    out = vlm(**batch, output_hidden_states=True, output_attentions=True)
    rows, length = batch["input_ids"].shape
    assert [tuple(state.shape) for state in out.hidden_states] == [(rows, length, 32)] * 3
    assert [tuple(weights.shape) for weights in out.attentions] == [(rows, 4, length, length)] * 2
    kept = [*out.hidden_states, *out.attentions]
    for tensor in kept:
        tensor.retain_grad()
    out.logits.flatten()[0].backward()
    assert all(tensor.grad is not None for tensor in kept)
    plain = vlm(**batch, return_dict=False)
    assert isinstance(plain, tuple) and torch.equal(plain[0], out.logits)


@torch.no_grad()
def test_embeddings_in_place_of_ids_are_the_same_and_so_is_a_second_call(seeing):
    batch = inputs(seeing)
    images = {name: value for name, value in batch.items() if name in ("pixel_values", "image_sizes")}
    expected = seeing(**batch).logits
    assert torch.equal(seeing(**batch).logits, expected)
    embeds = seeing.embed(batch["input_ids"], **images)
    assert torch.equal(seeing(inputs_embeds=embeds, attention_mask=batch["attention_mask"]).logits, expected)


@torch.no_grad()
def test_a_written_image_token_is_a_word(vlm):
    """Also where there is no mask to tell that the cache holds the beginning."""
    batch = vlm.processor(text="<image> what", images=make_image())
    first = vlm(input_ids=batch["input_ids"], pixel_values=batch["pixel_values"], use_cache=True)
    token = torch.tensor([[vlm.config.image_token_id]])
    assert vlm(input_ids=token, past_key_values=first.past_key_values).logits.isfinite().all()
    vlm.get_output_embeddings().weight.zero_()
    vlm.get_output_embeddings().weight[vlm.config.image_token_id] = 1e3
    vlm.get_output_embeddings().weight[3] = -1e3
    out = vlm.generate(**batch, **GREEDY)[0, -6:]
    assert set(out.tolist()) <= {3, vlm.config.image_token_id} and (out == vlm.config.image_token_id).any()
