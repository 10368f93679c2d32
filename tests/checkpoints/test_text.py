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
from vlm_vision.pair import load_text


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
    for field, value in (("pool", "mean"), ("depth", 0), ("num_heads", 3), ("mlp", "mish"), ("norm_eps", 0)):
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
