"""Projectors out of published models, made tiny by transformers itself, against transformers' own modules."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.golden import TOLERANCE, error
from torch import nn

import vlm_vision as vv
from vlm_vision.checkpoints.connectors.by_model import REFUSED

VISION = dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48, patch_size=4)
TEXT = dict(hidden_size=24, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2, intermediate_size=32)
LLAMA = TEXT | dict(model_type="llama", vocab_size=40)
SIGLIP = VISION | dict(model_type="siglip_vision_model", image_size=16, vision_use_head=False)
GRIDS = [(4, 4), (2, 6)]


def saved(model_type: str, folder, **fields) -> nn.Module:
    """A model of transformers with random weights, none of them zero or one, saved to the folder."""
    from transformers import AutoConfig, AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_config(AutoConfig.for_model(model_type, **fields)).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    model.save_pretrained(folder)
    return model


def tokens_on(grid: tuple[int, int], width: int = 32) -> torch.Tensor:
    return torch.randn(2, grid[0] * grid[1], width)


@pytest.mark.parametrize("act", ["gelu", "gelu_pytorch_tanh", "relu", "quick_gelu"])
@pytest.mark.parametrize("bias", [True, False])
@torch.inference_mode()
def test_llava_with_any_activation_and_without_bias(act, bias, tmp_path):
    fields = dict(projector_hidden_act=act, multimodal_projector_bias=bias, image_token_index=30)
    theirs = saved("llava", tmp_path, vision_config=SIGLIP, text_config=LLAMA, **fields)
    ours = vv.load_projector(tmp_path)
    for grid in GRIDS:
        tokens = tokens_on(grid)
        assert error(ours(tokens, grid), theirs.model.multi_modal_projector(tokens)) < TOLERANCE


@torch.inference_mode()
def test_paligemma(tmp_path):
    text = TEXT | dict(model_type="gemma", head_dim=12, vocab_size=40)
    theirs = saved("paligemma", tmp_path, vision_config=SIGLIP, text_config=text, projection_dim=24)
    tokens = tokens_on((2, 6))
    ours = vv.load_projector(tmp_path)(tokens, (2, 6))
    assert error(ours, theirs.model.multi_modal_projector(tokens)) < TOLERANCE


@torch.inference_mode()
def test_idefics3(tmp_path):
    vision = VISION | dict(model_type="idefics3_vision", image_size=16)
    theirs = saved("idefics3", tmp_path, vision_config=vision, text_config=LLAMA, scale_factor=2)
    tokens = tokens_on((4, 4))  # theirs takes squares only
    assert error(vv.load_projector(tmp_path)(tokens, (4, 4)), theirs.model.connector(tokens)) < TOLERANCE


@torch.inference_mode()
def test_idefics2_perceiver(tmp_path):
    perceiver = dict(hidden_size=24, resampler_n_latents=5, resampler_depth=2, resampler_n_heads=4)
    perceiver |= dict(resampler_head_dim=8, num_key_value_heads=2, model_type="idefics2_perceiver")
    vision = VISION | dict(model_type="idefics2_vision", image_size=16)
    text = LLAMA | dict(model_type="mistral")
    theirs = saved("idefics2", tmp_path, vision_config=vision, perceiver_config=perceiver, text_config=text)
    ours = vv.load_projector(tmp_path)
    for grid in GRIDS:
        tokens = tokens_on(grid)
        wanted = theirs.model.connector(tokens, torch.ones(tokens.shape[:2], dtype=torch.bool))
        assert error(ours(tokens, grid), wanted) < TOLERANCE


def blip2(folder, **qformer) -> nn.Module:
    qformer = dict(hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=20) | qformer
    text = dict(model_type="opt", vocab_size=40, hidden_size=24, word_embed_proj_dim=24, num_hidden_layers=1)
    text |= dict(num_attention_heads=2, ffn_dim=32)
    fields = dict(
        vision_config=VISION | dict(image_size=16), text_config=text, num_query_tokens=5, image_token_index=30
    )
    return saved("blip-2", folder, qformer_config=qformer | dict(encoder_hidden_size=32), **fields)


@pytest.mark.parametrize("frequency", [1, 2])
@torch.inference_mode()
def test_blip2_qformer(frequency, tmp_path):
    theirs = blip2(tmp_path, cross_attention_frequency=frequency)
    ours = vv.load_projector(tmp_path)
    for grid in GRIDS:
        tokens = tokens_on(grid)
        queries = theirs.query_tokens.expand(len(tokens), -1, -1)
        seen = theirs.qformer(query_embeds=queries, encoder_hidden_states=tokens).last_hidden_state
        assert error(ours(tokens, grid), theirs.language_projection(seen)) < TOLERANCE


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl"])
@torch.inference_mode()
def test_qwen2_vl_merger_from_their_order_of_patches_to_ours(family, tmp_path):
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    vision = dict(depth=1, num_heads=2, patch_size=4)
    vision |= dict(embed_dim=32, hidden_size=24) if family == "qwen2_vl" else dict(hidden_size=32, out_hidden_size=24)
    text = TEXT | dict(model_type=f"{family}_text", vocab_size=40)
    text |= dict(rope_parameters={"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 2, 2]})
    tokens_named = dict(image_token_id=30, video_token_id=31, vision_start_token_id=32, vision_end_token_id=33)
    theirs = saved(family, tmp_path, vision_config=vision, text_config=text, **tokens_named)
    ours = vv.load_projector(tmp_path)
    for rows, columns in GRIDS:
        numbers = torch.arange(rows * columns).reshape(rows, columns)  # each patch painted with its row-major number
        image = numbers.repeat_interleave(4, 0).repeat_interleave(4, 1).expand(3, -1, -1)
        plain = dict(do_resize=False, do_rescale=False, do_normalize=False, do_convert_rgb=False)
        processor = Qwen2VLImageProcessorPil(patch_size=4, merge_size=2, temporal_patch_size=2, **plain)
        order = processor(image.numpy().astype("uint8"), return_tensors="pt")["pixel_values"][:, 0].long()
        assert not torch.equal(order, numbers.flatten())
        tokens = tokens_on((rows, columns))
        wanted = torch.stack([theirs.model.visual.merger(row[order]) for row in tokens])
        assert error(ours(tokens, (rows, columns)), wanted) < TOLERANCE


@pytest.mark.parametrize("depth", [1, 2, 3])
@torch.inference_mode()
def test_llavas_own_perceptron_of_any_depth(depth, tmp_path):
    layers = [nn.Linear(24 if i else 32, 24) for i in range(depth)]
    theirs = nn.Sequential(*(part for layer in layers for part in (layer, nn.GELU())))[:-1]
    state = {f"model.mm_projector.{name}": value for name, value in theirs.state_dict().items()}
    torch.save(state, tmp_path / "mm_projector.bin")
    tokens = tokens_on((4, 4))
    assert error(vv.load_projector(tmp_path / "mm_projector.bin")(tokens, (4, 4)), theirs(tokens)) < TOLERANCE


@torch.inference_mode()
def test_llavas_own_linear_map(tmp_path):
    theirs = nn.Linear(32, 24)
    state = {f"model.mm_projector.{name}": value.clone() for name, value in theirs.state_dict().items()}
    save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"mm_projector_type": "linear"}))
    tokens = tokens_on((4, 4))
    assert error(vv.load_projector(tmp_path)(tokens, (4, 4)), theirs(tokens)) < TOLERANCE


def changed(folder, *, drop: str = "", add: str = "", **config) -> None:
    """Take a weight out of a folder, put one in, change its configuration."""
    state = load_file(folder / "model.safetensors")
    state = {name: value for name, value in state.items() if name != drop} | ({add: torch.zeros(2)} if add else {})
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    known = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(known | config))


def test_a_weight_too_few_or_too_many_is_refused(tmp_path):
    blip2(tmp_path)
    changed(tmp_path, drop="qformer.encoder.layer.2.attention.output.dense.bias")
    with pytest.raises(ValueError, match=r"lacks the weight encoder\.layer\.2\.attention\.output\.dense\.bias"):
        vv.load_projector(tmp_path)
    blip2(tmp_path)
    changed(tmp_path, add="qformer.pooler.weight")
    with pytest.raises(ValueError, match=r"holds the weight pooler\.weight"):
        vv.load_projector(tmp_path)
    state = {"mm_projector.0.weight": torch.zeros(3, 2), "mm_projector.0.bias": torch.zeros(3)}
    save_file(state | {"mm_projector.3.proj.0.weight": torch.zeros(3, 3)}, tmp_path / "resnet.safetensors")
    with pytest.raises(ValueError, match=r"holds the weight 3\.proj\.0\.weight"):
        vv.load_projector(tmp_path / "resnet.safetensors")


def test_a_form_that_ours_cannot_express_is_refused(tmp_path):
    theirs = saved("llava", tmp_path, vision_config=SIGLIP, text_config=LLAMA, image_token_index=30)
    changed(tmp_path, projector_hidden_act="mish")
    with pytest.raises(ValueError, match="projector_hidden_act 'mish', expected one of gelu"):
        vv.load_projector(tmp_path)
    state = {f"mm_projector.{i}.{part}": value for i, part, value in _numbered(theirs.model.multi_modal_projector)}
    save_file(state, tmp_path / "model.safetensors")
    changed(tmp_path, mm_projector_type="mlp2x_res1x_gelu")
    with pytest.raises(ValueError, match="mm_projector_type 'mlp2x_res1x_gelu', expected linear or mlpNx_gelu"):
        vv.load_projector(tmp_path)


def _numbered(module: nn.Module):
    for i, layer in ((0, module.linear_1), (2, module.linear_2)):
        for name, value in layer.state_dict().items():
            yield i, name, value.clone()


def test_a_qformer_that_reads_the_question_or_has_another_activation_is_refused(tmp_path):
    blip2(tmp_path, use_qformer_text_input=True)
    with pytest.raises(ValueError, match="reads the question with the image"):
        vv.load_projector(tmp_path)
    blip2(tmp_path, hidden_act="relu")
    with pytest.raises(ValueError, match="hidden_act 'relu', expected gelu"):
        vv.load_projector(tmp_path)


def test_heads_are_read_from_the_configuration_and_never_guessed(tmp_path):
    blip2(tmp_path)
    assert vv.load_projector(tmp_path).options["num_heads"] == 2
    with pytest.raises(
        ValueError,
        match="has no config.json, whose qformer_config states what the weights .* do not: pass the folder of the whole",
    ):
        vv.load_projector(tmp_path / "model.safetensors")
    changed(tmp_path, qformer_config="large")
    with pytest.raises(ValueError, match="describes its projector in an unknown way"):
        vv.load_projector(tmp_path)


@pytest.mark.parametrize("name", REFUSED)
def test_a_projector_that_none_here_can_be_is_refused_by_its_reason(name, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": name, "vision_config": {}}))
    save_file({"multi_modal_projector.linear_2.weight": torch.zeros(2, 2)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=re.escape(f"is of model type '{name}': {REFUSED[name]}")):
        vv.load_projector(tmp_path)
