"""Random views: their laws, their determinism, and what is mixed corresponds to its targets."""

import dataclasses
import math
import random
from collections import Counter

import jsonargparse
import numpy as np
import pytest
import torch
from PIL import Image
from support.models import make_image

import vlm_vision as vv
from vlm_vision.data.images.augment import OPERATIONS, RandAugment
from vlm_vision.data.images.mixing import Erase, Mix
from vlm_vision.data.images.views import Color, Crop, Plain, View, dino_views, normalize_views
from vlm_vision.data.seeds import derive_seed

WHOLE = Crop(32, (1.0, 1.0), (1.0, 1.0))
ALL = View(crop=Crop(32), randaugment=RandAugment(), color=Color(), gray=0.5, blur=0.5, solarize=0.5)
STILL = View(crop=WHOLE, flip=0.0)


def smooth(height: int = 32, width: int = 32) -> Image.Image:
    """An image with structure at many scales and colors."""
    return make_image(1, 8, 8).resize((width, height), Image.Resampling.BICUBIC)


def as_tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def test_a_seed_gives_one_view_and_another_seed_another():
    image = smooth(50, 70)
    views = [ALL(image, seed) for seed in range(20)]
    random.seed(5), torch.manual_seed(5), np.random.seed(5)
    assert all(torch.equal(ALL(image, seed), view) for seed, view in reversed(list(enumerate(views))))
    assert len({view.numpy().tobytes() for view in views}) == 20
    assert views[0].dtype == torch.uint8 and views[0].shape == (3, 32, 32)


def test_seeds_tell_order_and_places_apart_and_stay_the_same():
    numbers = [(1, 2), (2, 1), (12,), (1, 2, 0), (1, 20), (-1, 2)]
    assert len({derive_seed(*each) for each in numbers}) == len(numbers)
    assert derive_seed(np.int64(1), 2) == derive_seed(1, 2) == 6288156900839449082


def test_a_view_does_not_change_its_image():
    image = smooth()
    before = image.tobytes()
    for seed in range(20):
        ALL(image, seed)
    assert image.tobytes() == before


@pytest.mark.parametrize("size", [(400, 300), (90, 1000), (31, 30)])
def test_parts_have_the_area_and_the_ratio_of_the_law(size):
    crop, rng = Crop(8, (0.2, 0.5), (0.5, 2.0)), random.Random(0)
    boxes = np.array([crop.box(*size, rng) for _ in range(4000)])
    left, top, right, bottom = boxes.T
    assert (left >= 0).all() and (top >= 0).all() and (right <= size[0]).all() and (bottom <= size[1]).all()
    if size[0] == 90:  # hardly any fits: most are the largest central part
        central = Counter(map(tuple, boxes.tolist())).most_common(1)[0]
        assert central == ((0, 410, 90, 590), central[1]) and central[1] > 2000
        return
    wide, tall = right - left, bottom - top
    area, ratio = wide * tall / (size[0] * size[1]), np.log(wide / tall)
    assert area.mean() == pytest.approx(0.35, abs=0.01) and area.std() == pytest.approx(0.3 / math.sqrt(12), abs=0.01)
    assert ratio.mean() == pytest.approx(0, abs=0.03) and ratio.std() == pytest.approx(
        math.log(4) / math.sqrt(12), abs=0.03
    )
    assert (left / (size[0] - wide)).mean() == pytest.approx(0.5, abs=0.02)


def test_where_nothing_fits_the_largest_central_part_is_taken():
    assert Crop(8, (1.0, 1.0)).box(100, 10, random.Random(0)) == (43, 0, 56, 10)
    assert Crop(8, (1.0, 1.0)).box(10, 100, random.Random(0)) == (0, 43, 10, 56)
    assert Crop(8, (1.0, 1.0), (0.9, 1.1)).box(1, 1, random.Random(0)) == (0, 0, 1, 1)


def test_no_pixel_outside_the_part_is_seen():
    image = Image.new("RGB", (64, 64), "white")
    crop = Crop(16, (0.1, 0.3))
    image.paste("black", crop.box(64, 64, random.Random(3)))
    assert not np.asarray(crop(image, random.Random(3))).any()


def test_the_flip_of_a_flip_is_the_view_and_its_chance_is_kept():
    image = smooth()
    plain, flipped = STILL(image, 0), dataclasses.replace(STILL, flip=1.0)(image, 0)
    assert torch.equal(plain, as_tensor(image)) and torch.equal(flipped.flip(2), plain)
    half = dataclasses.replace(STILL, flip=0.5)
    assert 0.42 < np.mean([torch.equal(half(image, derive_seed(seed)), flipped) for seed in range(500)]) < 0.58


CHANGES = {"gray": 1.0, "blur": 1.0, "solarize": 1.0, "color": Color(probability=1.0)}
CHANGES |= {"randaugment": RandAugment(9, 0.5, 4, 1.0)}


@pytest.mark.parametrize("name", CHANGES)
def test_probability_one_always_changes_and_zero_never_does(name):
    image, change = smooth(), CHANGES[name]
    never = 0.0 if isinstance(change, float) else dataclasses.replace(change, probability=0.0)
    for seed in range(20):
        assert not torch.equal(dataclasses.replace(STILL, **{name: change})(image, seed), as_tensor(image))
        assert torch.equal(dataclasses.replace(STILL, **{name: never})(image, seed), as_tensor(image))


def test_changes_are_what_they_are_called():
    image = smooth()
    gray = dataclasses.replace(STILL, gray=1.0)(image, 0)
    assert torch.equal(gray[0], gray[1]) and torch.equal(gray[0], torch.from_numpy(np.array(image.convert("L"))))
    pixels, solarized = as_tensor(image), dataclasses.replace(STILL, solarize=1.0)(image, 0)
    assert torch.equal(solarized, torch.where(pixels < 128, pixels, 255 - pixels))
    blurred = dataclasses.replace(STILL, blur=1.0, blur_sigma=(2.0, 2.0))(image, 0).float()
    assert blurred.diff(dim=2).abs().mean() < 0.7 * pixels.float().diff(dim=2).abs().mean()
    assert blurred.mean() == pytest.approx(pixels.float().mean().item(), abs=1)


def test_colors_change_by_the_factors_of_the_law():
    flat = Image.new("RGB", (4, 4), (100, 100, 100))
    bright = [
        Color(0.4, 0, 0, 0, probability=1.0)(flat, random.Random(seed)).getpixel((0, 0))[0] for seed in range(2000)
    ]
    assert 60 <= min(bright) < 62 and 138 < max(bright) <= 140 and np.mean(bright) == pytest.approx(100, abs=2)
    red = Image.new("RGB", (4, 4), (255, 0, 0))
    turned = {Color(0, 0, 0, 0.5, probability=1.0)(red, random.Random(seed)).getpixel((0, 0)) for seed in range(200)}
    assert len(turned) > 100 and all(max(rgb) == 255 and min(rgb) == 0 for rgb in turned)
    assert Color(0, 0, 0, 0, probability=1.0)(smooth(), random.Random(0)).tobytes() == smooth().tobytes()


@pytest.mark.parametrize("name", sorted(set(OPERATIONS) - {"autocontrast", "equalize", "invert"}))
@pytest.mark.parametrize("sign", [1, -1])
def test_an_operation_of_level_zero_changes_little_and_grows(name, sign):
    image = smooth()
    before = as_tensor(image).float()
    change = [
        (as_tensor(OPERATIONS[name](RandAugment(), image, level, sign)).float() - before).abs().mean().item()
        for level in (0.0, 0.3, 0.9)
    ]
    assert change[0] <= (16 if name == "posterize" else 0) and change[0] <= change[1] <= change[2] and change[2] > 1


def test_operations_are_drawn_alike_and_half_of_them_are_made():
    image, made = smooth(), Counter()

    def counted(name: str):
        return lambda how, image, level, sign: made.update([name]) or image

    with pytest.MonkeyPatch.context() as patch:
        for name in OPERATIONS:
            patch.setitem(OPERATIONS, name, counted(name))
        for seed in range(3000):
            RandAugment()(image, random.Random(seed))
    assert len(made) == 15 and sum(made.values()) == pytest.approx(3000, abs=120)
    assert min(made.values()) > 140 and max(made.values()) < 260


def test_dino_has_two_large_views_and_small_ones():
    views = dino_views(size=32, local_size=16, num_local=3)
    image = smooth(60, 60)
    assert [tuple(view(image, seed).shape) for seed, view in enumerate(views)] == [(3, 32, 32)] * 2 + [(3, 16, 16)] * 3
    assert [(view.blur, view.solarize) for view in views] == [(1.0, 0.0), (0.1, 0.2)] + [(0.5, 0.0)] * 3


def test_normalized_views_are_what_the_encoder_sees(encoder: vv.Encoder):
    images = [make_image(i, 40, 50) for i in range(3)]
    plain = torch.stack([Plain(encoder.preprocess)(image, seed) for seed, image in enumerate(images)])
    assert torch.equal(normalize_views(plain, encoder.preprocess), encoder.preprocess(images))
    assert torch.equal(normalize_views(plain.to(torch.uint8), encoder.preprocess), encoder.preprocess(images))


def test_a_view_is_written_as_yaml(tmp_path):
    (tmp_path / "a.yaml").write_text(
        "views:\n- crop: {size: 96, scale: [0.05, 0.32]}\n  blur: 0.5\n  color: {hue: 0.2}\n- randaugment: {magnitude: 5}\n"
    )
    parser = jsonargparse.ArgumentParser()
    parser.add_argument("--config", action="config")
    parser.add_argument("--views", type=tuple[View, ...])
    views = parser.instantiate(parser.parse_args(["--config", str(tmp_path / "a.yaml")])).views
    small = View(crop=Crop(96, (0.05, 0.32)), blur=0.5, color=Color(hue=0.2))
    assert views == (small, View(randaugment=RandAugment(magnitude=5)))


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Crop(0), "size of Crop is 0: expected a positive number"),
        (lambda: Crop(8, (0.5, 1.2)), r"scale of Crop is \(0.5, 1.2\): expected"),
        (lambda: Crop(8, (0.5, 0.2)), r"scale of Crop is \(0.5, 0.2\): expected"),
        (lambda: Crop(8, ratio=(0, 1)), "ratio of Crop"),
        (lambda: Crop(8, resample="cubic"), "resample of Crop is 'cubic': expected one of nearest, lanczos"),  # type: ignore
        (lambda: View(flip=1.5), "flip of View is 1.5: expected a probability between 0 and 1"),
        (lambda: View(gray=float("nan")), "gray of View is nan"),
        (lambda: View(blur_sigma=(2.0, 0.1)), "blur_sigma of View"),
        (lambda: Color(probability=-0.1), "probability of Color"),
        (lambda: Color(hue=0.6), "hue between 0 and 0.5"),
        (lambda: RandAugment(11), "magnitude of RandAugment is 11: expected 0 to 10"),
        (lambda: RandAugment(resample="lanczos"), "resample of RandAugment is 'lanczos'"),
        (lambda: Erase(area=(0, 2)), "area of Erase"),
        (lambda: Mix(mixup=-1), "mixup and cutmix of Mix are -1 and 1.0"),
        (lambda: Mix(smoothing=2), "smoothing of Mix"),
    ],
)
def test_impossible_values_are_refused_in_one_sentence(make, sentence):
    with pytest.raises(ValueError, match=sentence) as raised:
        make()
    assert "\n" not in str(raised.value)


def test_erased_parts_are_rectangles_of_noise_with_the_area_of_the_law():
    pixels, seeds = torch.full((2000, 3, 32, 32), 7.0), [derive_seed(i) for i in range(2000)]
    erased = Erase(0.25, area=(0.1, 0.3))(pixels, seeds)
    gone = erased != 7
    assert torch.equal(gone[:, 0], gone[:, 1]) and (pixels == 7).all()
    rows, columns = gone[:, 0].any(2).sum(1), gone[:, 0].any(1).sum(1)
    assert torch.equal(rows * columns, gone[:, 0].sum((1, 2)))
    hit = rows > 0
    assert hit.float().mean().item() == pytest.approx(0.25, abs=0.03)
    assert (rows * columns)[hit].float().mean().item() / 1024 == pytest.approx(0.2, abs=0.01)
    assert erased[gone].mean().item() == pytest.approx(0, abs=0.03) and erased[gone].std().item() == pytest.approx(
        1, abs=0.03
    )


def test_what_is_erased_does_not_depend_on_the_batch():
    pixels, seeds = torch.zeros(8, 3, 16, 16), list(range(8))
    whole = Erase(1.0)(pixels, seeds)
    assert torch.equal(whole[5:6], Erase(1.0)(pixels[5:6], seeds[5:6]))
    assert torch.equal(Erase(0.0)(pixels, seeds), pixels)


@pytest.mark.parametrize("mix", [Mix(cutmix=0.0), Mix(mixup=0.0), Mix()], ids=["mixup", "cutmix", "both"])
def test_targets_sum_to_one_and_say_how_much_of_each_image_there_is(mix):
    labels = torch.tensor([0, 1, 2, 3])
    pixels = torch.eye(4)[:, :, None, None].expand(4, 4, 16, 16)  # channel c is image c
    shares = []
    for seed in range(200):
        mixed, targets = mix(pixels, labels, 4, seed=seed)
        assert torch.allclose(targets.sum(1), torch.ones(4)) and targets.dtype == torch.float32
        assert torch.allclose(mixed.mean((2, 3)) * 0.9 + 0.1 / 4, targets, atol=1e-6)
        shares.append(mixed[0, 0].mean().item())
        again = mix(pixels, labels, 4, seed=seed)
        assert torch.equal(again[0], mixed) and torch.equal(again[1], targets)
    assert len(set(shares)) > 50 and min(shares) < 0.3 and max(shares) > 0.8


def test_cutmix_takes_a_window_and_mixup_every_pixel():
    pixels = torch.stack([torch.zeros(3, 16, 16), torch.ones(3, 16, 16)])
    labels = torch.tensor([0, 1])
    for seed in range(30):
        cut, _ = Mix(mixup=0.0)(pixels, labels, 2, seed=seed)
        assert ((cut == 0) | (cut == 1)).all()
        window = cut[0, 0] == 1
        assert window.any(1).sum() * window.any(0).sum() == window.sum()
        blend, _ = Mix(cutmix=0.0)(pixels, labels, 2, seed=seed)
        assert (blend[0] == blend[0, 0, 0, 0]).all()


def test_no_mixing_leaves_pixels_and_smooths_labels():
    pixels, labels = torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 0])
    mixed, targets = Mix(probability=0.0)(pixels, labels, 3, seed=0)
    assert torch.equal(mixed, pixels)
    logits = torch.randn(4, 3)
    ours = torch.nn.functional.cross_entropy(logits, targets)
    torch.testing.assert_close(ours, torch.nn.functional.cross_entropy(logits, labels, label_smoothing=0.1))
