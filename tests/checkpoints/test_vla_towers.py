"""Towers, mergers and preprocessing out of LeRobot's policies around a vision-language model: exact, and only their bytes.

The folders are tiny ones that `support.vla_folders` writes in lerobot's layout, without lerobot; `benchmarks/lerobot_towers.py` has
lerobot itself save them.
"""

import json

import numpy as np
import pytest
import torch
from support.census.inputs import grid_thw, merger, pixels
from support.census.siglip_kin import molmo2_pool
from support.vla_folders import policy_folder
from transformers import InternVLConfig, Molmo2VisionConfig, Qwen2_5_VLConfig, Qwen3VLConfig

import projectors
import vlm_vision as vv
from vlm_vision.checkpoints.lerobot import sizes
from vlm_vision.checkpoints.weights import WeightFiles
from vlm_vision.preprocess.area import resize_area
from vlm_vision.preprocess.spec import HALF, IMAGENET, OPENAI, Preprocess
from vlm_vision.preprocess.steps import ImageStep

WIDE = (32, 64)
"""Height and width of an image that is no square, of whole squares of patches."""


def qwen(model, x, windows=0):
    return grid_thw(windows=windows)(model.model.visual, x)


REFERENCES = {
    "groot": (lambda model, x: qwen(model, x), merger("model.visual.merger"), WIDE),
    "vla_jepa": (lambda model, x: qwen(model, x), merger("model.visual.merger"), WIDE),
    "wall_x": (lambda model, x: qwen(model, x, 32), merger("model.visual.merger"), WIDE),
    "eo1": (lambda model, x: qwen(model, x, 32), merger("model.visual.merger"), WIDE),
    "evo1": (lambda model, x: pixels(prefix=1)(model.vision_tower, x), None, (32, 32)),
    "molmoact2": (None, lambda model, *tokens: molmo2_pool(model.model, *tokens), (56, 56)),
}
"""Type -> tower of transformers, its connector, an image's size."""


@pytest.fixture
def asked(monkeypatch) -> list[str]:
    """Names of the weights that are read."""
    names, get = [], WeightFiles.get

    def counted(files, name, **how):
        names.append(name)
        return get(files, name, **how)

    monkeypatch.setattr(WeightFiles, "get", counted)
    return names


def same(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()


@pytest.mark.parametrize("policy", REFERENCES)
@torch.inference_mode()
def test_tower_and_merger_are_exact_and_nothing_else_is_read(policy, tmp_path, asked):
    folder = policy_folder(policy, tmp_path / "policy")
    reference, project, size = REFERENCES[policy]
    encoder = vv.load(folder.path)
    assert isinstance(encoder, vv.Encoder) and sorted(asked) == sorted(folder.tower)
    x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
    out = encoder(x)
    if policy == "molmoact2":  # the third block from the end and the ninth, of which the tower's file has seven
        assert encoder.tap == vv.Tap(-1, norm=False, more=(-7,))
        assert encoder.embed_dim == 2 * encoder.config.embed_dim
        states = folder.model.model.vision_tower(
            torch.nn.functional.unfold(x, 8, stride=8).unflatten(1, (3, 64)).permute(0, 3, 2, 1).flatten(2),
            output_hidden_states=True,
        ).hidden_states
        same(out.patch_tokens, torch.cat([states[7], states[1]], -1))
    else:
        theirs = reference(folder.model, x)
        same(out.patch_tokens, theirs.tokens)
        assert len(out.deepstack) == len(theirs.deepstack)
        for ours, deep in zip(out.deepstack, theirs.deepstack, strict=True):
            same(ours, deep)
    asked.clear()
    projector = vv.load_projector(folder.path)
    assert sorted(asked) == sorted(folder.connector)
    if policy == "evo1":
        same(projector(out.patch_tokens, out.grid), folder.model.get_image_features(pixel_values=x).pooler_output)
    else:
        same(projector(out.patch_tokens, out.grid), project(folder.model, out.patch_tokens, out.grid))


@pytest.mark.parametrize("policy", REFERENCES)
def test_one_tower_is_saved_and_loaded_again(policy, tmp_path):
    encoder = vv.load(policy_folder(policy, tmp_path / "policy").path)
    with pytest.warns(UserWarning):  # transformers has no such preprocessing
        encoder.save_pretrained(tmp_path / "tower")
    again = vv.load(tmp_path / "tower")
    assert again.tap == encoder.tap and again.preprocess == encoder.preprocess and again.config == encoder.config
    assert vv.Encoder.from_dict(json.loads(json.dumps(encoder.to_dict()))).preprocess == encoder.preprocess


@pytest.mark.parametrize(
    ("make", "config", "part"),
    [
        (sizes.qwen3_vl, Qwen3VLConfig(vision_config=dict(
            depth=24, hidden_size=1024, intermediate_size=4096, num_heads=16, out_hidden_size=2048, deepstack_visual_indexes=[5, 11, 17]
        )), "visual"),
        (sizes.qwen2_5_vl, Qwen2_5_VLConfig(vision_config=dict(hidden_size=1280, intermediate_size=3420, out_hidden_size=2048)), "visual"),
        (sizes.internvl, InternVLConfig(vision_config=dict(attention_bias=True)), "vision_tower"),
    ],
)  # fmt: skip
def test_public_models_are_known_by_the_shapes_of_their_weights(make, config, part):
    """GR00T N1.7 and VLA-JEPA, WALL-OSS and EO-1, EVO-1."""
    from transformers import AutoModel

    with torch.device("meta"):
        tower = AutoModel.from_config(config.vision_config)
    found = make({name: tuple(value.shape) for name, value in tower.state_dict().items()}, None)
    given = config.vision_config.to_dict()
    assert found["model_type"] == config.model_type
    assert {name: given[name] for name in found["vision_config"]} == found["vision_config"]


def test_molmoact2_is_known_by_the_shapes_of_its_weights():
    block = {"attention.wq": (1152, 1152), "attention.wk": (1152, 1152), "feed_forward.w1": (4304, 1152)}
    shapes = {"image_vit.positional_embedding": (729, 1152), "image_vit.patch_embedding.weight": (1152, 588)}
    for i in range(25):
        shapes |= {f"image_vit.transformer.resblocks.{i}.{name}.weight": shape for name, shape in block.items()}
    found = sizes.as_molmo2(sizes.molmo2(shapes, None))
    given = Molmo2VisionConfig(num_hidden_layers=27).to_dict()
    same_names = (
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
    )
    assert {name: given[name] for name in same_names} == {name: found["vision_config"][name] for name in same_names}
    assert found["vision_config"]["image_default_input_size"] == [378, 378]
    assert found["adapter_config"]["vit_layers"] == [-3, -9] and not found["adapter_config"]["pooling_attention_mask"]


@pytest.mark.parametrize("policy", ["wall_x", "eo1", "evo1", "molmoact2"])
@torch.inference_mode()
def test_a_model_that_is_nowhere_described_needs_its_heads(policy, tmp_path):
    folder = policy_folder(policy, tmp_path / "policy", base=False)
    with pytest.raises(ValueError, match=r"not public: pass num_heads=\.\.\.; config.json names 'someone/tiny'"):
        vv.load(folder.path)
    assert vv.load(folder.path, num_heads=2).config.num_heads == 2


def test_deep_features_of_a_model_that_is_nowhere_described_are_refused(tmp_path):
    folder = policy_folder("groot", tmp_path / "policy", base=False)
    with pytest.raises(
        ValueError, match="which of its blocks give deep features cannot be known; config.json names 'someone/tiny'"
    ):
        vv.load(folder.path, num_heads=2)


def test_x_vla_is_refused_in_one_sentence(tmp_path):
    (tmp_path / "config.json").write_text('{"type": "xvla"}')
    for load in (vv.load, vv.load_projector):
        with pytest.raises(
            ValueError, match=r"is a policy of type 'xvla': its tower is hierarchical \(DaViT, with attention"
        ):
            load(tmp_path)


# ---------------------------------------------------------------------------------------------- preprocessing

_STEPS = [{"registry_name": "groot_n1_7_vlm_encode_v1", "config": {
    "image_crop_size": None, "image_target_size": [256, 256], "shortest_image_edge": 256, "crop_fraction": 0.95,
    "use_albumentations": True, "letter_box_transform": False,
}}]  # fmt: skip


def preprocess(policy, folder, **options) -> Preprocess:
    encoder = vv.load(policy_folder(policy, folder, **options).path)
    assert isinstance(encoder, vv.Encoder)
    return encoder.preprocess


def test_preprocessing_is_that_of_the_policy(tmp_path):
    groot = preprocess("groot", tmp_path / "a")
    resize, crop, again = groot.before
    assert (resize, again) == (ImageStep(kind="squash", size=(256, 256)),) * 2
    assert crop == ImageStep(kind="crop", share=230 / 256, rounded=True)
    assert (groot.resize, groot.kernel, groot.mean) == ("area", "torch", HALF[0])
    area = ImageStep(kind="shortest_edge", size=(256, 256), kernel="area")
    assert preprocess("groot", tmp_path / "b", pipeline=_STEPS).before == (
        area,
        ImageStep(kind="crop", share=0.95),
        area,
    )
    assert preprocess("groot", tmp_path / "c", pipeline=[]).before == ()
    jepa = preprocess("vla_jepa", tmp_path / "d", resize_images_to=[224, 224])
    assert jepa.before == (ImageStep(kind="squash", size=(224, 224), kernel="mean"),) and jepa.kernel == "float"
    wall = preprocess("wall_x", tmp_path / "e")
    assert wall.before == (ImageStep(kind="longest_edge", size=(256, 256)),) and wall.mean == OPENAI[0]
    eo1 = preprocess("eo1", tmp_path / "f")
    assert eo1.resize_to == (64 * 28 * 28, 128 * 28 * 28) and not eo1.before
    evo1 = preprocess("evo1", tmp_path / "g", image_resolution=[32, 32])
    assert (evo1.resize_to, evo1.kernel, evo1.mean) == ((32, 32), "torchvision", IMAGENET[0])
    molmo = preprocess("molmoact2", tmp_path / "h")
    assert (molmo.resize, molmo.resize_to, molmo.kernel, molmo.mean) == ("squash", (56, 56), "point_rounded", HALF[0])
    with pytest.raises(ValueError, match="has image_resolution 448: expected two whole numbers above 0"):
        preprocess("evo1", tmp_path / "i", image_resolution=448)
    image = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    assert groot(image).shape == (1, 3, 256, 256) and jepa(image).dtype == torch.float32


def test_steps_are_refused_that_cannot_be():
    for fields, says in (
        ({"kind": "zoom"}, "kind of a step is 'zoom'"),
        ({"kind": "squash"}, "size of a step 'squash' is"),
        ({"kind": "longest_edge", "size": (3, 4)}, "expected the edge twice"),
        ({"kind": "crop", "share": 0}, "share of a step is 0"),
    ):
        with pytest.raises(ValueError, match=says):
            ImageStep(**fields)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="expected an object with kind"):
        ImageStep.from_dict({"kind": "crop", "part": 1})
    mean = ImageStep(kind="squash", size=(8, 8), kernel="mean")
    with pytest.raises(ValueError, match="which does not round, as the last"):
        Preprocess(
            resize="squash", resize_to=(8, 8), resample="bicubic", crop=None, rescale=1.0, mean=HALF[0], std=HALF[1], before=(mean,)
        )  # fmt: skip


def test_area_is_opencv_s():
    """Numbers of OpenCV 4.13: whole blocks, means of parts, growth, growth in one direction."""
    y, x = np.mgrid[:7, :9]
    image = ((37 * y + 91 * x + 13 * y * x) % 256).astype(np.uint8)[..., None].repeat(3, 2)
    for size, numbers in AREA.items():
        assert resize_area(image[:6, :8] if size == (3, 4) else image, size)[..., 0].ravel().tolist() == numbers, size


AREA = {
    (3, 4): [67, 134, 137, 140, 154, 145, 136, 127, 113, 156, 135, 178],
    (4, 5): [59, 145, 122, 111, 173, 132, 136, 120, 108, 185, 124, 148, 151, 174, 116, 165, 147, 116, 147, 128],
    (8, 10): [0, 81, 162, 72, 68, 148, 144, 54, 135, 216, 32, 122, 213, 133, 139, 132, 89, 155, 222, 117, 63, 164, 122, 134, 109, 95, 95, 73, 166, 202, 95, 206, 117, 171, 139, 136, 161, 101, 196, 176, 127, 150, 144, 159, 162, 168, 179, 178, 185, 78, 158, 61, 163, 123, 127, 144, 148, 190, 149, 52, 190, 103, 186, 172, 97, 108, 154, 140, 224, 136, 222, 145, 67, 161, 169, 91, 99, 193, 115, 38],
    (9, 5): [40, 172, 88, 89, 176, 71, 216, 149, 107, 170, 102, 162, 125, 89, 178, 132, 76, 73, 70, 189, 169, 129, 147, 165, 183, 108, 157, 172, 187, 79, 122, 197, 112, 156, 139, 153, 176, 88, 137, 163, 183, 58, 149, 156, 77],
}  # fmt: skip


@torch.inference_mode()
def test_squares_at_the_edges_have_zeros_where_they_are_not_masked():
    options = dict(num_heads=2, width=8, head_dim=4, hidden_dim=6)
    masked = projectors.build("attention_pool", in_dim=8, out_dim=4, **options)
    plain = projectors.build("attention_pool", in_dim=8, out_dim=4, masked=False, **options)
    plain.load_state_dict(masked.state_dict())
    tokens = torch.randn(1, 9, 8)
    filled = torch.nn.functional.pad(tokens.unflatten(1, (3, 3)), (0, 0, 0, 1, 0, 1)).flatten(1, 2)
    assert torch.allclose(plain(tokens, (3, 3)), masked(filled, (4, 4)), atol=1e-6)
    assert not torch.allclose(plain(tokens, (3, 3)), masked(tokens, (3, 3)), atol=1e-3)
