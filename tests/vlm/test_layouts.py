"""Images in the prompt: tiles, native shapes, videos; one formula for the number of tokens."""

import random

import pytest
import torch
from support.golden import golden_case
from support.models import make_image, tiny_llm, tiny_tokenizer

import projectors
import vlm_vision as vv
from vlm_vision.vlm.layout import layout_from_dict

PINPOINTS = ((32, 64), (64, 32), (64, 64), (96, 32), (32, 96))
LAYOUTS = [vv.Whole(), vv.AnyRes(PINPOINTS), vv.Native(max_patches=20)]
SIZES = [(40, 36), (30, 90), (96, 31), (64, 64), (200, 210), (17, 400), (33, 32)]


def join(encoder, layout, projector="mlp", **options) -> vv.VisionLanguageModel:
    built = projectors.build(projector, in_dim=encoder.embed_dim, out_dim=32, **options)
    return vv.VisionLanguageModel.attach(
        encoder, tiny_llm("llama"), projector=built, tokenizer=tiny_tokenizer(), layout=layout
    )


@pytest.fixture
def llava_next():
    """Tiny LLaVA-NeXT of transformers, its processor of images, and the layout that is its own."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaNextConfig, LlavaNextForConditionalGeneration
    from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

    vision = CLIPVisionConfig(
        image_size=32, patch_size=8, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4
    )
    text = LlamaConfig(vocab_size=30, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4)
    pinpoints = [list(size) for size in PINPOINTS]
    config = LlavaNextConfig(
        vision_config=vision, text_config=text, image_grid_pinpoints=pinpoints, image_token_index=29
    )
    processor = LlavaNextImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, image_grid_pinpoints=pinpoints
    )
    return LlavaNextForConditionalGeneration(config).eval(), processor


def test_tiles_are_those_of_llava_next(encoder, llava_next):
    _, processor = llava_next
    encoder.preprocess = vv.Preprocess(
        resize="shortest_edge",
        resize_to=(32, 32),
        resample="bicubic",
        crop=(32, 32),
        rescale=1 / 255,
        mean=tuple(processor.image_mean),
        std=tuple(processor.image_std),
    )
    layout = vv.AnyRes(PINPOINTS)
    for i, size in enumerate(SIZES):
        ours = layout.pixels(encoder, [make_image(i, *size)])
        theirs = processor(make_image(i, *size), return_tensors="pt")
        torch.testing.assert_close(ours["pixel_values"], theirs["pixel_values"][0], rtol=0, atol=1e-6)
        assert torch.equal(ours["image_sizes"], theirs["image_sizes"])


def test_tokens_are_laid_in_llava_nexts_order_and_number(encoder, llava_next):
    model, _ = llava_next
    layout, projector = vv.AnyRes(PINPOINTS), projectors.build("linear", in_dim=32, out_dim=32)
    draw = random.Random(0)
    sizes = [*SIZES, *((draw.randint(5, 500), draw.randint(5, 500)) for _ in range(40))]
    canvases = [layout.num_canvases(encoder, size) for size in sizes]
    tokens = torch.randn(sum(canvases), 16, 32)
    newline = model.model.image_newline.detach()
    ours = layout.arrange(encoder, [(tokens, (4, 4))], torch.tensor(sizes), newline)
    theirs, counts = model.model.pack_image_features(tokens.split(canvases), torch.tensor(sizes), "default", newline)
    assert [len(one) for one in ours] == counts.tolist() == [layout.num_tokens(encoder, projector, s) for s in sizes]
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
@torch.no_grad()
def test_an_image_does_not_depend_on_its_batch(encoder, layout):
    vlm = join(encoder, layout)
    images = [make_image(i, *size) for i, size in enumerate(SIZES)]
    together = vlm.get_image_features(**vlm.processor.image_processor(images))
    assert len(together) == len(images)
    for one, whole in zip(images, together, strict=True):
        (alone,) = vlm.get_image_features(**vlm.processor.image_processor(one))
        torch.testing.assert_close(alone, whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("layout", "projector", "options"),
    [
        (vv.Whole(), "pixel_shuffle", {}),
        (vv.AnyRes(PINPOINTS), "pixel_shuffle", {}),
        (vv.Native(max_patches=24, multiple=2), "pixel_shuffle", {}),
        (vv.Native(max_patches=24), "linear", {}),
    ],
    ids=lambda value: getattr(value, "name", value) if not isinstance(value, dict) else "",
)
@torch.no_grad()
def test_generation_and_saving_with_every_layout(encoder, layout, projector, options, tmp_path):
    vlm = join(encoder, layout, projector, **options)
    images = [make_image(i, *size) for i, size in enumerate(SIZES[:3])]
    texts = ["<image> what color is <image>", "is this a cat ?", "<image> the"]
    batch = vlm.processor(text=texts, images=images)
    alone = vlm.processor(text=texts[2], images=images[2])
    out = vlm.generate(**batch, max_new_tokens=4, do_sample=False, eos_token_id=None)
    own = vlm.generate(**alone, max_new_tokens=4, do_sample=False, eos_token_id=None)
    assert torch.equal(out[2, -4:], own[0, -4:])
    expected = vlm(**batch).logits
    vlm.save_pretrained(tmp_path)
    again = vv.VisionLanguageModel.from_pretrained(tmp_path)
    assert again.layout == layout
    assert torch.equal(again(**again.processor(text=texts, images=images)).logits, expected)


@torch.no_grad()
def test_a_naflex_tower_keeps_the_shape_of_its_images():
    tower = vv.load(golden_case("hf_siglip2_naflex"))
    vlm = vv.VisionLanguageModel.attach(tower, tiny_llm("llama"), tokenizer=tiny_tokenizer())
    assert vlm.layout == vv.Native(tower.preprocess.max_patches)
    wide, tall = make_image(0, 30, 120), make_image(1, 90, 45)
    batch = vlm.processor(text=["<image> what", "the <image>"], images=[wide, tall])
    features = vlm.get_image_features(batch["pixel_values"], image_sizes=batch["image_sizes"])
    for image, tokens in zip((wide, tall), features, strict=True):
        out = tower(tower.preprocess(image))
        torch.testing.assert_close(tokens, vlm.projector(out.patch_tokens, out.grid)[0], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_newline_trains_and_stands_after_each_row(encoder):
    vlm = join(encoder, vv.AnyRes(PINPOINTS))
    batch = vlm.processor(text="<image> what", images=make_image(0, 64, 64))
    (tokens,) = vlm.get_image_features(batch["pixel_values"], image_sizes=batch["image_sizes"])
    assert len(tokens) == 16 + 8 * 9
    assert all(torch.equal(tokens[i], vlm.image_newline) for i in range(16 + 8, len(tokens), 9))
    with torch.enable_grad():
        vlm(**batch, labels=batch["input_ids"]).loss.backward()
    assert vlm.image_newline.grad.abs().sum() > 0


def test_a_video_is_its_frames(vlm):
    frames = [make_image(i) for i in range(3)]
    video = vlm.processor(text="<image> the <video> what", images=[make_image(9)], videos=[frames])
    plain = vlm.processor(text="<image> the <image><image><image> what", images=[make_image(9), *frames])
    assert torch.equal(video["input_ids"], plain["input_ids"])
    assert torch.equal(video["pixel_values"], plain["pixel_values"])
    content = [{"type": "video", "video": frames}, {"type": "text", "text": "what"}]
    chat = vlm.processor.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=True, return_dict=True, return_tensors="pt"
    )
    assert torch.equal(chat["pixel_values"], plain["pixel_values"][1:])
    with pytest.raises(ValueError, match="1 <video> in all, but there are 0 videos"):
        vlm.processor(text="<video> what")
    with pytest.raises(ValueError, match="1 <video> in all, but there are 2 videos"):
        vlm.processor(text="<video> what", videos=[frames, frames])


def test_a_layout_that_does_not_fit_is_refused(encoder):
    with pytest.raises(ValueError, match="pinpoint 40x64 is not a multiple of the encoder's canvas of 32x32"):
        join(encoder, vv.AnyRes(((40, 64),)))
    with pytest.raises(ValueError, match="needs a grid of multiples"):
        join(encoder, vv.Native(20), "pixel_shuffle")
    with pytest.raises(ValueError, match="expected at least one"):
        vv.AnyRes(())
    with pytest.raises(ValueError, match="is not known"):
        layout_from_dict({"name": "whole", "tiles": 3})
    fused = vv.FusedEncoder(
        [vv.load(golden_case("hf_dinov2_reg"), image_size=42), vv.load(golden_case("hf_siglip"), image_size=48)]
    )
    with pytest.raises(ValueError, match="takes a single tower"):
        join(fused, vv.Native(20))
    vlm = join(encoder, vv.AnyRes(PINPOINTS))
    batch = vlm.processor(text="<image> what", images=make_image())
    with pytest.raises(ValueError, match="needs image_sizes with pixel_values"):
        vlm(input_ids=batch["input_ids"], pixel_values=batch["pixel_values"])
    with pytest.raises(ValueError, match="need 5 canvases, but pixel_values hold 3"):
        vlm(**{**batch, "pixel_values": batch["pixel_values"][:3]})


@torch.no_grad()
def test_fused_towers_see_tiles():
    towers = [vv.load(golden_case("hf_dinov2_reg"), image_size=42), vv.load(golden_case("hf_siglip"), image_size=48)]
    vlm = join(vv.FusedEncoder(towers), vv.AnyRes(((48, 96), (96, 48))))
    batch = vlm.processor(text="<image> what", images=make_image(0, 40, 90))
    features = vlm.get_image_features(batch["pixel_values"], image_sizes=batch["image_sizes"])
    assert [len(one) for one in features] == [vlm.num_image_tokens(40, 90)]


@pytest.mark.parametrize("layout", ["anyres", vv.Whole])
def test_what_is_no_layout_is_refused(encoder, layout):
    with pytest.raises(ValueError, match="expected Whole"):
        vv.VisionLanguageModel.attach(encoder, tiny_llm("llama"), tokenizer=tiny_tokenizer(), layout=layout)


@pytest.mark.parametrize(
    "make",
    [lambda: vv.AnyRes((336, 672)), lambda: vv.AnyRes([(1, 2, 3)]), lambda: vv.Native(16.5), lambda: vv.Native("16")],  # type: ignore[arg-type]
)
def test_numbers_of_a_layout_that_are_none_are_refused(make):
    with pytest.raises(ValueError, match="expected"):
        make()


def test_tiles_without_images_or_sizes_are_refused(encoder):
    layout = vv.AnyRes([(32, 64), (64, 32)])
    vlm = vv.VisionLanguageModel.attach(encoder, tiny_llm("llama"), tokenizer=tiny_tokenizer(), layout=layout)
    with pytest.raises(ValueError, match="there are no images"):
        vlm.processor.image_processor([])
    batch = vlm.processor(text="<image> what", images=make_image())
    ((tokens, _),) = vlm.encode(batch["pixel_values"])
    with pytest.raises(ValueError, match="needs image_sizes"):
        vlm(input_ids=batch["input_ids"], patch_tokens=tokens)
