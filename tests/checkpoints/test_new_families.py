"""Families that came after the golden cases, made tiny by transformers itself: tokens equal at every size."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from support.golden import TOLERANCE, error, with_prefix
from test_formats import TEXT, VISION

import vlm_vision as vv
from vlm_vision.checkpoints.families import all as families
from vlm_vision.checkpoints.hf.preprocess import from_hf

SIZES = {"native": (16, 16), "larger": (24, 24), "smaller": (12, 12), "wide": (8, 20), "tall": (28, 16)}
"""Pixels (height, width), for VISION's patches of 4 on a grid of 4 x 4."""

TIPS = {name: value for name, value in VISION.items() if name != "intermediate_size"}
CLIP_TEXT = dict(TEXT, bos_token_id=None, eos_token_id=2)


def made(class_name: str, **fields):
    """A model of transformers with random weights, none of them zero or one. Skips where transformers lacks the class."""
    import transformers

    cls = getattr(transformers, class_name, None)
    if cls is None:
        pytest.skip(f"the installed transformers {transformers.__version__} is older than {class_name}")
    torch.manual_seed(0)
    model = cls(cls.config_class(**fields)).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    return model


def compare(theirs, folder: Path, encode, *, tap: vv.Tap = vv.Tap(), reads: str = "") -> vv.Encoder:
    """Save with transformers, load here, and compare all tokens at every size."""
    theirs.save_pretrained(folder)
    encoder = vv.load(folder, tap=tap)
    assert isinstance(encoder, vv.Encoder) and encoder.origin.family == reads
    for size in SIZES.values():
        pixels = torch.randn(2, 3, *size)
        assert error(with_prefix(encoder(pixels)), encode(pixels)) < TOLERANCE, size
    return encoder


def at_any_size(model):
    return lambda pixels: model(pixels, interpolate_pos_encoding=True).last_hidden_state


# ------------------------------------------------------------------------------------------------ MetaCLIP 2


@torch.inference_mode()
def test_metaclip_2_tower(tmp_path):
    theirs = made("MetaClip2VisionModel", **VISION)
    before_norm = vv.Tap(-1, norm=False)
    encoder = compare(theirs, tmp_path, at_any_size(theirs), tap=before_norm, reads="clip_vision_model")
    pixels = torch.randn(2, 3, 16, 16)
    assert error(encoder(pixels, tap=vv.Tap()).pooled, theirs(pixels).pooler_output) < TOLERANCE


@torch.inference_mode()
def test_metaclip_2_tower_with_projection(tmp_path):
    theirs = made("MetaClip2VisionModelWithProjection", **VISION, projection_dim=20)
    theirs.save_pretrained(tmp_path)
    pixels = torch.randn(2, 3, 16, 16)
    assert error(vv.load(tmp_path)(pixels).pooled, theirs(pixels).image_embeds) < TOLERANCE


@torch.inference_mode()
def test_the_whole_metaclip_2(tmp_path):
    text = CLIP_TEXT | dict(hidden_size=32)
    theirs = made("MetaClip2Model", vision_config=VISION, text_config=text, projection_dim=20)
    tower = theirs.vision_model
    encoder = compare(theirs, tmp_path, at_any_size(tower), tap=vv.Tap(-1, norm=False), reads="clip_vision_model")
    pixels = torch.randn(2, 3, 16, 16)
    wanted = theirs.visual_projection(tower(pixels).pooler_output)
    assert error(encoder(pixels, tap=vv.Tap()).pooled, wanted) < TOLERANCE
    assert vv.load_text(tmp_path).config.embed_dim == 32


# ------------------------------------------------------------------------------------------------ Idefics2


def bucketed(tower):
    """Idefics2 takes a mask of the patches that an image has; here it has all."""

    def encode(pixels):
        rows, columns = pixels.shape[-2] // 4, pixels.shape[-1] // 4
        mask = torch.ones(len(pixels), rows, columns, dtype=torch.bool)
        return tower(pixels, patch_attention_mask=mask).last_hidden_state

    return encode


def idefics2(**vision):
    resampler = dict(resampler_n_latents=3, resampler_depth=1, resampler_n_heads=2, resampler_head_dim=8)
    resampler |= dict(num_key_value_heads=1, hidden_size=24)
    return made(
        "Idefics2ForConditionalGeneration",
        vision_config=VISION | vision,
        text_config=TEXT | {"model_type": "mistral"},
        perceiver_config=resampler,
    )


@torch.inference_mode()
def test_idefics2_tower(tmp_path):
    theirs = idefics2().model.vision_model
    compare(theirs, tmp_path, bucketed(theirs), reads="idefics3_vision")


@pytest.mark.parametrize("named", ["idefics2_vision", "idefics2"])
@torch.inference_mode()
def test_the_whole_idefics2_and_its_resampler(tmp_path, named):
    theirs = idefics2()
    encoder = compare(theirs, tmp_path, bucketed(theirs.model.vision_model), reads="idefics3_vision")
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace('"idefics2_vision"', f'"{named}"'))  # older files name the whole model
    again = vv.load(tmp_path)
    assert again.config == encoder.config
    assert (encoder.preprocess.resize, encoder.preprocess.resize_to) == ("between", (378, 980))
    pixels = torch.randn(1, 3, 16, 16)
    out = again(pixels)
    wanted = theirs.model.connector(out.patch_tokens, attention_mask=torch.ones(1, 16))
    assert error(vv.load_projector(tmp_path)(out.patch_tokens, out.grid), wanted) < TOLERANCE


@pytest.mark.parametrize(
    "size", [(500, 300), (300, 500), (1200, 900), (900, 1200), (2000, 500), (980, 980), (1961, 983)]
)
def test_idefics2_prepares_images_as_its_own_processor(size):
    from transformers.models.idefics2.image_processing_pil_idefics2 import Idefics2ImageProcessorPil

    theirs = Idefics2ImageProcessorPil()
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8))
    wanted = torch.as_tensor(theirs(image, return_tensors="pt")["pixel_values"][0, 0])
    pixels = from_hf(theirs.to_dict())(image)[0]
    assert pixels.shape == wanted.shape and (pixels - wanted).abs().max() < 1e-6


# ------------------------------------------------------------------------------------------------ TIPSv2


@pytest.mark.parametrize("fields", [{}, {"use_swiglu_ffn": True, "num_register_tokens": 2}, {"mlp_ratio": 3.1}])
@torch.inference_mode()
def test_tipsv2_tower(tmp_path, fields):
    theirs = made("Tipsv2VisionModel", **TIPS, **({"mlp_ratio": 2} | fields))
    encoder = compare(theirs, tmp_path / "hub", lambda x: theirs(x).last_hidden_state, reads="tipsv2_vision_model")
    pixels = torch.randn(2, 3, 24, 16)
    mask = torch.rand(2, 24) < 0.5
    wanted = theirs(pixels, bool_masked_pos=mask).last_hidden_state
    assert error(with_prefix(encoder(pixels, mask=mask)), wanted) < TOLERANCE
    with pytest.warns(UserWarning, match="transformers has no preprocessing with kernel 'torch'"):
        encoder.save_pretrained(tmp_path / "saved")
    again, info = type(theirs).from_pretrained(tmp_path / "saved", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert error(again(pixels).last_hidden_state, theirs(pixels).last_hidden_state) < TOLERANCE
    assert vv.load(tmp_path / "saved").preprocess == encoder.preprocess
    with pytest.warns(UserWarning, match="timm has no"):  # mask token, and kernel
        encoder.save_pretrained(tmp_path / "timm", format="timm")
    native = torch.randn(2, 3, 16, 16)
    assert error(with_prefix(vv.load(tmp_path / "timm")(native)), theirs(native).last_hidden_state) < TOLERANCE


def test_both_names_of_the_mlp_of_tipsv2_load(tmp_path):
    made("Tipsv2VisionModel", **TIPS, mlp_ratio=2).save_pretrained(tmp_path)
    wanted, file = vv.load(tmp_path).state_dict(), tmp_path / "model.safetensors"
    stored = {name.replace("c_fc", "fc1").replace("c_proj", "fc2"): value for name, value in load_file(file).items()}
    save_file(stored, file, metadata={"format": "pt"})
    assert all(torch.equal(value, wanted[name]) for name, value in vv.load(tmp_path).state_dict().items())


@torch.inference_mode()
def test_the_whole_tipsv2(tmp_path):
    text = dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=40)
    theirs = made("Tipsv2Model", vision_config=TIPS | dict(mlp_ratio=2), text_config=text)
    compare(theirs, tmp_path, lambda pixels: theirs.vision_model(pixels).last_hidden_state, reads="tipsv2_vision_model")
    spec = vv.load(tmp_path).preprocess
    assert (spec.resize, spec.resize_to, spec.kernel, spec.mean) == ("squash", (16, 16), "torch", (0, 0, 0))


# ------------------------------------------------------------------------------------------------ the records


def test_no_two_records_claim_the_same_name():
    towers = [name for family in families.ALL if not family.written_as for name in (family.name, *family.aliases)]
    wholes = [whole.model_type for family in families.ALL for whole in family.whole_models]
    assert len(set(towers + wholes)) == len(towers + wholes)
    assert len(families.FAMILIES) == len(families.ALL)
    for family, whole in families.WHOLE_MODELS.values():
        assert not whole.tower or families.MODEL_TYPES[whole.tower][0] is family
    processors = [
        (name, str(sorted(given))) for family in families.ALL for name, given in family.image_processors.items()
    ]
    assert len({name for name, _ in processors}) == len(set(processors))


def test_every_record_writes_what_it_reads_back():
    """The first public model of each family, made small, through the family's config.json and key table."""
    from vlm_vision.nn.vit import VisionTransformer

    small = dict(image_size=(32, 32), patch_size=8, embed_dim=32, depth=1, num_heads=2, mlp_dim=64)
    for family in families.ALL:
        for presets in family.presets[:1]:
            config = vv.ViTConfig(**(presets.fields | presets.rows[0][2] | small))
            described = family.write_config(config)
            with torch.device("meta"):
                state = VisionTransformer(config).state_dict()
            for style in ("hub", "memory"):
                covered = {name for row in family.keys(config, style) for name in row.ours}
                assert covered == state.keys() - ({"position.table"} if family.unresized else set()), (
                    presets.name,
                    style,
                )
            names = frozenset(name for row in family.keys(config) for name in row.theirs)
            again = family.read_config(family.defaults | described, names)
            assert (again.embed_dim, again.grid, again.mlp) == (32, (4, 4), config.mlp), presets.name


GUIDE = Path(__file__).parents[2] / "docs" / "adding-a-family.md"


def test_the_code_in_the_guide_is_the_code_of_the_files():
    """Each block of Python stands, line for line, in the file that the guide names last before it."""
    text, checked = GUIDE.read_text(encoding="utf-8"), 0
    for block in re.finditer(r"```python\n(.*?)```", text, flags=re.DOTALL):
        file = GUIDE.parents[1] / re.findall(r"`([\w/]+\.py)`", text[: block.start()])[-1]
        assert block[1] in file.read_text(encoding="utf-8"), f"{file} has no such lines:\n{block[1]}"
        checked += 1
    assert checked > 10
