"""The page's parts in Python: what it holds, its size, its policy, and what it refuses."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.models import make_image
from support.policies import SPEC, made, rng
from support.tiny_vlm import join

import vlm_vision as vv
from vlm_vision.cli.main import main
from vlm_vision.data.lerobot import write_dataset
from vlm_vision.new_models import new_encoder
from vlm_vision.page.answer import answer_part
from vlm_vision.page.arrays import DTYPES, Arrays, unpack
from vlm_vision.page.compute.comparison import similarity
from vlm_vision.page.compute.cover import covered, squares
from vlm_vision.page.compute.layers import choose_layers, layer_size, spread
from vlm_vision.page.compute.maps import components
from vlm_vision.page.compute.pixels import place
from vlm_vision.page.episode import episode_part
from vlm_vision.page.html import SCRIPTS, script
from vlm_vision.robot.episode import Episode
from vlm_vision.vla.policy import VLAPolicy

WEB = Path(vv.__file__).parent / "page/web"


@pytest.mark.parametrize("dtype", DTYPES)
def test_arrays_come_back(dtype: str):
    arrays, values = Arrays(), (rng().normal(size=(7, 5)) * 50).astype(dtype)
    entry = arrays.add(values, dtype)
    assert np.array_equal(unpack(arrays.texts[entry["array"]], entry), values)


def test_the_code_is_small_and_complete():
    assert {path.name for path in WEB.glob("*.js")} == set(SCRIPTS)
    assert sum(path.stat().st_size for path in WEB.iterdir()) < 1e6
    assert not re.search(r"^(import|export) ", script(), flags=re.MULTILINE)
    for path in WEB.iterdir():
        assert not re.search(r"(src|href)=\"https?:|@import|innerHTML|eval\(", path.read_text()), path.name


def test_a_page_holds_no_markup_from_names():
    page = vv.look(make_image(), "mini", names=["</script><script>alert(1)</script>"])
    about = page.html.split('id="about">')[1].split("</script>")[0]
    assert json.loads(about)["images"][0]["name"] == "</script><script>alert(1)</script>"
    assert page.html.count("<script") == 2 + len(page.arrays.texts)
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page.html)
    assert policy and "default-src 'none'" in policy[1] and "unsafe" not in policy[1] and "http" not in policy[1]
    assert "<iframe srcdoc=" in page._repr_html_() and "<script" not in page._repr_html_()


def test_an_existing_page_is_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    page = vv.look(make_image(), "mini")
    (tmp_path / "a.html").write_text("old")
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        page.save(tmp_path / "a.html")
    assert [path.name for path in tmp_path.iterdir()] == ["a.html"] and (tmp_path / "a.html").read_text() == "old"


def test_eight_images_and_two_encoders_stay_small(second_encoder: vv.Encoder, tmp_path: Path):
    second_encoder.preprocess = vv.load("mini", image_size=224).preprocess  # as many tokens as the real size gives
    images = [make_image(i, 224, 224) for i in range(8)]
    path = vv.look(images, ["mini", second_encoder]).save(tmp_path / "page.html")
    assert 1e6 < path.stat().st_size < 60e6


def test_layers_that_nobody_chose_fit_into_the_page():
    large = new_encoder(dict(image_size=32, patch_size=8, embed_dim=64, depth=24, num_heads=4, mlp_dim=64))
    assert choose_layers([large], [(4, 4)], None, images=1) == [[5, 11, 17, 23]]
    assert layer_size(large, (60, 60)) == 2 * 4 * 64 * 3601
    assert choose_layers([large], [(60, 60)], None, images=8) == [spread(24, 2)]
    assert choose_layers([large], [(4, 4)], [0, -1, 0], images=1) == [[0, 23]]
    with pytest.raises(ValueError, match="grid of 60x60 patches.*14 layers.*choose 13"):
        choose_layers([large], [(60, 60)], range(14), images=1)
    with pytest.raises(ValueError, match="grid of 200x300 patches.*--serve"):
        choose_layers([large], [(200, 300)], None, images=1)
    with pytest.raises(ValueError, match=r"layers \[24\].*0 to 23"):
        choose_layers([large], [(4, 4)], [24], images=1)


@pytest.mark.parametrize(
    ("resize", "crop", "box"),
    [
        ({"resize": "shortest_edge", "resize_to": (64, 64)}, (64, 64), [50, 0, 250, 200]),
        ({"resize": "squash", "resize_to": (64, 64)}, None, [0, 0, 300, 200]),
        ({"resize": "longest_edge", "resize_to": (96, 96)}, None, [0, 0, 300, 200]),
        ({"resize": "longest_edge", "resize_to": (96, 96)}, (96, 96), [0, -50, 300, 250]),
    ],
)
def test_the_place_in_the_original(resize: dict, crop: tuple[int, int] | None, box: list[float]):
    preprocess = vv.Preprocess(
        **resize, resample="bicubic", crop=crop, rescale=1 / 255, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4)
    )
    found = place(Image.new("RGB", (300, 200)), preprocess)
    assert found is not None
    np.testing.assert_allclose(found["box"], box, atol=1.0)
    assert found["padding"] == ([0, 16, 0, 16] if box[1] < 0 else [0, 0, 0, 0])


def test_components_find_the_direction_of_the_variance():
    rows = torch.randn(200, 16) * 0.1 + torch.randn(200, 1) * torch.eye(16)[3]
    found = components([rows[:50], rows[50:]])
    assert found.shares[0] > 0.8 and [len(one) for one in found.maps] == [50, 150]
    reds = torch.cat(found.maps)[:, 0].float()
    assert torch.corrcoef(torch.stack([reds, rows[:, 3]]))[0, 1] > 0.98


def test_alignment_of_layers_ignores_rotation_and_scale():
    rows, turn = torch.randn(40, 8, dtype=torch.float64), torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64))[0]
    table = similarity([rows], [rows, 3 * rows @ turn + 1, torch.randn(40, 8, dtype=torch.float64)])
    torch.testing.assert_close(table[0, :2], torch.ones(2, dtype=torch.float64))
    assert table[0, 2] < 0.6


def test_covered_squares_are_gray_and_cover_the_image():
    image = Image.new("RGB", (50, 30), "white")
    grid = squares(image, 12)
    made_images = [np.asarray(one) for one in covered(image, grid)]
    assert len(made_images) == grid[0] * grid[1] == 12
    assert (np.stack(made_images) == 127).all(axis=-1).any(axis=0).all()


def test_an_answer_holds_the_language_models_attention():
    vlm, arrays, image = join(), Arrays(), make_image(0, 40, 60)
    vlm.generation_config.eos_token_id = None
    before = vlm.language_model.config._attn_implementation
    part = answer_part(vlm, image, "what color is this", arrays, max_new_tokens=3)
    assert vlm.language_model.config._attn_implementation == before
    attention = unpack(arrays.texts[part["attention"]["array"]], part["attention"])
    assert attention.shape == (3, part["layers"], part["heads"], 16) and part["grid"] == [4, 4]
    assert (attention > 0).all() and (attention.sum(-1) < 1).all()
    drops = unpack(arrays.texts[part["occlusion"]["drops"]["array"]], part["occlusion"]["drops"])
    assert len(drops) == np.prod(part["occlusion"]["grid"]) and np.abs(drops).max() > 0
    prompt = vlm.processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what color is this"}]}], add_generation_prompt=True
    )  # fmt: skip
    batch = vlm.processor(text=prompt, images=[image], return_tensors="pt")
    with torch.no_grad():
        first = vlm(**batch).logits[0, -1].softmax(-1).max()
    assert part["probabilities"][0] == pytest.approx(float(first), rel=1e-4)


def recorded(folder: Path, actions: int = 3) -> Path:
    images = {name: rng(i).integers(0, 256, (9, 32, 32, 3), dtype=np.uint8) for i, name in enumerate(SPEC.cameras)}
    episode = Episode("push a red block", images, rng().normal(size=(9, actions)), rng().normal(size=(9, 2)))
    write_dataset(folder, [episode], fps=10, video=False)
    return folder


@pytest.mark.parametrize("head", ["tokens", "parallel", "flow"])
def test_an_episode_holds_errors_and_changes_of_actions(head: str, tmp_path: Path):
    policy, arrays = VLAPolicy(made(head), "mine"), Arrays()
    part, first = episode_part(policy, f"{recorded(tmp_path / 'set')}:0", arrays)
    assert first.size == (32, 32) and part["cameras"] == ["top", "wrist"] and part["moments"] == list(range(9))
    errors, changes = (unpack(arrays.texts[part[name]["array"]], part[name]) for name in ("errors", "changes"))
    assert errors.shape == (9,) and (errors > 0).all() and changes.shape == (9, 2, 25)
    assert head == "tokens" or (changes > 0).any()


def test_an_episode_of_another_robot_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="have 4 numbers, and those of the policy 3"):
        episode_part(VLAPolicy(made("parallel"), "mine"), str(recorded(tmp_path / "set", 4)), Arrays())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["IMAGE", "--encoder", "mini"], "either --out PAGE for a file, or --serve"),
        (["IMAGE", "--encoder", "mini", "--out", "PAGE", "--serve"], "either --out PAGE"),
        (["IMAGE", "--out", "PAGE"], "1 images and 0 encoders"),
        (["--encoder", "mini", "--out", "PAGE"], "0 images and 1 encoders"),
        (["NOTES", "--encoder", "mini", "--out", "PAGE"], "is not an image that Pillow can read"),
        (["IMAGE", "--encoder", "mini", "--out", "PAGE", "--layers", "6"], "has 6 blocks: choose from 0 to 5"),
        (["IMAGE", "--encoder", "mini", "--out", "PAGE", "--question", "what"], "--model and --question go together"),
        (["IMAGE", "--encoder", "mini", "--out", "PAGE", "--image-size", "4096"], "grid of 512x512 patches"),
        (["IMAGE", "--encoder", "mini", "--out", "FOLDER"], "is a folder"),
    ],
)
def test_wrong_input_is_one_sentence(
    arguments: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    make_image().save(tmp_path / "a.png")
    (tmp_path / "notes.png").write_text("no image")
    paths = {"IMAGE": "a.png", "NOTES": "notes.png", "PAGE": "page.html", "FOLDER": ""}
    given = [str(tmp_path / paths[word]) if word in paths else word for word in arguments]
    assert main(["look", *given]) == 2
    assert words in capsys.readouterr().err and not (tmp_path / "page.html").exists()


def test_texts_need_a_pair(encoder: vv.Encoder):
    with pytest.raises(ValueError, match="none of .* has a text tower"):
        vv.look(make_image(), encoder, texts=["a cat"])


def test_the_command_writes_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    make_image().save(tmp_path / "a.png")
    out = tmp_path / "new/page.html"
    assert main(["look", str(tmp_path / "a.png"), "--encoder", "mini", "mini + mini", "--out", str(out)]) == 0
    assert (
        "attention of layers: mini [0, 2, 3, 5]; mini + mini" in " ".join(capsys.readouterr().out.split())
        and out.is_file()
    )


def test_a_model_and_a_policy_of_code(tmp_path: Path):
    vlm, image = join(), make_image(0, 40, 60)
    page = vv.look(image, "mini", model=vlm, question="what color is this")
    assert [one["name"] for one in page.about["encoders"]] == ["mini", "vit"] and page.about["answer"]["words"]
    page = vv.look(policy=VLAPolicy(made("parallel"), "mine"), episode=str(recorded(tmp_path / "set")))
    assert page.about["images"][0]["name"] == "first image of the episode" and page.about["episode"]["moments"]
    with pytest.raises(ValueError, match="a model goes with a question"):
        vv.look(image, "mini", model=vlm)
