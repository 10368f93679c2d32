"""The masked autoencoder: its golden case, transformers side by side, both formats, and what it sees and learns."""

import argparse
import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.golden import golden_case
from torch import Tensor

import vlm_vision as vv
from vlm_vision.mae import DecoderConfig, MaskedAutoencoder, load_mae, new_mae
from vlm_vision.nn.position import sincos_2d
from vlm_vision.objectives.mae import mae_loss, patches
from vlm_vision.objectives.masks import patch_noise, random_masking

TOLERANCE = 1e-5

FIELDS = dict(image_size=24, patch_size=4, embed_dim=64, depth=3, num_heads=1, mlp_dim=96)
DECODER = DecoderConfig(embed_dim=48, depth=2, num_heads=16, mlp_dim=80, mask_ratio=0.7)
SIZES = [(24, 24), (32, 32), (16, 28), (16, 36)]
"""Native, larger, of another shape, and of another shape with as many patches as the native one."""


def error(ours: Tensor, reference: Tensor) -> float:
    assert ours.shape == reference.shape
    return ((ours - reference).abs().max() / reference.abs().max()).item()


def noise(count: int, size: tuple[int, int], patch: int = 4) -> Tensor:
    return patch_noise(count, size[0] // patch * (size[1] // patch), torch.Generator().manual_seed(1))


def transformers_model(**changes):
    """transformers' class with random weights, position tables too."""
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    config = ViTMAEConfig(
        **dict(
            image_size=24, patch_size=4, hidden_size=64, num_hidden_layers=3, num_attention_heads=1, intermediate_size=256,
            decoder_hidden_size=48, decoder_num_hidden_layers=2, decoder_num_attention_heads=16,
            decoder_intermediate_size=192, layer_norm_eps=1e-6, mask_ratio=0.6,
        )
        | changes
    )  # fmt: skip
    model = ViTMAEForPreTraining(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    return model


@pytest.fixture
def model() -> MaskedAutoencoder:
    return new_mae(FIELDS, DECODER).eval()


@pytest.mark.parametrize("run", ["native", "large", "nonsquare"])
@torch.inference_mode()
def test_predictions_masks_and_loss_are_the_golden_ones(run):
    folder = golden_case("hf_vit_mae")
    about, golden = json.loads((folder / "case.json").read_text()), load_file(folder / "golden.safetensors")
    model, pixels, drawn = load_mae(folder), golden[f"pixel_values.{run}"], golden[f"mae_noise.{run}"]
    predicted, mask = model(pixels, drawn)
    assert error(predicted, golden[f"mae_logits.{run}"]) < TOLERANCE
    assert torch.equal(mask.float(), golden[f"mae_mask.{run}"])
    masks = random_masking(drawn, model.config.mask_ratio)
    assert torch.equal(masks.restore, golden[f"mae_ids_restore.{run}"]) and torch.equal(masks.mask, mask)
    assert model.config.mask_ratio == about["arch"]["mask_ratio"]
    size, normalize = model.encoder.config.patch_size, model.config.normalize
    loss = mae_loss(predicted, pixels, mask, patch_size=size, normalize=normalize)
    assert error(loss, golden[f"mae_loss.{run}"]) < TOLERANCE


@pytest.mark.parametrize("layout", ["hub", "memory"])
@pytest.mark.parametrize(
    "changes",
    [
        dict(qkv_bias=False, hidden_act="gelu_pytorch_tanh"),
        dict(
            patch_size=3, hidden_size=36, num_hidden_layers=2, num_attention_heads=3, num_channels=1, layer_norm_eps=1e-3,
            decoder_hidden_size=40, decoder_num_hidden_layers=3, decoder_num_attention_heads=5, norm_pix_loss=True,
        ),
    ],
    ids=["wide", "narrow"],
)  # fmt: skip
@torch.inference_mode()
def test_it_computes_what_transformers_computes_at_any_size(layout, changes, tmp_path):
    theirs = transformers_model(**changes)
    theirs.save_pretrained(tmp_path)
    if layout == "memory":  # a bare state dict under the names of transformers 5
        (tmp_path / "model.safetensors").unlink()
        torch.save(theirs.state_dict(), tmp_path / "pytorch_model.bin")
    model, patch = load_mae(tmp_path), theirs.config.patch_size
    for rows, columns in ((24 // patch, 24 // patch), (9, 9), (4, 7), (4, 9), (3, 2)):
        size = rows * patch, columns * patch
        pixels, drawn = torch.randn(2, theirs.config.num_channels, *size), noise(2, size, patch)
        wanted = theirs(pixels, noise=drawn, interpolate_pos_encoding=True)
        predicted, mask = model(pixels, drawn)
        assert error(predicted, wanted.logits) < TOLERANCE, (rows, columns)
        assert torch.equal(mask.float(), wanted.mask)
        loss = mae_loss(predicted, pixels, mask, patch_size=patch, normalize=model.config.normalize)
        assert error(loss, wanted.loss) < TOLERANCE


def test_gradients_are_transformers(tmp_path):
    theirs = transformers_model()
    theirs.save_pretrained(tmp_path)
    model, pixels, drawn = load_mae(tmp_path), torch.randn(2, 3, 24, 24), noise(2, (24, 24))
    theirs(pixels, noise=drawn).loss.backward()
    predicted, mask = model(pixels, drawn)
    mae_loss(predicted, pixels, mask, patch_size=4, normalize=False).backward()
    tower, decoder = model.encoder.model, model.decoder
    for ours, wanted in (
        (tower.patch_embed.weight, theirs.vit.embeddings.patch_embeddings.projection.weight),
        (tower.cls_token, theirs.vit.embeddings.cls_token),
        (tower.norm.bias, theirs.vit.layernorm.bias),
        (decoder.mask_token, theirs.decoder.mask_token),
        (decoder.embed.weight, theirs.decoder.decoder_embed.weight),
        (decoder.blocks[1].mlp.fc1.weight, theirs.decoder.decoder_layers[1].mlp.fc1.weight),
    ):
        assert error(ours.grad, wanted.grad) < TOLERANCE


def original(theirs) -> dict[str, Tensor]:
    """A model of transformers under the names of facebookresearch/mae."""
    found, fused = {}, {}
    for name, value in theirs.state_dict().items():
        name = name.replace("vit.embeddings.patch_embeddings.projection", "patch_embed.proj")
        name = name.replace("vit.embeddings.position_embeddings", "pos_embed").replace("vit.embeddings.", "")
        name = name.replace("vit.layernorm", "norm").replace("vit.layers", "blocks")
        name = name.replace("decoder.decoder_layers", "decoder_blocks").replace("decoder.", "", 1)
        name = name.replace("layernorm_before", "norm1").replace("layernorm_after", "norm2")
        name = name.replace("attention.o_proj", "attn.proj")
        if "_proj." in name:  # queries, keys and values, in this order
            stem, _, rest = name.partition("attention.")
            fused.setdefault(f"{stem}attn.qkv.{rest.rpartition('.')[2]}", []).append(value)
        else:
            found[name] = value
    return found | {name: torch.cat(parts) for name, parts in fused.items()}


@pytest.mark.parametrize("wrapped", [True, False], ids=["checkpoint", "bare"])
@torch.inference_mode()
def test_a_file_of_the_original_code_computes_the_same(wrapped, tmp_path):
    theirs, file = transformers_model(mask_ratio=0.75), tmp_path / "mae.pth"
    state = original(theirs)
    torch.save({"model": state, "epoch": 3, "args": argparse.Namespace(lr=1e-3)} if wrapped else state, file)
    model, pixels, drawn = load_mae(file), torch.randn(2, 3, 24, 24), noise(2, (24, 24))
    assert error(model(pixels, drawn).predicted, theirs(pixels, noise=drawn).logits) < TOLERANCE
    assert model.encoder.origin.reference == "original"
    assert (
        error(load_mae(file, decoder_num_heads=4)(pixels, drawn).predicted, theirs(pixels, noise=drawn).logits) > 0.01
    )
    assert model(torch.randn(1, 3, 16, 28), noise(1, (16, 28))).predicted.shape == (1, 28, 48)


@pytest.mark.parametrize("format", ["folder", "file"])
def test_weights_that_are_missing_or_unused_are_errors(format, tmp_path):
    theirs, file = transformers_model(), tmp_path / "mae.pth"
    theirs.save_pretrained(tmp_path)
    if format == "folder":
        file, stem, state = tmp_path, "decoder.", load_file(tmp_path / "model.safetensors")
    else:
        stem, state = "", original(theirs)

    def written(state: dict[str, Tensor]):
        if format == "folder":
            save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
        else:
            torch.save({"model": state}, file)
        return file

    load_mae(written(state))
    block = next(name for name in state if "decoder_" in name and ".1." in name)
    for name in (f"{stem}mask_token", f"{stem}decoder_pos_embed", f"{stem}decoder_pred.bias", block):
        with pytest.raises(ValueError, match="lacks the weight"):
            load_mae(written({key: value for key, value in state.items() if key != name}))
    for name in (f"{stem}decoder_extra", f"{stem}mask_token_two", block.replace(".1.", ".7.", 1)):
        with pytest.raises(ValueError, match="holds|lacks"):
            load_mae(written(state | {name: torch.zeros(3)}))
    with pytest.raises(ValueError, match="lacks 32 weights|has no decoder of a masked autoencoder"):
        load_mae(written({key: value for key, value in state.items() if not re.search(r"decoder_.*\.[01]\.", key)}))
    with pytest.raises(ValueError, match="has shape"):
        load_mae(written(state | {f"{stem}decoder_embed.bias": torch.zeros(3)}))
    with pytest.raises(ValueError, match="holds 0 decoders of a masked autoencoder, expected one"):
        load_mae(written({key: value for key, value in state.items() if "decoder" not in key}))


@torch.inference_mode()
def test_a_saved_folder_is_transformers_own(model, tmp_path):
    from transformers import ViTMAEForPreTraining

    model.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "README.md", "config.json", "model.safetensors", "preprocessor_config.json", "vlm_vision.json",
        "vlm_vision_manifest.json",
    ]  # fmt: skip
    theirs, report = ViTMAEForPreTraining.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    assert theirs.config.mask_ratio == 0.7
    pixels, drawn = torch.randn(2, 3, 24, 24), noise(2, (24, 24))
    out = model(pixels, drawn)
    assert error(out.predicted, theirs.eval()(pixels, noise=drawn).logits) < TOLERANCE
    again = load_mae(tmp_path)
    assert torch.equal(again(pixels, drawn).predicted, out.predicted) and again.config.mask_ratio == 0.7
    for size in SIZES[1:]:  # from now on as transformers has it
        pixels, drawn = torch.randn(2, 3, *size), noise(2, size)
        wanted = theirs(pixels, noise=drawn, interpolate_pos_encoding=True).logits
        assert error(again(pixels, drawn).predicted, wanted) < TOLERANCE
    again.save_pretrained(tmp_path / "twice")
    twice = load_mae(tmp_path / "twice")
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), twice.parameters(), strict=True))


@torch.inference_mode()
def test_the_encoder_is_kept_alone_and_out_of_the_whole(model, tmp_path):
    model.save_pretrained(tmp_path / "whole")
    model.encoder.save_pretrained(tmp_path / "alone")
    pixels = torch.randn(2, 3, 24, 24)
    for folder in ("whole", "alone"):
        loaded = vv.load(tmp_path / folder)
        assert isinstance(loaded, vv.Encoder) and loaded.origin.family == "vit_mae"
        assert torch.equal(loaded(pixels).patch_tokens, model.encoder(pixels).patch_tokens)
    with pytest.raises(ValueError, match="0 decoders"):
        load_mae(tmp_path / "alone")


def test_nothing_is_written_where_transformers_cannot_express_the_model(tmp_path):
    for changes, said in (
        (dict(image_size=(24, 16)), "a native grid of 6x4: choose a square"),
        (dict(layer_scale=0.1), "cannot express"),
    ):
        with pytest.raises(ValueError, match=said):
            new_mae(FIELDS | changes, DECODER).save_pretrained(tmp_path / "saved")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("size", SIZES)
@torch.inference_mode()
def test_the_encoder_runs_on_the_patches_kept_and_nothing_else_is_seen(model, size):
    seen, pixels, drawn = [], torch.randn(2, 3, *size), noise(2, size)
    for block in model.encoder.model.blocks:
        block.register_forward_pre_hook(lambda _, given: seen.append(given[0].shape[1]))
    predicted, mask = model(pixels, drawn)
    kept = int(drawn.shape[1] * (1 - 0.7))
    assert seen == [1 + kept] * 3 and (~mask).sum(dim=1).tolist() == [kept] * 2
    hidden = patches(pixels, 4)
    hidden[mask] = 7.0
    rows, columns = size[0] // 4, size[1] // 4
    changed = (
        hidden.unflatten(1, (rows, columns)).unflatten(3, (4, 4, 3)).permute(0, 5, 1, 3, 2, 4).reshape(pixels.shape)
    )
    assert torch.equal(model(changed, drawn).predicted, predicted)
    shown = random_masking(drawn, 0.7).keep.flip(1)  # the order of the patches kept carries nothing
    again = model(pixels, keep=shown)
    torch.testing.assert_close(again.predicted, predicted, rtol=0, atol=1e-5)
    assert torch.equal(again.mask, mask)


@torch.inference_mode()
def test_a_new_model_computes_its_positions_for_the_grid_at_hand(model):
    for grid in ((6, 6), (4, 9), (3, 5)):
        for table, dim in ((model.encoder.model.position, 64), (model.decoder.position, 48)):
            of_class, of_patches = table(grid)
            assert torch.equal(of_class, torch.zeros(1, 1, dim)) and torch.equal(of_patches[0], sincos_2d(grid, dim))


def test_everything_but_the_positions_learns(model):
    pixels, drawn = torch.rand(8, 3, 1, 1).round().expand(8, 3, 24, 24), noise(8, (24, 24))  # all of one color
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=3e-3)
    losses = []
    for _ in range(60):
        predicted, mask = model(pixels, drawn)
        loss = mae_loss(predicted, pixels, mask, patch_size=4, normalize=False)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    still = {name for name, weight in model.named_parameters() if weight.grad is None}
    assert still == {"encoder.model.position.table", "decoder.position.table"}
    assert all(weight.grad.abs().max() > 0 for weight in model.parameters() if weight.grad is not None)
    assert losses[-1] < 0.2 * pixels.var().item() < losses[0]  # far better than the mean of all


@torch.inference_mode()
def test_half_precision_follows_float32(model):
    pixels, drawn = torch.randn(2, 3, 24, 24), noise(2, (24, 24))
    wanted = model(pixels, drawn).predicted
    with torch.autocast("cpu", torch.bfloat16):
        assert error(model(pixels, drawn).predicted.float(), wanted) < 0.05
    assert error(model.bfloat16()(pixels, drawn).predicted.float(), wanted) < 0.05


def test_what_does_not_fit_is_said(model):
    pixels, drawn = torch.randn(2, 3, 24, 24), noise(2, (24, 24))
    for given in ({}, {"noise": drawn, "keep": torch.zeros(2, 3, dtype=torch.int64)}):
        with pytest.raises(ValueError, match="pass either noise"):
            model(pixels, **given)
    with pytest.raises(ValueError, match=r"noise has shape \(2, 36\), expected \(batch, patches\) = \(2, 28\)"):
        model(pixels[:, :, :16].repeat(1, 1, 1, 2)[..., :28], drawn)
    with pytest.raises(ValueError, match="a class token and no registers"):
        new_mae(FIELDS | dict(num_registers=2))
    with pytest.raises(ValueError, match="mask_ratio is 1.5, expected a share from 0 to 1"):
        DecoderConfig(mask_ratio=1.5)
    with pytest.raises(ValueError, match="states its decoder_num_heads itself"):
        load_mae(golden_case("hf_vit_mae"), decoder_num_heads=4)
