"""The page's attention against attention computed here, by hand, from a block's own weights."""

import pytest
import torch
from support.golden import shared_folder

import vlm_vision as vv
from vlm_vision.new_models import new_encoder
from vlm_vision.nn.output import Tap
from vlm_vision.nn.rope import Rope, rotate
from vlm_vision.page.compute.trace import attention_layers, trace
from vlm_vision.page.describe import ShownEncoder

SMALL = dict(image_size=32, patch_size=8, embed_dim=32, depth=3, num_heads=4, mlp_dim=64)
BARE = dict(SMALL, class_token=False, pool="mean", position="none")
KINDS = {
    "CLS": dict(SMALL, position_prefix=1),
    "registers": dict(SMALL, num_registers=4),
    "rotary": dict(SMALL, num_registers=2, position="rope2d"),
    "fewer keys, normed": dict(SMALL, num_kv_heads=2, qk_norm="head"),
    "scaled": dict(SMALL, attention_scale=0.3, pool="map", class_token=False),
    "windows": dict(BARE, window=3, full_blocks=(1,), rope=Rope()),
    "padded windows": dict(BARE, window=3, full_blocks=(1,), window_padding=True, relative_position=True),
    "padded rotary windows": dict(BARE, window=3, full_blocks=(1,), window_padding=True, rope=Rope(span=4)),
}


def by_hand(encoder: vv.Encoder, pixels: torch.Tensor, layer: int) -> torch.Tensor:
    """(H, T, T) softmax weights between tokens in order: prefix, then patches row by row."""
    model, config = encoder.model, encoder.config
    block, (rows, columns) = model.blocks[layer], config.grid_of(*pixels.shape[-2:])
    if layer == 0:
        x = model.embed(pixels)[0]
    else:
        out = model(pixels, tap=Tap(layer - 1, norm=False), pool=False)
        prefix = [] if out.cls_token is None else [out.cls_token[:, None]]
        prefix += [] if out.register_tokens is None else [out.register_tokens]
        x = torch.cat([*prefix, out.patch_tokens], dim=1)
    normed, width = block.norm1(x)[0], config.head_dim
    windowed = config.window and layer not in config.full_blocks
    side = config.window if windowed else 0
    if config.window_padding and windowed:
        tall, wide = -(-rows // side) * side, -(-columns // side) * side
    else:
        tall, wide = rows, columns
    padded = torch.zeros(config.num_prefix_tokens + tall * wide, normed.shape[-1])
    place = [config.num_prefix_tokens + r * wide + c for r in range(rows) for c in range(columns)]
    padded[[*range(config.num_prefix_tokens), *place]] = normed
    heads, keys = config.num_heads, config.kv_heads
    mixed = padded @ block.attn.qkv.weight.T + block.attn.qkv.bias
    q = mixed[:, : heads * width].unflatten(1, (heads, width))
    k = mixed[:, heads * width : (heads + keys) * width].unflatten(1, (keys, width))
    if config.qk_norm == "head":
        q, k = block.attn.norms[0](q), block.attn.norms[1](k)
    k = k.repeat_interleave(heads // keys, dim=1)
    q, k = q.transpose(0, 1), k.transpose(0, 1)
    bias = torch.zeros(heads, len(padded), len(padded))
    if config.relative_position:
        down, across = block.attn.relative
        middle = (len(down) - 1) // 2, (len(across) - 1) // 2
        for one in range(len(padded)):
            for other in range(len(padded)):
                (r, c), (i, j) = divmod(one, wide), divmod(other, wide)
                if side and (r // side, c // side) != (i // side, j // side):
                    continue
                bias[:, one, other] = q[:, one] @ down[r - i + middle[0]] + q[:, one] @ across[c - j + middle[1]]
    if config.rotary is not None:
        inner = (side, side) if config.window_padding and side else (tall, wide)
        cos, sin = config.rotary.angles(inner, width)
        if config.window_padding and side:
            at = [(r % side) * side + c % side for r in range(tall) for c in range(wide)]
            cos, sin = cos[at], sin[at]
        q, k = rotate(q[None], cos, sin)[0], rotate(k[None], cos, sin)[0]
    logits = q @ k.mT * (config.attention_scale or width**-0.5) + bias
    if side:
        number = torch.tensor([(r // side) * 100 + c // side for r in range(tall) for c in range(wide)])
        logits = logits.masked_fill(number[:, None] != number, -torch.inf)
    tokens = [*range(config.num_prefix_tokens), *place]
    return logits.softmax(dim=-1)[:, tokens][:, :, tokens]


def widened(encoder: vv.Encoder) -> vv.Encoder:
    """Weights large enough that attention is not uniform."""
    with torch.no_grad():
        for weight in encoder.parameters():
            weight.add_(torch.randn_like(weight) * 0.15)
    return encoder.eval()


@pytest.mark.parametrize("kind", KINDS)
def test_weights_equal_those_by_hand(kind: str):
    encoder = widened(new_encoder(KINDS[kind]))
    pixels = torch.randn(1, 3, 40, 32) if not KINDS[kind].get("relative_position") else torch.randn(1, 3, 32, 32)
    layers = attention_layers(encoder, pixels, [0, 1, 2])
    traced, _ = trace(encoder, pixels, [0, 1, 2])
    for number, layer in layers.items():
        with torch.no_grad():
            expected = by_hand(encoder, pixels, number)
        assert expected.std() > 1e-2, "attention is uniform: this test could not fail"
        for token in range(expected.shape[1]):
            ours = layer.weights(token)[:, : expected.shape[2]].float()
            torch.testing.assert_close(ours, expected[:, token], atol=1e-5, rtol=0)
        assert torch.equal(layer.queries, traced.attention[number].queries)


@pytest.mark.parametrize("kind", KINDS)
def test_outputs_of_blocks_are_the_encoders_own(kind: str):
    encoder = widened(new_encoder(KINDS[kind]))
    pixels = torch.randn(1, 3, 32, 32)
    made, own = trace(encoder, pixels, [])
    with torch.no_grad():
        for layer in range(3):
            out = encoder(pixels, tap=Tap(layer, norm=False), pool=False)
            torch.testing.assert_close(made.outputs[layer][made.prefix :], out.patch_tokens[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(own.patch_tokens, encoder(pixels).patch_tokens)


def test_only_layers_asked_for_are_computed():
    encoder = new_encoder(KINDS["CLS"]).eval()
    ran = []
    for i, block in enumerate(encoder.model.blocks):
        block.register_forward_hook(lambda *_, i=i: ran.append(i))
    assert list(attention_layers(encoder, torch.randn(1, 3, 32, 32), [1])) == [1]
    assert ran == [0, 1]
    assert not any(block.attn._forward_pre_hooks for block in encoder.model.blocks)


def test_towers_of_a_fused_encoder_have_their_own_attention():
    towers = [widened(new_encoder(KINDS[kind])) for kind in ("CLS", "rotary")]
    shown = ShownEncoder("fused", vv.FusedEncoder(towers))
    from support.models import make_image

    _, parts = shown.pixels(make_image())
    for tower, pixels in zip(shown.towers, parts, strict=True):
        layer = attention_layers(tower, pixels, [2])[2]
        with torch.no_grad():
            expected = by_hand(tower, pixels, 2)
        torch.testing.assert_close(layer.weights(0).float(), expected[:, 0], atol=1e-5, rtol=0)


def test_the_real_tower():
    folder = shared_folder() / "models/dinov2-small-saliency"
    if not folder.is_dir():
        pytest.skip(f"real weights lie outside the repository: no {folder}")
    encoder = vv.load(folder)
    pixels = torch.randn(1, 3, 112, 112)
    layer = attention_layers(encoder, pixels, [10])[10]
    with torch.no_grad():
        expected = by_hand(encoder, pixels, 10)
    torch.testing.assert_close(layer.weights(5).float(), expected[:, 5], atol=1e-5, rtol=0)


def test_a_tower_that_reads_an_instruction_is_refused():
    encoder = new_encoder(dict(SMALL, film_dim=8))
    with pytest.raises(ValueError, match="FiLM"):
        attention_layers(encoder, torch.randn(1, 3, 32, 32), [0])
