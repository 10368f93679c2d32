"""Models written for other software: what they compute there, and what is refused."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from support.foreign import load_llava, load_prismatic
from support.golden import golden_case
from support.models import make_image, tiny_llm, tiny_tokenizer
from support.prismatic_reader import Reader

import projectors
import vlm_vision as vv
from vlm_vision.vlm.formats.export import export
from vlm_vision.vlm.layout import AnyRes, Native

BEFORE_NORM = vv.Tap(-2, norm=False)
TOWERS = {"clip": "hf_clip_quickgelu", "siglip": "hf_siglip"}
CHAT = (
    "{% for m in messages %}{{ '<s>' + m['role'] + ': ' + m['content'] + '</s>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<s>assistant: ' }}{% endif %}"
)
TEXTS = ["<image> what color is <image>", "is this a cat ?", "<image> the"]


def seeing(tower: str, llm: str = "llama", *, tap=BEFORE_NORM, tokenizer=None, **options):
    encoder = vv.load(golden_case(TOWERS.get(tower, tower)), tap=tap, **options)
    return vv.VisionLanguageModel.attach(encoder, tiny_llm(llm), tokenizer=tokenizer or tiny_tokenizer())


def images():
    return [make_image(i, 40 + 10 * i, 52) for i in range(3)]


def gap(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())


def stock(folder: Path):
    """(model, processor) of unmodified transformers, every weight in its place."""
    from transformers import AutoModelForImageTextToText, AutoProcessor, LlavaForConditionalGeneration, LlavaProcessor

    model, info = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    processor = AutoProcessor.from_pretrained(folder)
    assert type(model) is LlavaForConditionalGeneration and type(processor) is LlavaProcessor
    return model, processor


@pytest.mark.parametrize("llm", ["llama", "llama_tied", "qwen2", "qwen3", "gemma"])
@pytest.mark.parametrize("tower", TOWERS)
@torch.no_grad()
def test_stock_transformers_computes_the_same_with_an_exported_llava(tmp_path, tower, llm):
    vlm = seeing(tower, llm)
    export(vlm, "llava", tmp_path, verify=False)
    model, processor = stock(tmp_path)
    ours = vlm.processor(text=TEXTS, images=images())
    theirs = processor(text=TEXTS, images=images(), padding=True, return_tensors="pt")
    assert ours.keys() == theirs.keys() == {"input_ids", "attention_mask", "pixel_values"}
    assert torch.equal(ours["input_ids"], theirs["input_ids"])
    torch.testing.assert_close(ours["pixel_values"], theirs["pixel_values"], rtol=0, atol=1e-5)
    rows = theirs["attention_mask"].bool()
    positions = (rows.long().cumsum(-1) - 1).clamp(min=0)
    assert gap(vlm(**ours).logits[rows], model(**theirs, position_ids=positions).logits[rows]) < 1e-5
    options = dict(max_new_tokens=8, do_sample=False)
    assert torch.equal(vlm.generate(**ours, **options), model.generate(**theirs, **options))


@pytest.mark.parametrize("tower", TOWERS)
@torch.no_grad()
def test_an_exported_llava_comes_back_as_it_was(tmp_path, tower):
    vlm = seeing(tower, tokenizer=tiny_tokenizer(chat_template=CHAT))
    export(vlm, "llava", tmp_path)
    again = load_llava(tmp_path)
    batch = vlm.processor(text=TEXTS, images=images())
    assert all(torch.equal(value, batch[name]) for name, value in again.processor(text=TEXTS, images=images()).items())
    assert gap(again(**batch).logits, vlm(**batch).logits) < 1e-6
    assert (
        again.encoder.tap == BEFORE_NORM and again.generation_config.eos_token_id == vlm.generation_config.eos_token_id
    )
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what"}]}]
    assert again.processor.apply_chat_template(chat) == vlm.processor.apply_chat_template(chat)


def test_the_names_on_disk_are_those_of_the_hub(tmp_path):
    for llm in ("llama", "llama_tied"):
        export(seeing("clip", llm), "llava", tmp_path / llm)
        with safe_open(tmp_path / llm / "model.safetensors", "pt") as file:
            names = set(file.keys())
        assert {n.split(".")[0] for n in names} == {"vision_tower", "multi_modal_projector", "language_model"}
        assert (
            "vision_tower.vision_model.pre_layrnorm.weight" in names and "multi_modal_projector.linear_2.bias" in names
        )
        assert "language_model.model.layers.0.self_attn.q_proj.weight" in names
        assert ("language_model.lm_head.weight" in names) == (llm == "llama")
    config = json.loads((tmp_path / "llama" / "config.json").read_text())
    assert config["architectures"] == ["LlavaForConditionalGeneration"] and config["vision_feature_layer"] == -2
    processor = json.loads((tmp_path / "llama" / "processor_config.json").read_text())
    assert (processor["num_additional_image_tokens"], processor["vision_feature_select_strategy"]) == (1, "default")


@pytest.mark.parametrize("template", [None, CHAT])
def test_the_chat_template_takes_strings_and_lists_alike(tmp_path, template):
    vlm = seeing("siglip", tokenizer=tiny_tokenizer(chat_template=template))
    export(vlm, "llava", tmp_path, verify=False)
    _, processor = stock(tmp_path)
    parts = [{"type": "text", "text": "is"}, {"type": "image"}, {"type": "text", "text": "a cat ?"}]
    lists = [{"role": "user", "content": parts}, {"role": "assistant", "content": [{"type": "text", "text": "no"}]}]
    strings = [{"role": "user", "content": "is\n<image>\na cat ?"}, {"role": "assistant", "content": "no"}]
    for end in (1, 2):
        options = dict(add_generation_prompt=end == 1)
        expected = vlm.processor.apply_chat_template(strings[:end], **options)
        assert processor.apply_chat_template(lists[:end], **options) == expected
        assert processor.apply_chat_template(strings[:end], **options) == expected


@torch.no_grad()
def test_another_size_or_reference_is_folded_into_the_table(tmp_path):
    for reference in ("transformers", "timm"):
        vlm = seeing("siglip", image_size=48, reference=reference)
        export(vlm, "llava", tmp_path / reference)
        config = json.loads((tmp_path / reference / "config.json").read_text())
        assert config["vision_config"]["image_size"] == 48 and config["image_seq_length"] == 36


@pytest.mark.parametrize("layer", [-1, 0, 1])
def test_every_block_can_be_tapped(tmp_path, layer):
    export(seeing("clip", tap=vv.Tap(layer, norm=False)), "llava", tmp_path)
    depth = load_llava(tmp_path).encoder.config.depth
    assert json.loads((tmp_path / "config.json").read_text())["vision_feature_layer"] == (
        layer if layer < 0 else layer - depth
    )


def test_the_projectors_activation_and_missing_bias_are_kept(tmp_path):
    encoder = vv.load(golden_case("hf_siglip"), tap=BEFORE_NORM)
    projector = projectors.build("mlp", in_dim=48, out_dim=32, activation="relu", bias=False)
    vlm = vv.VisionLanguageModel.attach(encoder, tiny_llm("llama"), projector, tiny_tokenizer())
    export(vlm, "llava", tmp_path)
    assert load_llava(tmp_path).projector.options == projector.options


@pytest.mark.parametrize("tower", TOWERS)
def test_every_weight_keeps_its_precision(tmp_path, tower):
    encoder, llm = vv.load(golden_case(TOWERS[tower]), tap=BEFORE_NORM), tiny_llm("llama")
    for weight in llm.parameters():
        weight.data = weight.data.bfloat16()
    export(attached(encoder, llm), "llava", tmp_path)
    for name, weight in load_file(tmp_path / "model.safetensors").items():
        assert weight.dtype == (torch.bfloat16 if name.startswith("language_model") else torch.float32)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"


def test_a_language_model_whose_body_has_another_name_is_found(tmp_path):
    from transformers import AutoModelForCausalLM, GPT2Config

    config = GPT2Config(vocab_size=30, n_embd=32, n_layer=2, n_head=4, tie_word_embeddings=False, eos_token_id=1)
    vlm = attached(vv.load(golden_case("hf_clip_quickgelu"), tap=BEFORE_NORM), AutoModelForCausalLM.from_config(config))
    export(vlm, "llava", tmp_path)
    again = load_llava(tmp_path).language_model.state_dict()
    assert all(torch.equal(value, again[name]) for name, value in vlm.language_model.state_dict().items())


def test_a_template_that_takes_parts_is_written_as_it_is(tmp_path):
    template = "{% for m in messages %}{% for c in m['content'] %}{{ c['text'] if c['type'] == 'text' else '<image>' }}"
    template += "{% endfor %}{{ '</s>' }}{% endfor %}"
    vlm = seeing("clip", tokenizer=tiny_tokenizer(chat_template=template))
    export(vlm, "llava", tmp_path)
    assert (tmp_path / "chat_template.jinja").read_text() == template


def test_large_models_are_sharded(tmp_path, monkeypatch):
    from vlm_vision.vlm.formats import export as module

    save = module.save_torch_state_dict
    monkeypatch.setattr(module, "save_torch_state_dict", lambda *a, **k: save(*a, **k, max_shard_size="200KB"))
    export(seeing("clip"), "llava", tmp_path)
    assert (tmp_path / "model.safetensors.index.json").is_file() and len(list(tmp_path.glob("*.safetensors"))) > 1
    assert load_llava(tmp_path).num_parameters() > 0


def test_what_does_not_load_the_same_is_not_left_on_disk(tmp_path, monkeypatch):
    from vlm_vision.vlm.formats import llava_export as llava

    vlm, express = seeing("clip"), llava._tower

    def spoiled(encoder, side):
        config, tensors = express(encoder, side)
        config.layer_norm_eps = 0.1
        return config, tensors

    monkeypatch.setattr(llava, "_tower", spoiled)
    with pytest.raises(ValueError, match="in transformers the logits differ by"):
        export(vlm, "llava", tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def fused(llm: str = "llama", second: str = "siglip") -> vv.VisionLanguageModel:
    """DINOv2 with registers and another tower, both on images squashed to 5x5 patches."""
    names, size = ("hf_dinov2_reg", TOWERS[second]), 40
    towers = [vv.load(golden_case(name), tap=BEFORE_NORM, image_size=size) for name in names]
    for tower in towers:
        tower.preprocess = replace(tower.preprocess, resize="squash", resize_to=(size, size), crop=None)
    return vv.VisionLanguageModel.attach(
        vv.FusedEncoder(towers), tiny_llm(llm), projector="fused_mlp", tokenizer=tiny_tokenizer()
    )


@pytest.mark.parametrize(("llm", "second"), [("llama", "siglip"), ("llama_tied", "siglip"), ("llama", "clip")])
@torch.no_grad()
def test_an_independent_reader_computes_the_same_with_an_exported_prismatic(tmp_path, llm, second):
    vlm = fused(llm, second)
    export(vlm, "prismatic", tmp_path)
    reader = Reader(tmp_path)
    batch = vlm.processor(text="<image> what color is this ?", images=[make_image()])
    plain = batch["input_ids"][batch["input_ids"] != vlm.config.image_token_id][None]
    assert batch["input_ids"][0, 1] == vlm.config.image_token_id and plain.shape[1] == batch["input_ids"].shape[1] - 25
    assert gap(reader(batch["pixel_values"], plain), vlm(**batch).logits) < 1e-5
    options = dict(max_new_tokens=8, eos_token_id=None)
    ours = vlm.generate(**batch, do_sample=False, **options)[:, batch["input_ids"].shape[1] :]
    assert torch.equal(reader.generate(batch["pixel_values"], plain, **options), ours)


@pytest.mark.parametrize("tower", TOWERS)
@torch.no_grad()
def test_one_tower_goes_into_prismatics_layout_too(tmp_path, tower):
    encoder = vv.load(golden_case(TOWERS[tower]), tap=BEFORE_NORM)
    side = encoder.config.image_size
    encoder.preprocess = replace(encoder.preprocess, resize="squash", resize_to=side, crop=None)
    vlm = vv.VisionLanguageModel.attach(encoder, tiny_llm("llama"), tokenizer=tiny_tokenizer())
    export(vlm, "prismatic", tmp_path)
    pixels = vlm.processor.image_processor.preprocess(make_image())["pixel_values"]
    assert gap(Reader(tmp_path).features(pixels), encoder(pixels).patch_tokens) < 1e-5


@torch.no_grad()
def test_the_independent_reader_reads_a_published_folder():
    case = load_file(golden_case("openvla_fused_bf16") / "golden.safetensors")
    reader = Reader(golden_case("openvla_fused_bf16"))
    assert gap(reader.features(case["pixel_values"]), case["patch_features"]) < 1e-5
    assert gap(reader(case["pixel_values"], case["input_ids"]), case["logits"]) < 1e-5


@torch.no_grad()
def test_an_exported_prismatic_comes_back_as_it_was(tmp_path):
    vlm = fused()
    export(vlm, "prismatic", tmp_path)
    again = load_prismatic(tmp_path)
    batch = vlm.processor(text="<image> what", images=[make_image()])
    theirs = again.processor(text="<image> what", images=[make_image()])
    assert all(torch.equal(value, theirs[name]) for name, value in batch.items())
    assert gap(again(**theirs).logits, vlm(**batch).logits) < 1e-6


def test_a_published_folder_comes_out_of_prismatics_layout_as_it_went_in(tmp_path):
    source = golden_case("openvla_fused_bf16")
    vlm = load_prismatic(source)
    attached = vv.VisionLanguageModel.attach(vlm.encoder, vlm.language_model, vlm.projector, tiny_tokenizer())
    export(attached, "prismatic", tmp_path)
    theirs, ours = load_file(source / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(ours[name], value.float()) for name, value in theirs.items())
    before, after = (json.loads((folder / "config.json").read_text()) for folder in (source, tmp_path))
    for name in (
        "vision_backbone_id",
        "timm_override_act_layers",
        "image_sizes",
        "arch_specifier",
        "image_resize_strategy",
    ):
        assert before[name] == after[name]


def test_published_shapes_need_no_key_of_ours():
    from vlm_vision.vlm.formats.prismatic_export import SHAPES, _backbone

    def of(name: str) -> vv.ViTConfig:
        dim, depth, heads, hidden, patch, registers = SHAPES[name]
        fields = dict(embed_dim=dim, depth=depth, num_heads=heads, mlp_dim=hidden, patch_size=patch)
        return vv.ViTConfig(image_size=(224, 224), num_registers=registers, **fields)

    dino, siglip = of("vit_large_patch14_reg4_dinov2"), of("vit_so400m_patch14_siglip")
    both = ["dinov2_with_registers", "siglip_vision_model"]
    assert _backbone(both, [dino, siglip], [224, 224])[0] == "dinosiglip-vit-so-224px"
    assert _backbone(both, [dino, siglip], [384, 384])[0] == "dinosiglip-vit-so-384px"
    assert _backbone(both[1:], [of("vit_base_patch16_siglip")], [256])[0] == "siglip-vit-b16-256px"
    assert _backbone(["clip_vision_model"], [of("vit_large_patch14_clip_quickgelu")], [336])[0] == "clip-vit-l-336px"


def attached(encoder, llm=None, projector="mlp", **options):
    llm = llm or tiny_llm("llama")
    return vv.VisionLanguageModel.attach(encoder, llm, projector, tiny_tokenizer(), **options)


def refused(what: str) -> vv.VisionLanguageModel:
    """A model that LLaVA's format cannot hold, for the reason `what`."""
    clip = vv.load(golden_case("hf_clip_quickgelu"), tap=BEFORE_NORM)
    llm = tiny_llm("llama")
    if what == "norm":
        clip.tap = vv.Tap()
    elif what == "letterbox":
        clip.preprocess = replace(clip.preprocess, resize="letterbox", crop=None)
    elif what == "any size":
        clip.preprocess = replace(clip.preprocess, crop=None)
    elif what == "not square":
        clip.preprocess = clip.preprocess.at(48, 32)
    elif what == "bias":
        llm.lm_head = torch.nn.Linear(32, 30)
    elif what == "capping":
        llm.config.final_logit_softcapping = 30.0
    elif what == "gpt2":
        llm = tiny_llm("gpt2")
    elif what == "dino":
        clip = vv.load(golden_case("hf_dinov2"), tap=BEFORE_NORM)
    elif what == "fused":
        return fused()
    elif what == "native":
        return attached(clip, layout=Native(max_patches=64))
    elif what == "linear":
        return attached(clip, projector="linear")
    elif what == "deep":
        return attached(clip, projector=projectors.build("mlp", in_dim=clip.embed_dim, out_dim=32, depth=3))
    return attached(clip, llm)


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("norm", r"attach it with tap=vv.Tap\(-2, norm=False\)"),
        ("fused", 'export it as "prismatic"'),
        ("dino", "takes CLIP and SigLIP towers of one size, not dinov2"),
        ("linear", 'attach the encoder with projector="mlp"'),
        ("native", r"has no layout 'native': attach the encoder with Whole\(\)"),
        ("deep", 'attach the encoder with projector="mlp"'),
        ("letterbox", "transformers has no resize 'letterbox'"),
        ("any size", "takes square images of one size, .* makes images of any size"),
        ("not square", "takes square images of one size, .* makes images of 48x32 pixels"),
        ("bias", "the head of LlamaForCausalLM has a bias"),
        ("capping", "final_logit_softcapping=30.0"),
        ("gpt2", "expects in embed_tokens"),
    ],
)
def test_what_llava_cannot_express_is_refused(tmp_path, what, says):
    with pytest.raises(ValueError, match=says):
        export(refused(what), "llava", tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_what_prismatic_cannot_express_is_refused(tmp_path):
    vlm = fused()
    dino, siglip = vlm.encoder.towers
    cases = {
        "not have the towers siglip_vision_model \\+ dinov2_with_registers": vv.FusedEncoder([siglip, dino]),
        "not have the towers dinov2 in this channel order": vv.load(golden_case("hf_dinov2"), tap=BEFORE_NORM),
        "attach the encoder with tap=vv.Tap": vv.load(golden_case("hf_siglip")),
    }
    for says, encoder in cases.items():
        with pytest.raises(ValueError, match=says):
            export(attached(encoder, projector="fused_mlp"), "prismatic", tmp_path)
    with pytest.raises(ValueError, match="attach the encoder with projector='fused_mlp'"):
        export(attached(vlm.encoder), "prismatic", tmp_path)
    with pytest.raises(ValueError, match="no language model qwen2: expected one of llama, mistral, phi"):
        export(fused("qwen2"), "prismatic", tmp_path)
    siglip.preprocess = replace(siglip.preprocess, resample="nearest", resize="shortest_edge", crop=(40, 40))
    with pytest.raises(ValueError, match="prepares the images of all towers equally"):
        export(vlm, "prismatic", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_is_not_ready_is_refused(tmp_path):
    from peft import LoraConfig, get_peft_model

    vlm = seeing("clip")
    with pytest.raises(ValueError, match="expected 'llava' or 'prismatic'"):
        export(vlm, "gguf", tmp_path)
    side = vlm.encoder.config.image_size[0]
    tiled = attached(vlm.encoder, layout=AnyRes(((side, 2 * side),)))
    with pytest.raises(ValueError, match="this model has the layout 'anyres'"):
        export(tiled, "prismatic", tmp_path)
    wrapped = get_peft_model(vlm, LoraConfig(r=2, target_modules=["q_proj"]))
    for model in (wrapped, vlm):
        with pytest.raises(ValueError, match="adapters are not merged"):
            export(model, "llava", tmp_path)
    export(wrapped.merge_and_unload(), "llava", tmp_path)
    vlm = seeing("clip")
    vlm.processor = None
    with pytest.raises(ValueError, match="no processor, whose tokenizer"):
        export(vlm, "llava", tmp_path)


@pytest.mark.parametrize("tower", TOWERS)
@torch.no_grad()
def test_tiles_become_a_llava_next_of_stock_transformers(tmp_path, tower):
    from transformers import AutoModelForImageTextToText, AutoProcessor, LlavaNextForConditionalGeneration

    encoder = vv.load(golden_case(TOWERS[tower]), tap=BEFORE_NORM)
    side = encoder.config.image_size[0]
    vlm = attached(encoder, layout=AnyRes(((side, 2 * side), (2 * side, side), (2 * side, 2 * side))))
    export(vlm, "llava", tmp_path)
    model, info = AutoModelForImageTextToText.from_pretrained(tmp_path, output_loading_info=True)
    assert type(model) is LlavaNextForConditionalGeneration
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    given = dict(text="<image> what color is <image>", images=[make_image(1, 30, 70), make_image(2, 90, 40)])
    ours, theirs = vlm.processor(**given), AutoProcessor.from_pretrained(tmp_path)(**given, return_tensors="pt")
    assert torch.equal(ours["input_ids"], theirs["input_ids"])
    assert gap(model(**theirs).logits, vlm(**ours).logits) < 1e-5
    options = dict(max_new_tokens=8, do_sample=False)
    assert torch.equal(vlm.generate(**ours, **options), model.generate(**theirs, **options))
    again = load_llava(tmp_path)
    assert again.layout == vlm.layout and gap(again(**again.processor(**given)).logits, vlm(**ours).logits) < 1e-6
