"""Text towers: their references' numbers, and every layout of the files."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.golden import FILES, TOLERANCE, error, golden_case

from vlm_vision.nn.text import TextConfig, TextTransformer
from vlm_vision.pair import load_pair, load_text


def transformers_model(kind):
    import transformers as hf

    tiny = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, vocab_size=99)
    made = {
        "clip_text_model": lambda: hf.CLIPTextModel(hf.CLIPTextConfig(**tiny, eos_token_id=98)),
        "clip_text_model_with_projection": lambda: hf.CLIPTextModelWithProjection(
            hf.CLIPTextConfig(**tiny, projection_dim=20, eos_token_id=2)
        ),
        "siglip_text_model": lambda: hf.SiglipTextModel(hf.SiglipTextConfig(**tiny, projection_size=20)),
        "siglip2_text_model": lambda: hf.Siglip2TextModel(hf.Siglip2TextConfig(**tiny)),
    }
    model = made[kind]().eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    return model


@pytest.mark.parametrize("layout", ["saved", "hub", "bare", "half"])
@pytest.mark.parametrize(
    "kind", ["clip_text_model", "clip_text_model_with_projection", "siglip_text_model", "siglip2_text_model"]
)
@torch.inference_mode()
def test_a_standalone_text_tower_of_transformers_loads_in_every_layout(tmp_path, kind, layout):
    model = transformers_model(kind)
    model = model.half().float() if layout == "half" else model
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    state = {name.removeprefix("text_model."): value for name, value in load_file(file).items()}
    if layout == "half":
        save_file({name: value.half() for name, value in state.items()}, file)
    elif layout != "saved":
        prefix = "text_model." if layout == "hub" else ""
        state |= {"embeddings.position_ids": torch.arange(8)[None]}
        save_file({name if "projection" in name else prefix + name: value for name, value in state.items()}, file)
        config = json.loads((tmp_path / "config.json").read_text())
        config = {name: value for name, value in config.items() if name not in ("hidden_act", "layer_norm_eps")}
        (tmp_path / "config.json").write_text(json.dumps(config))  # transformers' defaults are ours
    ids = torch.randint(3, 98, (4, 11))
    ids[:, 7] = 98
    theirs, ours = model(ids), load_text(tmp_path)(ids)
    features = theirs.text_embeds if kind.endswith("projection") else theirs.pooler_output
    assert error(ours.tokens, theirs.last_hidden_state) < TOLERANCE
    assert error(ours.features, features) < TOLERANCE


def kin(name, **changes):
    """A whole model of CLIP's kin with random weights, and ids of texts of several lengths with their mask."""
    import transformers as hf

    tiny = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2)
    text = tiny | dict(vocab_size=99, pad_token_id=0, max_position_embeddings=20) | changes
    vision = tiny | dict(image_size=32, patch_size=8)
    made = {
        "metaclip_2": lambda: hf.MetaClip2Model(
            hf.MetaClip2Config(text_config=text | dict(eos_token_id=2), vision_config=vision, projection_dim=20)
        ),
        "altclip": lambda: hf.AltCLIPModel(
            hf.AltCLIPConfig(text_config=dict(project_dim=24) | text, vision_config=vision, projection_dim=20)
        ),
        "chinese_clip": lambda: hf.ChineseCLIPModel(
            hf.ChineseCLIPConfig(text_config=text, vision_config=vision, projection_dim=20)
        ),
        "tipsv2": lambda: hf.Tipsv2Model(
            hf.Tipsv2Config(text_config=text, vision_config={**vision, "mlp_ratio": 2}, temperature_init_value=0.02)
        ),
    }
    torch.manual_seed(0)
    model = made[name]().eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim:
                weight.add_(0.1 * torch.randn_like(weight))
    ids = torch.randint(5, 99, (4, 11))
    for row, length in zip(ids, (11, 7, 3, 1), strict=True):
        row[length - 1] = 2
        row[length:] = text["pad_token_id"]
    return model, ids, (ids != text["pad_token_id"]).long()


KIN = [
    ("metaclip_2", {}),
    ("metaclip_2", dict(hidden_act="gelu", layer_norm_eps=1e-3, num_attention_heads=4)),
    ("altclip", {}),
    ("altclip", dict(pad_token_id=1, hidden_act="relu", type_vocab_size=3, layer_norm_eps=1e-3, project_dim=16)),
    ("chinese_clip", {}),
    ("chinese_clip", dict(pad_token_id=3, hidden_act="gelu_new", type_vocab_size=1, num_attention_heads=4)),
    ("tipsv2", {}),
    ("tipsv2", dict(scale_sqrt_depth=False, pooling_epsilon=0.1, hidden_act="gelu", pad_token_id=3)),
]


@pytest.mark.parametrize(("name", "changes"), KIN)
@torch.inference_mode()
def test_the_text_side_of_the_kin_of_clip_is_exact(name, changes, tmp_path):
    model, ids, mask = kin(name, **changes)
    model.save_pretrained(tmp_path / "whole")
    pixels = torch.randn(3, 3, 32, 32)
    theirs = model(input_ids=ids, pixel_values=pixels, attention_mask=mask)
    text, pair = load_text(tmp_path / "whole"), load_pair(tmp_path / "whole")
    features = model.get_text_features(input_ids=ids, attention_mask=mask).pooler_output
    assert error(text(ids).features, features) < TOLERANCE
    assert error(text(ids, tokens=False).features, features) < TOLERANCE
    seen = mask.bool()
    assert error(text(ids).tokens[seen], theirs.text_model_output.last_hidden_state[seen]) < TOLERANCE
    out = pair(pixels, ids)
    assert error(out.text_embeds, theirs.text_embeds) < TOLERANCE
    assert error(out.image_embeds, theirs.image_embeds) < TOLERANCE
    assert error(out.logits_per_image, theirs.logits_per_image) < TOLERANCE
    save_file(
        model.state_dict(), tmp_path / "whole/model.safetensors", metadata={"format": "pt"}
    )  # its names in memory
    assert torch.equal(load_pair(tmp_path / "whole")(pixels, ids).logits_per_image, out.logits_per_image)
    model.text_model.save_pretrained(tmp_path / "bare")
    bare, alone = load_text(tmp_path / "bare"), model.text_model(input_ids=ids, attention_mask=mask)
    assert error(bare(ids).tokens[seen], alone.last_hidden_state[seen]) < TOLERANCE
    pooled = alone.last_hidden_state[:, 0] if name == "chinese_clip" else alone.pooler_output
    assert error(bare(ids).features, pooled) < TOLERANCE
    with pytest.raises(ValueError, match="makes no pair|no weight"):
        load_pair(tmp_path / "bare")


@torch.inference_mode()
def test_chinese_clip_alone_is_read_through_its_pooler(tmp_path):
    import transformers as hf

    sizes = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, vocab_size=99)
    model = hf.ChineseCLIPTextModel(hf.ChineseCLIPTextConfig(**sizes)).eval()
    model.save_pretrained(tmp_path)
    ids = torch.randint(5, 99, (4, 11))
    assert error(load_text(tmp_path)(ids).features, model(ids).pooler_output) < TOLERANCE


@pytest.mark.parametrize("name", ["altclip", "chinese_clip", "tipsv2", "metaclip_2"])
def test_weights_of_the_kin_of_clip_are_read_strictly(name, tmp_path):
    kin(name)[0].save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    text = [part for part in state if part.startswith(("text_model.", "text_encoder."))]
    norm = next(part for part in text if part.endswith("bias") and ("0" in part))
    save_file({part: value for part, value in state.items() if part != norm}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=f"lacks the weight {norm.split('.', 1)[1]}"):
        load_text(tmp_path)
    save_file(state | {text[0].split(".")[0] + ".more": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="holds the weight more, which this architecture does not have"):
        load_text(tmp_path)


@torch.inference_mode()
def test_the_temperature_of_tips_may_be_stored_or_stated(tmp_path):
    kin("tipsv2")[0].save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    state["temperature"] = torch.tensor(0.5)
    save_file(state, tmp_path / "model.safetensors")
    assert load_pair(tmp_path).logit_scale.exp().item() == pytest.approx(2)
    del state["temperature"]
    save_file(state, tmp_path / "model.safetensors")
    assert load_pair(tmp_path).logit_scale.exp().item() == pytest.approx(50)
    state["temperature"] = torch.tensor(-1.0)
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="the temperature is -1.0, expected a positive number"):
        load_pair(tmp_path)


def test_texts_are_padded_to_the_longest_where_padding_is_not_seen(tmp_path):
    kin("chinese_clip", max_position_embeddings=512)[0].save_pretrained(tmp_path)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "red", "cat"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
    text = load_text(tmp_path)
    ids = text.tokenizer(["a red cat", "cat"])
    assert ids.tolist() == [[2, 4, 5, 6, 3], [2, 6, 3, 0, 0]]
    assert error(text.encode(["a red cat", "cat"])[1:], text.encode("cat")) < TOLERANCE
    with pytest.raises(ValueError, match="the text tower of ChineseCLIP cannot be saved"):
        load_pair(tmp_path).save_pretrained(tmp_path / "out")


def test_every_weight_of_the_text_part_is_used_and_none_is_missing(tmp_path):
    transformers_model("siglip_text_model").save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    save_file(state | {"head.extra": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="head.extra, which this architecture does not have"):
        load_text(tmp_path)
    save_file({name: value for name, value in state.items() if name != "head.bias"}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="lacks the weight head.bias"):
        load_text(tmp_path)


def test_two_position_tables_of_old_big_vision_files_add_up(tmp_path):
    arrays = dict(np.load(golden_case("bv_siglip") / "siglip.npz"))
    part = np.full_like(arrays["params/txt/pos_embedding"], 0.25)
    arrays["params/txt/pos_embedding"] = arrays["params/txt/pos_embedding"] - part
    np.savez(tmp_path / "old.npz", **arrays, **{"params/txt/Encoder_0/posembed_input/pos_embedding": part})
    ids = torch.randint(0, 120, (2, 12))
    plain = load_text(golden_case("bv_siglip") / "siglip.npz")(ids).features
    assert error(load_text(tmp_path / "old.npz")(ids).features, plain) < TOLERANCE


@pytest.mark.parametrize("name", ["hf_dinov2", "timm_augreg", "hf_llava_clip", "dinov2_pth", "bv_augreg_npz"])
def test_a_source_without_a_text_tower_is_refused_in_one_sentence(name):
    folder = golden_case(name)
    with pytest.raises(ValueError, match="no text tower|expected a folder of a CLIP"):
        load_text(folder / FILES[name] if name.startswith("bv") else folder)


@pytest.mark.parametrize(
    "changed, reason",
    [
        ({"hf_model_name": "roberta-base"}, "a text model of transformers"),
        ({"embed_cls": True}, "CoCa"),
        ({"pool_type": "first"}, "pool_type"),
        ({"heads": 3}, "num_heads 3 does not divide"),
        ({"layers": 1}, "resblocks.1"),
    ],
)
def test_an_open_clip_text_tower_that_cannot_be_read_says_why(tmp_path, changed, reason):
    folder = golden_case("open_clip_quickgelu")
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"] |= changed
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    (tmp_path / "open_clip_pytorch_model.bin").symlink_to(folder / "open_clip_pytorch_model.bin")
    with pytest.raises(ValueError, match=reason):
        load_text(tmp_path)


def test_wrong_ids_and_fields_are_refused():
    fields = dict(vocab_size=9, context_length=4, embed_dim=8, depth=1, num_heads=2, mlp_dim=8)
    tower = TextTransformer(TextConfig(**fields))
    assert tower(torch.zeros(2, 3, dtype=torch.int64)).features.shape == (2, 8)
    for ids in (torch.zeros(2, 5, dtype=torch.int64), torch.zeros(2, 4), torch.zeros(4, dtype=torch.int64)):
        with pytest.raises(ValueError, match="pass the result of the tokenizer"):
            tower(ids)
    for field, value in (
        ("pool", "max"),
        ("mask_padding", True),
        ("depth", 0),
        ("num_heads", 3),
        ("mlp", "mish"),
        ("norm_eps", 0),
    ):
        with pytest.raises(ValueError, match=field):
            TextConfig(**fields | {field: value})


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("pool", ["last", "argmax", "eos"])
def test_features_and_their_gradients_are_the_same_without_tokens(pool, causal):
    sizes = dict(vocab_size=50, context_length=9, embed_dim=32, depth=3, num_heads=4, mlp_dim=64, proj_dim=16)
    model = TextTransformer(TextConfig(**sizes, pool=pool, causal=causal, eos_id=49)).double()
    ids = torch.randint(0, 49, (4, 7))
    ids[range(4), [6, 2, 0, 3]] = 49
    features, gradients = [], []
    for tokens in (True, False):
        out = model(ids, tokens=tokens)
        assert out.tokens.shape == (4, 7 * tokens, 32)
        features.append(out.features)
        gradients.append(torch.autograd.grad(out.features.square().sum(), list(model.parameters())))
    torch.testing.assert_close(*features)
    torch.testing.assert_close(*gradients)


def test_reading_ids_needs_no_transformers():
    code = f"import sys, vlm_vision.pair as p; p.load_pair({str(golden_case('hf_siglip'))!r}); "
    subprocess.run([sys.executable, "-c", code + "assert 'transformers' not in sys.modules"], check=True)
