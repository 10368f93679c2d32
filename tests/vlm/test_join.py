"""A language model with eyes: generation, masks, saving, adapters, and every way to hand it wrong input."""

import json
import subprocess
import sys

import pytest
import torch
from support.golden import golden_case
from support.models import CHAT, LLMS, make_image, tiny_llm, tiny_tokenizer

import projectors
import vlm_vision as vv

TEXTS = ["<image> what color is <image>", "is this a cat ?", "<image> the"]


def inputs(vlm: vv.VisionLanguageModel, **options):
    images = [make_image(i) for i in range(3)]
    return vlm.processor(text=TEXTS, images=images, return_tensors="pt", **options)


def join(name: str, encoder: vv.Encoder, **tokenizer) -> vv.VisionLanguageModel:
    return vv.VisionLanguageModel.attach(encoder, tiny_llm(name), tokenizer=tiny_tokenizer(**tokenizer))


@pytest.mark.parametrize("name", LLMS)
@torch.no_grad()
def test_generation_is_what_the_language_model_makes_of_the_embeddings(name, encoder):
    vlm = join(name, encoder)
    batch = inputs(vlm)
    out = vlm.generate(**batch, max_new_tokens=8, do_sample=False)
    embeds = vlm.get_input_embeddings()(batch["input_ids"])
    tokens = vlm.projector(encoder(batch["pixel_values"]).patch_tokens, (4, 4)).flatten(0, 1)
    embeds[batch["input_ids"] == vlm.config.image_token_id] = tokens
    by_hand = vlm.language_model.generate(
        inputs_embeds=embeds,
        attention_mask=batch["attention_mask"],
        max_new_tokens=8,
        do_sample=False,
        eos_token_id=vlm.generation_config.eos_token_id,
        pad_token_id=vlm.generation_config.pad_token_id,
    )
    prompt = batch["input_ids"].shape[1]
    assert torch.equal(out[:, :prompt], batch["input_ids"]) and torch.equal(out[:, prompt:], by_hand)
    assert torch.equal(vlm.generate(**batch, max_new_tokens=8, do_sample=False, use_cache=False), out)


@pytest.mark.parametrize("name", LLMS)
@torch.no_grad()
def test_a_row_does_not_depend_on_its_batch(name, encoder):
    vlm = join(name, encoder)
    together = vlm(**inputs(vlm)).logits
    mask = inputs(vlm)["attention_mask"].bool()
    images = [[make_image(0), make_image(1)], [], [make_image(2)]]
    for i, (text, own) in enumerate(zip(TEXTS, images, strict=True)):
        alone = vlm(**vlm.processor(text=text, images=own, return_tensors="pt")).logits[0]
        torch.testing.assert_close(together[i][mask[i]], alone, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_padding_on_the_right_gives_the_same_as_on_the_left(encoder):
    vlm = join("gpt2", encoder)
    left = inputs(vlm)
    vlm.processor.tokenizer.padding_side = "right"
    right = inputs(vlm)
    a, b = vlm(**left).logits, vlm(**right).logits
    torch.testing.assert_close(
        a[left["attention_mask"].bool()], b[right["attention_mask"].bool()], rtol=1e-4, atol=1e-5
    )


@torch.no_grad()
def test_beams_see_their_own_images(vlm):
    batch = inputs(vlm)
    found = vlm.generate(**batch, max_new_tokens=4, num_beams=3, do_sample=False)
    alone = vlm.processor(text=TEXTS[2], images=[make_image(2)], return_tensors="pt")
    own = vlm.generate(**alone, max_new_tokens=4, num_beams=3, do_sample=False)
    assert torch.equal(found[2, -4:], own[0, -4:])


@torch.no_grad()
def test_generation_stops_at_the_end_token(vlm):
    batch = vlm.processor(text="<image> what", images=make_image(), return_tensors="pt")
    free = vlm.generate(**batch, max_new_tokens=6, do_sample=False, eos_token_id=None)
    third = free[0, batch["input_ids"].shape[1] + 2].item()
    vlm.generation_config.eos_token_id = third
    stopped = vlm.generate(**batch, max_new_tokens=6, do_sample=False)
    assert stopped.shape[1] <= batch["input_ids"].shape[1] + 3 and stopped[0, -1] == third


def test_the_image_changes_the_answer_and_the_loss_is_the_language_models(vlm):
    one = vlm.processor(text="<image> what", images=make_image(1), return_tensors="pt")
    other = vlm.processor(text="<image> what", images=make_image(2), return_tensors="pt")
    assert not torch.allclose(vlm(**one).logits, vlm(**other).logits)
    labels = one["input_ids"].clone()
    labels[:, :-2] = -100
    logits = vlm(**one).logits[0, -3:-1]
    expected = torch.nn.functional.cross_entropy(logits, one["input_ids"][0, -2:])
    torch.testing.assert_close(vlm(**one, labels=labels).loss, expected)


@pytest.mark.parametrize("name", LLMS)
@torch.no_grad()
def test_a_saved_model_is_loaded_by_the_auto_classes(name, encoder, tmp_path):
    from transformers import AutoModelForImageTextToText, AutoProcessor

    vlm = join(name, encoder)
    expected = vlm(**inputs(vlm)).logits
    vlm.save_pretrained(tmp_path)
    assert sorted(p.suffix for p in tmp_path.iterdir() if "model" in p.name) == [".safetensors"]
    again = AutoModelForImageTextToText.from_pretrained(tmp_path)
    processor = AutoProcessor.from_pretrained(tmp_path)
    batch = processor(text=TEXTS, images=[make_image(i) for i in range(3)], return_tensors="pt")
    assert isinstance(again, vv.VisionLanguageModel) and torch.equal(again(**batch).logits, expected)
    embeddings, head = again.get_input_embeddings().weight, again.get_output_embeddings().weight
    assert (embeddings.data_ptr() == head.data_ptr()) == vlm.config.text_config.tie_word_embeddings


@torch.no_grad()
def test_a_saved_fused_model_is_the_same(tmp_path):
    towers = [
        vv.load(golden_case("hf_dinov2_reg"), tap=vv.Tap(-2, False), image_size=42),
        vv.load(golden_case("hf_siglip"), image_size=48),
    ]
    vlm = vv.VisionLanguageModel.attach(
        vv.FusedEncoder(towers), tiny_llm("llama"), projector="fused_mlp", tokenizer=tiny_tokenizer()
    )
    vlm.save_pretrained(tmp_path)
    again = vv.VisionLanguageModel.from_pretrained(tmp_path)
    assert torch.equal(again(**inputs(again)).logits, vlm(**inputs(vlm)).logits)
    assert inputs(again)["input_ids"].eq(again.config.image_token_id).sum() == 3 * 36


def test_half_precision_language_model_and_full_precision_tower_stay_so(encoder, tmp_path):
    llm = tiny_llm("llama")
    for weight in llm.parameters():  # not llm.to(): that would round the rotary frequencies too
        weight.data = weight.data.bfloat16()
    vlm = vv.VisionLanguageModel.attach(encoder, llm, tokenizer=tiny_tokenizer())
    expected = vlm(**inputs(vlm)).logits
    vlm.save_pretrained(tmp_path)
    again = vv.VisionLanguageModel.from_pretrained(tmp_path)
    assert again.encoder.dtype == torch.float32 and again.language_model.dtype == torch.bfloat16
    assert torch.equal(again(**inputs(again)).logits, expected)


@pytest.mark.parametrize("first", ["vlm_vision", "transformers"])
def test_the_auto_classes_know_our_models_whichever_is_imported_first(vlm, tmp_path, first):
    vlm.save_pretrained(tmp_path)
    second = {"vlm_vision": "transformers", "transformers": "vlm_vision"}[first]
    code = (
        f"import {first}, {second}\n"
        "from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageTextToText, AutoProcessor\n"
        f"names = [type(c.from_pretrained({str(tmp_path)!r})).__name__ for c in "
        "(AutoProcessor, AutoConfig, AutoImageProcessor, AutoModelForImageTextToText)]\n"
        "print(*names)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == [
        "VisionLanguageProcessor",
        "VisionLanguageConfig",
        "VisionLanguageImageProcessor",
        "VisionLanguageModel",
    ], done.stderr


def test_importing_the_library_imports_no_transformers():
    code = "import sys, vlm_vision; print([m for m in ('transformers', 'peft', 'accelerate') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_nothing_is_kept_for_gradients_that_nobody_wants(vlm):
    vlm.encoder.requires_grad_(False)
    vlm.language_model.requires_grad_(False)
    vlm(**inputs(vlm), labels=inputs(vlm)["input_ids"]).loss.backward()
    assert all(weight.grad is not None for weight in vlm.projector.parameters())
    ((tokens, _),) = vlm.encode(inputs(vlm)["pixel_values"])
    assert not tokens.requires_grad


def test_gradient_checkpointing_changes_no_gradient(vlm):
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            vlm.gradient_checkpointing_enable()
            assert vlm.encoder.model.gradient_checkpointing
        vlm.train().zero_grad()
        batch = inputs(vlm)
        vlm(**batch, labels=batch["input_ids"], use_cache=False).loss.backward()
        gradients.append(vlm.encoder.model.blocks[0].attn.qkv.weight.grad.clone())
    torch.testing.assert_close(gradients[0], gradients[1])


def test_the_chat_template_of_the_language_model_is_honored(encoder):
    vlm = join("llama", encoder, chat_template=CHAT)
    content = [{"type": "image", "image": make_image()}, {"type": "text", "text": "what color"}]
    chat = [{"role": "user", "content": content}]
    text = vlm.processor.apply_chat_template(chat, add_generation_prompt=True)
    assert text == "<s>user: <image>\nwhat color</s><s>assistant: "
    batch = vlm.processor.apply_chat_template(
        chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    by_hand = vlm.processor(text=text, images=[make_image()], return_tensors="pt")
    assert torch.equal(batch["input_ids"], by_hand["input_ids"]) and torch.equal(
        batch["pixel_values"], by_hand["pixel_values"]
    )
    assert (
        by_hand["input_ids"] == vlm.processor.tokenizer.bos_token_id
    ).sum() == 2  # those of the template, not one more


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("pad", [True, False])
def test_tokenizers_with_and_without_bos_and_pad(encoder, bos, pad):
    vlm = join("llama", encoder, bos=bos, pad=pad)
    batch = inputs(vlm)
    assert vlm.processor.tokenizer.pad_token == ("<pad>" if pad else "</s>")
    assert batch["attention_mask"].sum(dim=1).tolist() == [16 * 2 + 3 + bos, 5 + bos, 16 + 1 + bos]


def test_the_users_tokenizer_and_tower_are_left_alone(encoder):
    tokenizer, before = tiny_tokenizer(), {k: v.clone() for k, v in encoder.state_dict().items()}
    vv.VisionLanguageModel.attach(encoder, tiny_llm("llama"), tokenizer=tokenizer)
    assert "<image>" not in tokenizer.get_vocab() and tokenizer.pad_token is None
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())


def test_a_spare_row_of_the_embeddings_is_used_for_the_image_token(encoder):
    llm = tiny_llm("llama", vocab_size=64)
    vlm = vv.VisionLanguageModel.attach(encoder, llm, tokenizer=tiny_tokenizer())
    assert llm.get_input_embeddings().weight.shape[0] == 64 and vlm.config.image_token_id < 64
    llm = tiny_llm("llama_tied", vocab_size=len(tiny_tokenizer()))
    vlm = vv.VisionLanguageModel.attach(encoder, llm, tokenizer=tiny_tokenizer())
    assert (
        llm.get_input_embeddings().weight.shape[0] == vlm.config.image_token_id + 1 == vlm.config.text_config.vocab_size
    )


@pytest.mark.parametrize(
    ("text", "images", "says"),
    [
        ("<image> <image>", 1, "2 <image> in all, but there are 1 images"),
        ("what", 1, "0 <image> in all, but there are 1 images"),
        ("<image>", 0, "1 <image> in all, but there are 0 images"),
        (["<image>", "a"], [[], [0]], "text 0 has 1 <image> but 0 images"),
        (["<image>"], [[0], [0]], "got 1 texts and 2 lists"),
        (None, 1, "needs text"),
    ],
)
def test_images_unlike_placeholders_are_refused(vlm, text, images, says):
    given = [[make_image()] * len(row) for row in images] if isinstance(images, list) else [make_image()] * images
    with pytest.raises(ValueError, match=says):
        vlm.processor(text=text, images=given)


def test_truncation_never_cuts_image_tokens(vlm):
    kept = vlm.processor(text="<image> what color is this", images=make_image(), truncation=True, max_length=18)
    assert kept["input_ids"].shape == (1, 18)
    with pytest.raises(
        ValueError, match="text 0 needs 16 image tokens, but truncation to 10 tokens leaves 9: raise max_length"
    ):
        vlm.processor(text="<image> what color is this", images=make_image(), truncation=True, max_length=10)


def test_image_tokens_unlike_features_are_refused(vlm):
    batch = inputs(vlm)
    with pytest.raises(ValueError, match="48 image tokens but 2 images give 16 each, 32 in all"):
        vlm(input_ids=batch["input_ids"], pixel_values=batch["pixel_values"][:2])
    with pytest.raises(ValueError, match="48 image tokens but there are no pixel_values"):
        vlm(input_ids=batch["input_ids"])
    with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
        vlm(pixel_values=batch["pixel_values"])


def test_what_does_not_fit_is_not_joined(encoder):
    with pytest.raises(ValueError, match="did you mean 'linear'"):
        vv.VisionLanguageModel.attach(encoder, tiny_llm("llama"), projector="liner", tokenizer=tiny_tokenizer())
    with pytest.raises(ValueError, match="maps 8 to 32 channels, but the encoder gives 32"):
        odd = projectors.build("linear", in_dim=8, out_dim=32)
        vv.VisionLanguageModel.attach(encoder, tiny_llm("llama"), projector=odd, tokenizer=tiny_tokenizer())
    with pytest.raises(ValueError, match="needs the language model's tokenizer"):
        vv.VisionLanguageModel.attach(encoder, tiny_llm("llama"))


def test_a_folder_whose_weights_or_preprocessing_do_not_fit_is_refused(vlm, tmp_path):
    from safetensors.torch import load_file, save_file

    vlm.save_pretrained(tmp_path)
    file = tmp_path / "processor_config.json"
    config = json.loads(file.read_text())
    preprocess = config["image_processor"]["encoder_config"]["preprocess"]
    preprocess["resample"] = "nearest"
    file.write_text(json.dumps(config))
    with pytest.raises(ValueError, match="was saved with preprocessing .* and now describes"):
        vv.VisionLanguageModel.from_pretrained(tmp_path)
    vlm.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["projector.fc1.bias"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="missing keys: projector.fc1.bias"):
        vv.VisionLanguageModel.from_pretrained(tmp_path)


@torch.no_grad()
def test_decoding_by_hand_with_a_cache_counts_positions_from_the_mask(vlm):
    batch = inputs(vlm)
    first = vlm(**batch, use_cache=True)
    token = torch.full((3, 1), 5)
    mask = torch.cat([batch["attention_mask"], torch.ones(3, 1, dtype=torch.long)], dim=1)
    cached = vlm(input_ids=token, past_key_values=first.past_key_values, attention_mask=mask).logits[:, -1]
    ids = torch.cat([batch["input_ids"], token], dim=1)
    whole = vlm(input_ids=ids, pixel_values=batch["pixel_values"], attention_mask=mask).logits[:, -1]
    torch.testing.assert_close(cached, whole, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_what_is_saved_is_what_the_model_is_now(vlm, tmp_path):
    vlm.encoder.tap = vv.Tap(0, norm=False)
    vlm.encoder.preprocess = vlm.encoder.preprocess.at(48, 48)
    assert vlm.processor.image_processor.num_image_tokens(48, 48) == 36
    batch = inputs(vlm)
    assert batch["pixel_values"].shape[-2:] == (48, 48)
    vlm.save_pretrained(tmp_path)
    again = vv.VisionLanguageModel.from_pretrained(tmp_path)
    assert again.encoder.tap == vv.Tap(0, norm=False)
    assert torch.equal(again(**inputs(again)).logits, vlm(**batch).logits)


def test_rows_may_have_no_image(vlm):
    texts = ["<image> what", "is this a cat ?"]
    for images in ([make_image(), None], [[make_image()], []], [make_image()]):
        assert vlm.processor(text=texts, images=images)["pixel_values"].shape[0] == 1
    with pytest.raises(ValueError, match="some texts begin with <s> and some do not"):
        vlm.processor(text=["<s> what", "is this"])
    with pytest.raises(ValueError, match="expected a prompt or a list of prompts"):
        vlm.processor(text=[None])


def test_generation_ends_where_the_chat_template_ends_an_answer(encoder):
    tokenizer = tiny_tokenizer(chat_template=CHAT.replace("</s>", "<|end|>"))
    tokenizer.add_tokens(["<|end|>"], special_tokens=True)
    vlm = vv.VisionLanguageModel.attach(encoder, tiny_llm("llama"), tokenizer=tokenizer)
    end = vlm.processor.tokenizer.convert_tokens_to_ids("<|end|>")
    assert vlm.processor.answer_frame() == ("", "<|end|>")
    assert vlm.generation_config.eos_token_id == [1, end]


def test_a_frozen_encoder_stays_in_evaluation_mode(vlm):
    vlm.encoder.requires_grad_(False)
    vlm.train()
    assert vlm.language_model.training and not vlm.encoder.training


@pytest.mark.parametrize("damage", ["truncate", "shape", "tokenizer"])
def test_a_damaged_folder_is_one_sentence(vlm, tmp_path, damage, capsys):
    from vlm_vision.cli.main import main

    vlm.save_pretrained(tmp_path)
    make_image().save(tmp_path / "a.png")
    if damage == "truncate":
        weights = tmp_path / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-50])
    elif damage == "shape":
        config = json.loads((tmp_path / "config.json").read_text())
        config["text_config"]["intermediate_size"] = 48
        (tmp_path / "config.json").write_text(json.dumps(config))
    else:
        (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match=str(tmp_path)):
        vv.VisionLanguageModel.from_pretrained(tmp_path)
    capsys.readouterr()
    assert main(["ask", str(tmp_path / "a.png"), "what ?", "--model", str(tmp_path)]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_what_is_no_language_model_is_not_given_eyes(encoder):
    for llm in (None, "gpt2", tiny_llm("llama").model):
        with pytest.raises(ValueError, match="expected an AutoModelForCausalLM|is not a causal language model"):
            vv.VisionLanguageModel.attach(encoder, llm, tokenizer=tiny_tokenizer())


def test_a_language_model_unpacked_from_gguf_is_saved_as_any_other(encoder, tmp_path):
    from transformers import GgufConfig

    llm = tiny_llm("llama")
    llm.config.quantization_config = GgufConfig("model.gguf")  # left there by transformers, though all is unpacked
    vlm = vv.VisionLanguageModel.attach(encoder, llm, tokenizer=tiny_tokenizer())
    vlm.save_pretrained(tmp_path)
    again = vv.VisionLanguageModel.from_pretrained(tmp_path)
    again.save_pretrained(tmp_path / "again")
    assert "quantization_config" not in json.loads((tmp_path / "again" / "config.json").read_text())["text_config"]
    assert again.float().answer(make_image(), "what is") == vlm.answer(make_image(), "what is")


def test_images_without_input_ids_are_refused_not_forgotten(vlm):
    batch = vlm.processor(text="<image> what", images=make_image())
    pixels = batch["pixel_values"]
    words = vlm.get_input_embeddings()(batch["input_ids"])
    with pytest.raises(ValueError, match="without input_ids"):
        vlm.generate(pixel_values=pixels, max_new_tokens=2)
    with pytest.raises(ValueError, match="without input_ids"):
        vlm.generate(inputs_embeds=words, pixel_values=pixels, max_new_tokens=2)
    with pytest.raises(ValueError, match="cannot be combined with images"):
        vlm(inputs_embeds=words, pixel_values=pixels)
    with pytest.raises(ValueError, match="pass pixel_values or patch_tokens"):
        vlm.get_image_features()


def test_one_message_is_no_conversation(vlm):
    with pytest.raises(ValueError, match="conversation is a dict, expected a list of messages"):
        vlm.processor.apply_chat_template({"role": "user", "content": "what"})


def test_an_image_token_that_is_only_a_word_of_the_vocabulary_becomes_one_token(encoder):
    tokenizer = tiny_tokenizer()
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state["model"]["vocab"]["<image>"] = len(state["model"]["vocab"])
    tokenizer._tokenizer = type(tokenizer.backend_tokenizer).from_str(json.dumps(state))
    vlm = vv.VisionLanguageModel.attach(encoder, tiny_llm("llama"), tokenizer=tokenizer)
    assert vlm.config.image_token_id == state["model"]["vocab"]["<image>"]
    assert vlm.processor(text="<image> what", images=make_image())["input_ids"].shape == (1, 1 + 16 + 1)


def test_every_token_of_the_tokenizer_has_a_row(encoder):
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    llm = tiny_llm("llama", vocab_size=len(tokenizer) - 1)
    vlm = vv.VisionLanguageModel.attach(encoder, llm, tokenizer=tokenizer)
    batch = vlm.processor(text=["<image> what", "what"], images=[make_image(), None])
    assert vlm(**batch).logits.isfinite().all()
