"""Published LLaVA and Prismatic folders as models of this library: the reference's numbers, prompts and errors."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.foreign import load_llava, load_prismatic
from support.golden import golden_case
from support.models import make_image, tiny_tokenizer

import vlm_vision as vv
from vlm_vision.vlm.layout import AnyRes

LLAVA = ["hf_llava_clip", "hf_llava_siglip_fp16"]
LLAVA_CHAT = (
    "{% for message in messages %}{{ message['role'].upper() + ': ' }}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] + ' ' }}{% endfor %}"
    "{% if message['role'] == 'assistant' %}{{ '</s>' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
"""Images first, then text, as the template of LLaVA-1.5."""


def gap(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())


def case(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "golden.safetensors")


@pytest.fixture
def copied(tmp_path):
    """Copies a golden folder, to be changed: copied(name, config changes) -> folder."""

    def copy(name: str, **changes) -> Path:
        folder = tmp_path / name
        shutil.copytree(golden_case(name), folder)
        for file in (folder, *folder.iterdir()):
            file.chmod(0o755)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | changes))
        return folder

    return copy


def rewrite(folder: Path, change) -> None:
    """Replace the weights of a folder by `change` of them."""
    save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("name", LLAVA)
@torch.no_grad()
def test_a_llava_checkpoint_gives_the_references_logits_and_loss(name):
    vlm, expected = load_llava(golden_case(name)), case(golden_case(name))
    inputs = {key: expected[key] for key in ("input_ids", "pixel_values", "attention_mask", "labels")}
    out = vlm(**inputs)
    assert gap(out.logits, expected["logits"]) < 1e-5 and gap(out.loss, expected["loss"]) < 1e-5
    assert gap(torch.stack(vlm.get_image_features(inputs["pixel_values"])), expected["projected"]) < 1e-5
    assert vlm.processor is None and vlm.dtype == vlm.encoder.dtype == torch.float32


@torch.no_grad()
def test_a_prismatic_checkpoint_gives_the_references_logits():
    vlm, expected = load_prismatic(golden_case("openvla_fused_bf16")), case(golden_case("openvla_fused_bf16"))
    ids = expected["input_ids"]
    patches = torch.full((len(ids), 25), vlm.config.image_token_id)
    ids = torch.cat([ids[:, :1], patches, ids[:, 1:]], dim=1)
    assert gap(vlm(input_ids=ids, pixel_values=expected["pixel_values"]).logits, expected["logits"]) < 1e-5
    assert vlm.processor is None and vlm.encoder.tap == (vv.Tap(-2, norm=False),) * 2


@pytest.mark.parametrize("load", [load_llava, load_prismatic])
def test_half_precision_is_kept_where_asked_for_and_rotary_frequencies_are_not_rounded(load):
    name = {load_llava: "hf_llava_siglip_fp16", load_prismatic: "openvla_fused_bf16"}[load]
    vlm = load(golden_case(name), dtype=torch.bfloat16)
    assert {weight.dtype for weight in vlm.parameters()} == {torch.bfloat16} and vlm.config.dtype == torch.bfloat16
    assert vlm.get_decoder().rotary_emb.inv_freq.dtype == torch.float32


def test_the_layout_of_transformers_in_memory_is_read_too(copied):
    def in_memory(weights):
        moved = {"language_model.lm_head.": "lm_head.", "language_model.model.": "model.language_model."}
        moved |= {"vision_tower.vision_model.": "model.vision_tower."}
        moved |= {"multi_modal_projector.": "model.multi_modal_projector."}
        return {
            next(new + name.removeprefix(old) for old, new in moved.items() if name.startswith(old)): value
            for name, value in weights.items()
        }

    folder = copied("hf_llava_clip")
    rewrite(folder, in_memory)
    there, here = load_llava(golden_case("hf_llava_clip")).state_dict(), load_llava(folder).state_dict()
    assert there.keys() == here.keys() and all(torch.equal(value, here[name]) for name, value in there.items())


@torch.no_grad()
def test_a_positive_layer_counts_the_embeddings_as_the_reference_does(copied):
    from transformers import LlavaForConditionalGeneration

    for layer in (1, 3, -1):
        folder = copied("hf_llava_clip", vision_feature_layer=layer)
        expected = case(golden_case("hf_llava_clip"))
        inputs = {key: expected[key] for key in ("input_ids", "pixel_values", "attention_mask")}
        theirs = LlavaForConditionalGeneration.from_pretrained(folder)(**inputs).logits
        assert gap(load_llava(folder)(**inputs).logits, theirs) < 1e-5
        shutil.rmtree(folder)


@pytest.mark.parametrize("act", ["relu", "gelu_pytorch_tanh", "silu"])
@torch.no_grad()
def test_activation_and_missing_bias_of_the_projector_are_honored(copied, act):
    from transformers import LlavaForConditionalGeneration

    folder = copied("hf_llava_clip", projector_hidden_act=act, multimodal_projector_bias=False)
    rewrite(folder, lambda weights: {n: w for n, w in weights.items() if not ("projector" in n and "bias" in n)})
    expected = case(golden_case("hf_llava_clip"))
    inputs = {key: expected[key] for key in ("input_ids", "pixel_values", "attention_mask")}
    theirs = LlavaForConditionalGeneration.from_pretrained(folder)(**inputs).logits
    assert gap(load_llava(folder)(**inputs).logits, theirs) < 1e-5


def processed(folder: Path, template: str | None) -> Path:
    """The folder with a tokenizer whose `<image>` is token 120, and processor files as the hub has them."""
    tokenizer = tiny_tokenizer(chat_template=template)
    tokenizer.add_tokens([f"<{i}>" for i in range(120 - len(tokenizer))])
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    assert tokenizer.convert_tokens_to_ids("<image>") == 120
    tokenizer.save_pretrained(folder)
    size = {"height": 84, "width": 84}
    image_processor = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 84}, "crop_size": size}
    (folder / "preprocessor_config.json").write_text(json.dumps(image_processor))
    processor = {"processor_class": "LlavaProcessor", "patch_size": 14, "vision_feature_select_strategy": "default"}
    (folder / "processor_config.json").write_text(json.dumps(processor | {"num_additional_image_tokens": 1}))
    return folder


@torch.no_grad()
def test_the_processor_does_what_transformers_own_does(copied):
    from transformers import AutoModelForImageTextToText, AutoProcessor

    folder = processed(copied("hf_llava_clip"), LLAVA_CHAT)
    vlm, theirs = load_llava(folder), AutoProcessor.from_pretrained(folder)
    parts = [{"type": "text", "text": "what is this ?"}, {"type": "image"}, {"type": "text", "text": "a cat"}]
    chat = [{"role": "user", "content": parts}, {"role": "assistant", "content": [{"type": "text", "text": "no"}]}]
    for end in (1, 2):
        options = dict(add_generation_prompt=end == 1)
        prompt = theirs.apply_chat_template(chat[:end], **options)
        assert vlm.processor.apply_chat_template(chat[:end], **options) == prompt
    assert prompt == "USER: <image>\nwhat is this ? a cat ASSISTANT: no </s>"
    ours, other = (p(text=prompt, images=[make_image()], return_tensors="pt") for p in (vlm.processor, theirs))
    assert torch.equal(ours["input_ids"], other["input_ids"])
    torch.testing.assert_close(ours["pixel_values"], other["pixel_values"], rtol=0, atol=1e-5)
    stock = AutoModelForImageTextToText.from_pretrained(folder)
    options = dict(max_new_tokens=6, do_sample=False, eos_token_id=None)
    assert torch.equal(vlm.generate(**ours, **options), stock.generate(**ours, **options))


def test_a_prismatic_folder_with_a_tokenizer_has_its_prompt(copied):
    folder = copied("openvla_fused_bf16")
    tiny_tokenizer().save_pretrained(folder)
    vlm = load_prismatic(folder)
    content = [{"type": "text", "text": "what"}, {"type": "image"}]
    chat = [{"role": "user", "content": content}, {"role": "assistant", "content": "a cat"}]
    assert vlm.processor.apply_chat_template(chat[:1], add_generation_prompt=True) == "<image>In: what\nOut:"
    assert vlm.processor.apply_chat_template(chat) == "<image>In: what\nOut: a cat</s>"
    batch = vlm.processor(text="<image>In: what\nOut:", images=[make_image()])
    assert batch["input_ids"][0, :26].tolist() == [2] + [vlm.config.image_token_id] * 25
    assert vlm(**batch).logits.shape[1] == batch["input_ids"].shape[1]


@pytest.mark.parametrize(
    ("name", "changes", "says"),
    [
        ("hf_llava_clip", dict(vision_feature_layer=[-2, -1]), r"vision_feature_layer \[-2, -1\]: expected one whole"),
        ("hf_llava_clip", dict(vision_feature_layer=0), "vision_feature_layer 0: expected one whole"),
        ("hf_llava_clip", dict(vision_feature_select_strategy="full"), "keeps CLS among the patches"),
        ("hf_llava_siglip_fp16", dict(vision_feature_select_strategy="default"), "drops the first patch"),
        ("hf_llava_clip", dict(projector_hidden_act="tanh"), "projector_hidden_act 'tanh', expected one of gelu"),
        ("hf_llava_clip", dict(model_type="paligemma"), "is a 'paligemma' model, expected llava or llava_next"),
    ],
)
def test_a_llava_that_this_library_would_compute_otherwise_is_refused(copied, name, changes, says):
    with pytest.raises(ValueError, match=says):
        load_llava(copied(name, **changes))


def test_weights_that_do_not_fit_are_named(copied):
    folder = copied("hf_llava_clip")
    rewrite(folder, lambda weights: {n: w for n, w in weights.items() if "layers.1.mlp.up_proj" not in n})
    with pytest.raises(ValueError, match="missing keys: model.layers.1.mlp.up_proj.weight"):
        load_llava(folder)
    rewrite(folder, lambda weights: weights | {"language_model.model.layers.1.mlp.up_proj.weight": torch.zeros(3, 3)})
    with pytest.raises(ValueError, match="mismatched keys"):
        load_llava(folder)
    folder = copied("openvla_fused_bf16")
    rewrite(folder, lambda weights: weights | {"language_model.model.layers.9.mlp.up_proj.weight": torch.zeros(3, 3)})
    with pytest.raises(ValueError, match="unexpected keys: model.layers.9.mlp.up_proj.weight"):
        load_prismatic(folder)
    rewrite(folder, lambda weights: {n: w for n, w in weights.items() if "layers.9" not in n} | {"a.b": torch.zeros(1)})
    with pytest.raises(ValueError, match="holds a.b, which is not a weight of Prismatic or OpenVLA"):
        load_prismatic(folder)


def test_a_damaged_folder_is_one_sentence(copied):
    folder = processed(copied("hf_llava_clip"), None)
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match="processor's files in .* cannot be read"):
        load_llava(folder)
    with pytest.raises(ValueError, match="is not a Prismatic or OpenVLA folder"):
        load_prismatic(golden_case("hf_llava_clip"))
    with pytest.raises(ValueError, match="there is no folder"):
        load_llava(folder / "nothing")


def test_a_tokenizer_that_calls_another_token_image_is_refused(copied):
    folder = processed(copied("hf_llava_clip"), None)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"image_token_index": 3}))
    with pytest.raises(ValueError, match="image_token_index 3, which is 'what' in its tokenizer, expected <image>"):
        load_llava(folder)


@torch.no_grad()
def test_a_llava_next_checkpoint_gives_the_references_logits(tmp_path):
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaNextConfig, LlavaNextForConditionalGeneration

    sizes = dict(hidden_size=32, intermediate_size=64, num_attention_heads=4)
    text = LlamaConfig(vocab_size=64, num_hidden_layers=2, num_key_value_heads=2, **sizes)
    vision = CLIPVisionConfig(image_size=16, patch_size=8, num_hidden_layers=3, **sizes)
    pinpoints = [[16, 32], [32, 16], [32, 32]]
    reference = LlavaNextForConditionalGeneration(
        LlavaNextConfig(vision_config=vision, text_config=text, image_grid_pinpoints=pinpoints, image_token_index=63)
    ).eval()
    for weight in reference.parameters():
        weight.add_(0.1 * torch.randn_like(weight))
    reference.save_pretrained(tmp_path)
    vlm = load_llava(tmp_path)
    assert vlm.layout == AnyRes(pinpoints) and vlm.processor is None
    images = [make_image(1, 21, 50), make_image(2, 64, 30)]
    inputs = vlm.layout.pixels(vlm.encoder, images)
    counts = [vlm.num_image_tokens(*size) for size in inputs["image_sizes"].tolist()]
    ids = torch.tensor([[1, *[63] * counts[0], 7, 8, *[63] * counts[1], 9]])
    tiles = [vlm.layout.num_canvases(vlm.encoder, size) for size in inputs["image_sizes"].tolist()]
    assert tiles == [3, 3] and counts[0] != counts[1]
    theirs = inputs | {"pixel_values": torch.stack(inputs["pixel_values"].split(tiles))}
    assert gap(vlm(input_ids=ids, **inputs).logits, reference(input_ids=ids, **theirs).logits) < 1e-5


def test_what_is_no_vision_language_model_is_one_sentence(tmp_path):
    load = vv.VisionLanguageModel.from_pretrained
    with pytest.raises(ValueError, match="holds a dinov2 model, expected one saved by VisionLanguageModel"):
        load(golden_case("hf_dinov2"))
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text('{"base_model_name_or_path": "base"}')
    with pytest.raises(ValueError, match="adapter has no config.json: pass the folder"):
        load(tmp_path / "adapter")
    with pytest.raises(ValueError, match="holds an adapter of peft without its base model"):
        vv.load(tmp_path / "adapter")
    with pytest.raises(ValueError, match="there is no folder mini, and it is no hub id"):
        load("mini")
