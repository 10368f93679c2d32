"""Towers of native resolution, with mergers and deep features, joined to a language model."""

import warnings
from functools import partial

import pytest
import torch
from peft import LoraConfig, get_peft_model
from support.models import make_image, tiny_llm, tiny_tokenizer
from torch.utils.checkpoint import checkpoint

import projectors
import vlm_vision as vv
from vlm_vision.encoder import Encoder, Origin
from vlm_vision.nn.rope import Rope
from vlm_vision.preprocess.spec import HALF, Preprocess
from vlm_vision.train.trainable import set_trainable
from vlm_vision.vlm.deepstack import deep_levels

AREA = Preprocess(
    resize="area", resize_to=(16 * 16, 64 * 64), resample="bicubic", crop=None, rescale=1 / 255, mean=HALF[0], std=HALF[1],
    patch_size=16,
)  # fmt: skip
TEXTS = ["<image> what color is <image>", "is this a cat ?", "<image> the"]
SIZES = [(40, 60), (60, 30), (33, 33)]


def tower(**fields) -> Encoder:
    """A tower of Qwen3-VL's kind: 8 px patches, two frames each, 2 x 2 merged."""
    torch.manual_seed(0)
    config = vv.ViTConfig(
        image_size=(32, 32), patch_size=8, embed_dim=32, depth=4, num_heads=4, mlp_dim=48, class_token=False, pool="none",
        final_norm=False, temporal_patch=2, frames="apart", position_resize="zoom", rope=Rope(), remainder="error", **fields,
    )  # fmt: skip
    return Encoder(
        vv.VisionTransformer(config), preprocess=AREA, origin=Origin("qwen3_vl_vision", "transformers")
    ).eval()


def join(deepstack: bool = False, kind: str = "llama", **fields) -> vv.VisionLanguageModel:
    llm = tiny_llm(kind)
    width = llm.get_input_embeddings().weight.shape[1]
    if deepstack:
        fields |= dict(deepstack=(0, 2), deepstack_dim=width)
    merger = projectors.build("patch_merger", in_dim=32, out_dim=width)
    torch.manual_seed(1)
    return vv.VisionLanguageModel.attach(tower(**fields), llm, merger, tiny_tokenizer(), deepstack=deepstack)


def inputs(vlm: vv.VisionLanguageModel, texts: list[str] = TEXTS) -> dict:
    count = sum(text.count("<image>") for text in texts)
    return vlm.processor(text=texts, images=[make_image(i, *SIZES[i]) for i in range(count)])


@pytest.mark.parametrize("deepstack", [False, True])
@torch.no_grad()
def test_native_towers_join_generate_and_save(deepstack, tmp_path):
    vlm = join(deepstack)
    assert vlm.layout == vv.Native(None)
    batch = inputs(vlm)
    sizes = [tuple(size) for size in batch["image_sizes"].tolist()]
    assert sizes == [tuple(AREA(make_image(i, *SIZES[i])).shape[-2:]) for i in range(3)]
    counts = [height // 16 * (width // 16) for height, width in sizes]
    assert [vlm.num_image_tokens(*size) for size in sizes] == counts
    assert int((batch["input_ids"] == vlm.config.image_token_id).sum()) == sum(counts)
    logits = vlm(**batch).logits
    out = vlm.generate(**batch, max_new_tokens=4, do_sample=False, eos_token_id=None)
    alone = vlm.processor(text=TEXTS[2], images=make_image(2, *SIZES[2]))
    own = vlm.generate(**alone, max_new_tokens=4, do_sample=False, eos_token_id=None)
    assert torch.equal(out[2, -4:], own[0, -4:])
    again = torch.cat([batch["input_ids"], out[:, -4:]], dim=1)
    mask = torch.cat([batch["attention_mask"], torch.ones(3, 4, dtype=torch.long)], dim=1)
    whole = vlm(**batch | {"input_ids": again, "attention_mask": mask}).logits[:, -5:-1].argmax(-1)
    assert torch.equal(whole, out[:, -4:])  # with a cache and without
    vlm.save_pretrained(tmp_path)
    loaded = vv.VisionLanguageModel.from_pretrained(tmp_path)
    assert loaded.config.deepstack == deepstack
    assert torch.equal(loaded(**inputs(loaded)).logits, logits)


@torch.no_grad()
def test_deep_features_are_added_to_the_first_layers():
    vlm = join(deepstack=True)
    batch = inputs(vlm, ["<image> the"])
    embeds, width = vlm.embed(**{k: v for k, v in batch.items() if k != "attention_mask"}), vlm.projector.out_dim
    assert embeds.shape[-1] == 3 * width
    deep = vlm.encoder(batch["pixel_values"]).deepstack
    at = (batch["input_ids"][0] == vlm.config.image_token_id).nonzero()[:, 0]
    for level, features in enumerate(deep):
        torch.testing.assert_close(
            embeds[0, at, (1 + level) * width : (2 + level) * width], features[0], rtol=0, atol=1e-5
        )
    assert not embeds[0, :, width:][batch["input_ids"][0] != vlm.config.image_token_id].any()
    by_hand = vlm.language_model.model
    x, positions = embeds[..., :width], torch.arange(embeds.shape[1])[None]
    rotary = by_hand.rotary_emb(x, positions)
    for level, layer in enumerate(by_hand.layers):
        x = layer(x, position_embeddings=rotary, position_ids=positions)
        x = x if isinstance(x, torch.Tensor) else x[0]
        x[0, at] += deep[level][0] if level < len(deep) else 0
    expected = vlm.language_model.lm_head(by_hand.norm(x))
    torch.testing.assert_close(vlm(**batch).logits, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("fails", [False, True])
def test_the_language_model_alone_reads_no_deep_features(fails):
    vlm = join(deepstack=True)
    batch, words = inputs(vlm, ["<image> the"]), torch.randint(5, 20, (1, 7))
    before = vlm.language_model(words).logits
    if fails:
        with pytest.raises(TypeError):
            vlm(**batch, no_such_argument=1, labels="a")
    else:
        vlm(**batch)
    assert torch.equal(vlm.language_model(words).logits, before)


class Recomputed(torch.nn.Module):
    """A layer whose hooks run once more in the backward pass."""

    reentrant = False

    def __call__(self, *args, **kwargs):
        return checkpoint(partial(super().__call__, **kwargs), *args, use_reentrant=self.reentrant)


def test_layers_that_are_recomputed_change_no_gradient():
    """Of two forward passes before one backward pass either."""
    gradients = []
    for recomputed in (False, True):
        vlm = join(deepstack=True).train()
        if recomputed:
            for layer in vlm.language_model.model.layers:
                layer.__class__ = type("Recomputed", (Recomputed, type(layer)), {})
        losses = []
        for i in range(2):
            batch = vlm.processor(text=["<image> what"], images=make_image(i, *SIZES[i]), return_tensors="pt")
            losses.append(vlm(**batch).logits.pow(2).mean())
        sum(losses).backward()
        gradients.append({name: weight.grad for name, weight in vlm.named_parameters() if weight.grad is not None})
    torch.testing.assert_close(gradients[1], gradients[0])


def test_reentrant_checkpointing_is_refused():
    vlm = join(deepstack=True).train()
    layer = vlm.language_model.model.layers[0]
    layer.__class__ = type("Reentrant", (Recomputed, type(layer)), {"reentrant": True})
    with pytest.raises(ValueError, match='"use_reentrant": False'):
        vlm(**inputs(vlm, ["<image> the"]))


def test_repeated_and_unused_blocks_are_no_levels():
    width = tiny_llm("llama").get_input_embeddings().weight.shape[1]
    encoder = tower(deepstack=(2, -1, 0, 2), deepstack_dim=width)
    assert deep_levels(encoder) == 2 == len(encoder(torch.randn(1, 3, 32, 32)).deepstack)
    encoder.tap = vv.Tap(-3, norm=False)
    assert deep_levels(encoder) == 1


@pytest.mark.parametrize("deepstack", [False, True])
def test_mergers_train_where_the_language_model_reads_them(deepstack):
    width = tiny_llm("llama").get_input_embeddings().weight.shape[1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a tower whose deep features are not read
        encoder = tower(deepstack=(0, 3, -1), deepstack_dim=width)
        encoder.tap = vv.Tap(-2, norm=False)
        merger = projectors.build("patch_merger", in_dim=32, out_dim=width)
        vlm = vv.VisionLanguageModel.attach(encoder, tiny_llm("llama"), merger, tiny_tokenizer(), deepstack=deepstack)
    set_trainable(vlm, vision="full", projector="full", language="frozen")
    trains = [all(weight.requires_grad for weight in one.parameters()) for one in encoder.model.deepstack]
    assert trains == [deepstack, False, False]


def test_everything_trains_under_lora_too():
    vlm = join(deepstack=True)
    batch = inputs(vlm)
    labels = batch["input_ids"].masked_fill(batch["input_ids"] == vlm.config.image_token_id, -100)
    tuned = get_peft_model(vlm, LoraConfig(r=2, target_modules=["q_proj", "qkv"], modules_to_save=["projector"]))
    tuned.train()
    for module in tuned.modules():
        if hasattr(module, "gradient_checkpointing"):
            module.gradient_checkpointing = False
    with torch.no_grad():
        for name, weight in tuned.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.02)
    tuned(**batch, labels=labels).loss.backward()
    trained = {name for name, weight in tuned.named_parameters() if weight.grad is not None and weight.grad.any()}
    assert any("encoder" in name and "lora_A" in name for name in trained) and any(
        "projector" in name for name in trained
    )


@pytest.mark.filterwarnings("default")
def test_deep_features_that_nobody_reads_are_warned_of():
    llm = tiny_llm("llama")
    width = llm.get_input_embeddings().weight.shape[1]
    merger = projectors.build("patch_merger", in_dim=32, out_dim=width)
    encoder = tower(deepstack=(0, 2), deepstack_dim=width)
    with pytest.warns(UserWarning, match="deep features of 2 blocks, which the language model does not read"):
        vv.VisionLanguageModel.attach(encoder, llm, merger, tiny_tokenizer())


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        (dict(), "has no deep features"),
        (dict(deepstack=(0,), deepstack_dim=7), "have 7 channels, but the language model"),
    ],
)
def test_deep_features_that_do_not_fit_say_why(fields, says):
    llm = tiny_llm("llama")
    merger = projectors.build("patch_merger", in_dim=32, out_dim=llm.get_input_embeddings().weight.shape[1])
    with pytest.raises(ValueError, match=says):
        vv.VisionLanguageModel.attach(tower(**fields), llm, merger, tiny_tokenizer(), deepstack=True)


def test_a_merger_that_does_not_divide_the_squares_says_why():
    llm = tiny_llm("llama")
    merger = projectors.build("patch_merger", in_dim=32, out_dim=llm.get_input_embeddings().weight.shape[1], merge=3)
    with pytest.raises(ValueError, match="merge"):
        vv.VisionLanguageModel.attach(tower(), llm, merger, tiny_tokenizer())
