"""Probes against loops, and the laws that a judge must keep: certain where it is certain, chance where there is nothing."""

import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from support.golden import source
from support.models import make_image

import vlm_vision as vv
from recipes import probe as recipe
from vlm_vision.new_models import new_encoder
from vlm_vision.preprocess.tokenizer import TextTokenizer
from vlm_vision.probe.attentive import attentive_probe
from vlm_vision.probe.controls import most_frequent, pixel_features, random_twin
from vlm_vision.probe.correspondence import CropBox, correspondence, image_correspondence, random_crop_box
from vlm_vision.probe.features import (
    block_features,
    image_embeddings,
    image_features,
    patch_features,
    text_embeddings,
)
from vlm_vision.probe.knn import knn
from vlm_vision.probe.labeled import LabeledFeatures, held_out
from vlm_vision.probe.linear import linear_probe, logistic_probe
from vlm_vision.probe.retrieval import ranking, retrieval
from vlm_vision.probe.zero_shot import class_embeddings, zero_shot


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def clusters(count: int, *shape: int, classes: int = 4, spread: float = 0.1, seed: int = 0) -> LabeledFeatures:
    """Points around one center for each class, the same centers for every seed."""
    labels = torch.arange(count) % classes
    centers = drawn(classes, *shape, seed=99)
    return LabeledFeatures(centers[labels] + spread * drawn(count, *shape, seed=seed), labels)


def noise(count: int, *shape: int, classes: int = 4, seed: int = 0) -> LabeledFeatures:
    """Labels that have nothing to do with the features."""
    generator = torch.Generator().manual_seed(1000 + seed)
    return LabeledFeatures(drawn(count, *shape, seed=seed), torch.randint(classes, (count,), generator=generator))


# features


def test_a_vector_does_not_depend_on_its_batch_and_modes_are_put_back(encoder):
    images = [make_image(i) for i in range(5)]
    encoder.train()
    encoder.model.blocks[0].eval()
    one, other = (image_features(encoder, images, batch_size=size) for size in (5, 2))
    assert one.shape == (5, 64) and not one.requires_grad
    torch.testing.assert_close(one, other)
    assert encoder.training and not encoder.model.blocks[0].training


def test_features_are_those_of_the_encoder_at_the_tap(encoder):
    images, tap = [make_image(i) for i in range(3)], vv.Tap(1, norm=False)
    out = encoder(encoder.preprocess(images), tap=tap)
    for kind, wanted in {"cls": out.cls_token, "mean": out.patch_tokens.mean(dim=1)}.items():
        torch.testing.assert_close(image_features(encoder, images, kind=kind, tap=tap), wanted)
    torch.testing.assert_close(patch_features(encoder, images, tap=tap), out.patch_tokens)


def test_block_features_are_the_class_tokens_of_the_last_blocks_and_the_mean_of_the_last(encoder):
    images = [make_image(i) for i in range(3)]
    found = block_features(encoder, images, blocks=2, batch_size=2)
    for i, tap in enumerate((vv.Tap(-2), vv.Tap(-1))):
        torch.testing.assert_close(found[:, i], image_features(encoder, images, kind="cls", tap=tap))
    torch.testing.assert_close(found[:, 2], image_features(encoder, images, kind="mean"))


def test_images_of_any_size_go_through_a_tower_that_takes_them():
    encoder = vv.load(source("hf_siglip2_naflex"))
    images = [make_image(0), make_image(1, 30, 60), make_image(2, 64, 20)]
    found = image_features(encoder, images, kind="pooled", batch_size=2)
    for one, row in zip(images, found, strict=True):
        torch.testing.assert_close(image_features(encoder, [one], kind="pooled")[0], row)
    with pytest.raises(ValueError, match="load it with image_size"):
        patch_features(encoder, images)


def test_a_vector_that_an_encoder_lacks_is_refused(encoder):
    for kind, tap in (("pooled", vv.Tap(0)), ("sum", None)):
        with pytest.raises(ValueError, match="pooled"):
            image_features(encoder, [make_image()], kind=kind, tap=tap)
    fields = dict(image_size=16, patch_size=8, embed_dim=16, depth=1, num_heads=2, mlp_dim=16, class_token=False)
    with pytest.raises(ValueError, match="no CLS token: choose another kind than cls"):
        image_features(new_encoder(fields | {"pool": "none"}), [make_image()], kind="cls")
    with pytest.raises(ValueError, match="nothing to encode"):
        image_features(encoder, [])


def test_a_random_twin_is_another_encoder_of_the_same_kind_and_a_function_of_its_seed(encoder):
    state = torch.random.get_rng_state()
    twin, again, other = (random_twin(encoder, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert twin.to_dict() == encoder.to_dict() and not twin.training
    name = "model.patch_embed.weight"
    assert torch.equal(twin.state_dict()[name], again.state_dict()[name])
    assert not torch.equal(twin.state_dict()[name], other.state_dict()[name])
    assert not torch.equal(twin.state_dict()[name], encoder.state_dict()[name])


def test_plain_pixels_are_the_image():
    red = Image.new("RGB", (10, 20), (255, 0, 0))
    torch.testing.assert_close(pixel_features([red], side=2), torch.tensor([[1.0] * 4 + [-1.0] * 8]))


# labels


def test_held_out_rows_and_the_rest_are_all_rows_once():
    data = LabeledFeatures(torch.arange(10)[:, None], torch.arange(10))
    rest, part = held_out(data, 0.3, seed=4)
    assert len(part) == 3 and sorted([*rest.labels.tolist(), *part.labels.tolist()]) == list(range(10))
    assert torch.equal(held_out(data, 0.3, seed=4)[1].labels, part.labels)
    assert torch.equal(part.features[:, 0], part.labels)
    with pytest.raises(ValueError, match="expected some images on both sides"):
        held_out(data, 0.01, seed=0)
    with pytest.raises(ValueError, match="10 features and 3 labels"):
        LabeledFeatures(data.features, torch.arange(3))


def test_the_most_frequent_class_is_that_of_the_training_data():
    labels = torch.tensor([2, 2, 1]), torch.tensor([1, 1, 2, 0])
    assert most_frequent(*(LabeledFeatures(torch.zeros(len(one), 1), one) for one in labels)) == 0.25


# nearest neighbors


def knn_by_loop(train: LabeledFeatures, test: LabeledFeatures, k: int, temperature: float) -> float:
    right = 0
    for row, label in zip(test.features, test.labels.tolist(), strict=True):
        similar = [F.cosine_similarity(row, other, dim=0).item() for other in train.features]
        votes: dict[int, float] = {}
        for i in sorted(range(len(similar)), key=lambda i: -similar[i])[:k]:
            vote = math.exp(similar[i] / temperature)
            votes[int(train.labels[i])] = votes.get(int(train.labels[i]), 0.0) + vote
        right += max(votes, key=votes.__getitem__) == label
    return right / len(test)


def test_neighbors_vote_as_in_a_loop():
    train, test = (clusters(n, 6, spread=1.5, seed=s) for n, s in ((60, 0), (40, 1)))
    found = knn(train, test, ks=(1, 5, 20, 60, 200)).by_k
    assert found == {k: knn_by_loop(train, test, k, 0.07) for k in (1, 5, 20, 60)}
    assert len(set(found.values())) > 1


@pytest.mark.parametrize("chunk_size", [1, 7, 59, 4096])
def test_neighbors_do_not_depend_on_chunks_or_the_order_of_the_training_images(chunk_size):
    train, test = (clusters(n, 6, spread=1.5, seed=s) for n, s in ((60, 0), (40, 1)))
    shuffled = train[torch.randperm(60)]
    assert knn(shuffled, test, ks=(3, 20), chunk_size=chunk_size) == knn(train, test, ks=(3, 20))


def test_features_that_have_no_neighbors_are_refused():
    with pytest.raises(ValueError, match="no number of neighbors is at most 5"):
        knn(clusters(5, 3), clusters(5, 3))
    with pytest.raises(ValueError, match="one width"):
        knn(clusters(5, 3), clusters(5, 4), ks=(1,))


# learned probes


def learned(name: str, kind, *, seed: int = 0):
    """A probe of the name, on three draws of a kind of data."""
    shape = {"linear": (5, 6), "logistic": (12,), "attentive": (4, 16)}[name]
    train, validation, test = (kind(count, *shape, seed=s) for count, s in ((200, 0), (80, 1), (200, 2)))
    if name == "linear":
        return linear_probe(train, validation, test, rates=(1e-1, 1.0), batch_size=50, epochs=5, seed=seed)
    if name == "logistic":
        return logistic_probe(train, test, strengths=(1e-2, 1.0), seed=seed)
    return attentive_probe(train, test, rates=(1e-2,), epochs=5, batch_size=50, num_heads=4, seed=seed)


@pytest.mark.parametrize("name", ["linear", "logistic", "attentive"])
def test_a_learned_probe_is_right_where_classes_lie_apart_and_at_chance_on_labels_of_noise(name):
    assert learned(name, clusters).accuracy == 1.0
    assert abs(learned(name, noise).accuracy - 0.25) < 0.11  # 3.6 deviations of 200 answers


@pytest.mark.parametrize("name", ["linear", "logistic", "attentive"])
def test_a_learned_probe_is_a_function_of_its_seed(name):
    state = torch.random.get_rng_state()
    assert learned(name, noise, seed=3) == learned(name, noise, seed=3)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_the_best_classifier_reads_what_tells_the_classes():
    """The third block from the end alone knows, or the patch mean alone."""
    for where, blocks, average in ((1, 4, None), (4, None, True)):
        train, validation, test = (noise(200, 5, 6, seed=s) for s in range(3))
        for data in (train, validation, test):
            data.features[:, where] = 3 * clusters(200, 6).features[data.labels]
        found = linear_probe(train, validation, test, rates=(1e-4, 1e-1), batch_size=50, epochs=8)
        assert found.accuracy > 0.95 and found.chosen.rate == 0.1
        assert blocks in (None, found.chosen.blocks) and average in (None, found.chosen.average)
    with pytest.raises(ValueError, match="with at least 4 blocks: use block_features"):
        linear_probe(*(clusters(8, 4, 6) for _ in range(3)))


def test_logistic_regression_is_at_its_least():
    """The gradient of scikit-learn's objective, C * sum of cross entropies + |W|^2 / 2, is zero."""
    from vlm_vision.probe.linear import _fitted, _zeros

    data = clusters(60, 5, spread=2.0)
    weights = _fitted(data, _zeros(data, 4), 0.5, 500).requires_grad_()
    logits = data.features @ weights[:, :-1].T + weights[:, -1]
    loss = 0.5 * F.cross_entropy(logits, data.labels, reduction="sum") + weights[:, :-1].square().sum() / 2
    (gradient,) = torch.autograd.grad(loss, weights)
    assert gradient.abs().max() < 1e-2 * weights.abs().max()


def test_logistic_regression_does_not_depend_on_the_scale_of_a_channel():
    train, test = (clusters(200, 6, spread=2.0, seed=s) for s in range(2))
    scale, shift = torch.logspace(-3, 3, 6), torch.linspace(-5, 5, 6)
    scaled = (LabeledFeatures((one.features + shift) * scale, one.labels) for one in (train, test))
    again, wanted = (logistic_probe(*data, strengths=(1e-2, 1.0)) for data in (scaled, (train, test)))
    assert abs(again.accuracy - wanted.accuracy) <= 0.02 and wanted.accuracy > 0.4


def test_an_attentive_probe_finds_the_one_patch_that_tells():
    """The class stands in a patch at a random place, which the mean hides among louder ones."""

    def data(seed: int) -> LabeledFeatures:
        told, found = clusters(300, 16, spread=0.0), noise(300, 12, 16, seed=seed)
        found.features[torch.arange(300), torch.randint(12, (300,))] = 3 * told.features[found.labels]
        return found

    train, test = data(1), data(2)
    assert attentive_probe(train, test, rates=(1e-2,), epochs=20, batch_size=64, num_heads=4).accuracy > 0.9
    with pytest.raises(ValueError, match="a multiple of num_heads 3"):
        attentive_probe(train, test, num_heads=3)


# images and texts


@pytest.fixture(scope="module")
def pair():
    letters = TextTokenizer(lambda texts: [[ord(c) % 90 for c in one] for one in texts], context_length=16, end=[1], pad_id=1)  # fmt: skip
    return vv.load_pair(source("hf_clip_quickgelu"), tokenizer=letters)


def test_zero_shot_by_one_template_is_the_most_probable_text_of_the_pair(pair):
    inputs, names = [make_image(i) for i in range(12)], ["a cat", "dog", "sea", "two", "house", "of", "x y"]
    answers = pair.probabilities(inputs, [f"a {name}." for name in names]).argmax(dim=1)
    images, classes = image_embeddings(pair, inputs, batch_size=5), class_embeddings(pair, names, ("a {}.",))
    assert zero_shot(LabeledFeatures(images, answers), classes).top1 == 1.0
    assert zero_shot(LabeledFeatures(images, (answers + 1) % 7), classes).top1 == 0.0


def test_zero_shot_over_templates_is_the_normalized_mean_and_five_of_seven_are_counted(pair):
    names, templates = ["cat", "dog", "sea", "two", "house", "of", "x y"], ("a {}.", "{} there", "no {}")
    found = class_embeddings(pair, names, templates, batch_size=4)
    for name, row in zip(names, found, strict=True):
        mean = text_embeddings(pair, [template.format(name) for template in templates]).mean(dim=0)
        torch.testing.assert_close(row, mean / mean.norm())
    images = image_embeddings(pair, [make_image(i) for i in range(6)])
    for place, label in enumerate((images @ found.T).argsort(dim=1, descending=True).T):
        report = zero_shot(LabeledFeatures(images, label), found)
        assert (report.top1, report.top5) == (float(place == 0), float(place < 5))
    with pytest.raises(ValueError, match="has no {}"):
        class_embeddings(pair, names, ("a photo",))
    with pytest.raises(ValueError, match="a description for each class"):
        zero_shot(LabeledFeatures(images, torch.full((6,), 7)), found)


def ranks_by_loop(queries, items, names, of_items) -> list[int]:
    ranks = []
    for query, name in zip(queries, names.tolist(), strict=True):
        similar = [(query * item).sum().item() for item in items]
        best = max(s for s, own in zip(similar, of_items.tolist(), strict=True) if own == name)
        ranks.append(1 + sum(s >= best for s, own in zip(similar, of_items.tolist(), strict=True) if own != name))
    return ranks


@pytest.mark.parametrize("chunk_size", [3, 1024])
def test_ranks_are_those_of_a_loop_with_several_captions_and_ties(chunk_size):
    """Small whole numbers, so that many inner products are equal, exactly."""
    generator = torch.Generator().manual_seed(0)
    images, texts = (torch.randint(-2, 3, (n, 3), generator=generator).float() for n in (10, 25))
    owner = torch.cat([torch.arange(10), torch.randint(10, (15,), generator=generator)])
    for query, items, names, of_items in (
        (images, texts, torch.arange(10), owner),
        (texts, images, owner, torch.arange(10)),
    ):
        ranks = ranks_by_loop(query, items, names, of_items)
        found = ranking(query, items, names, of_items, chunk_size=chunk_size)
        assert found.recall == {k: sum(rank <= k for rank in ranks) / len(ranks) for k in (1, 5, 10)}
        assert found.median_rank == sorted(ranks)[(len(ranks) - 1) // 2]
    both = retrieval(images, texts, owner)
    assert both.text_to_image == found and both.image_to_text.recall != found.recall


def test_equal_vectors_find_nothing_and_equal_pairs_find_everything():
    same = torch.ones(12, 4)
    assert retrieval(same, same).image_to_text.recall == {1: 0.0, 5: 0.0, 10: 0.0}
    unlike = F.normalize(drawn(12, 8), dim=-1)
    assert retrieval(unlike, unlike).text_to_image.recall[1] == 1.0


def test_chance_is_what_random_vectors_reach():
    owner = torch.arange(60) % 20
    runs = [retrieval(drawn(20, 8, seed=i), drawn(60, 8, seed=100 + i), owner).image_to_text for i in range(100)]
    for k, chance in runs[0].chance.items():
        assert abs(sum(run.recall[k] for run in runs) / len(runs) - chance) < 0.04
    with pytest.raises(ValueError, match="query 3 of name 3 has no right item"):
        retrieval(drawn(4, 8), drawn(3, 8))


# places


def test_features_of_the_place_alone_correspond_fully_and_random_ones_at_chance():
    generator = torch.Generator().manual_seed(0)
    whole, grid, random = CropBox(0, 0, 90, 120), (9, 12), []
    for i in range(20):
        part = random_crop_box(90, 120, generator)
        assert 45 <= part.height <= 81 and part.top + part.height <= 90 and part.left + part.width <= 120
        places = whole.places(part.centers(grid), grid)
        at, other = (view.centers(grid) / 120 for view in (part, whole))
        of_place = [torch.cat([one.cos(), one.sin()], dim=1) for one in (at, other)]
        assert correspondence(*of_place, places, grid).share == 1.0
        random.append(correspondence(drawn(108, 64, seed=i), drawn(108, 64, seed=50 + i), places, grid))
    chance = sum(one.chance for one in random) / 20
    assert 0.02 < chance < 4 / 108 and abs(sum(one.share for one in random) / 20 - chance) < 0.015


def test_a_view_puts_a_point_where_the_image_shows_it():
    """One bright pixel, looked for in the cut image."""
    dark, bright = Image.new("L", (40, 30)), (11, 13)  # (row, column)
    dark.putpixel(bright[::-1], 255)
    for flip in (False, True):
        part = CropBox(4, 6, 20, 25, flip)
        pixels = torch.from_numpy(np.array(part.cut(dark)))
        place = part.places(torch.tensor([bright]) + 0.5, (20, 25))  # a patch for each pixel
        assert place.round().int().tolist() == (pixels == 255).nonzero().tolist()
        torch.testing.assert_close(part.places(part.centers((4, 5)), (4, 5))[7], torch.tensor([1.0, 2.0]))


def test_places_outside_the_other_view_are_left_out():
    grid, left, right = (4, 4), CropBox(0, 0, 40, 40), CropBox(0, 20, 40, 40)
    found = correspondence(drawn(16, 8), drawn(16, 8), right.places(left.centers(grid), grid), grid)
    assert found.patches == 8
    with pytest.raises(ValueError, match="no place in common"):
        correspondence(drawn(16, 8), drawn(16, 8), CropBox(0, 50, 40, 40).places(left.centers(grid), grid), grid)
    with pytest.raises(ValueError, match="a place for each"):
        correspondence(drawn(15, 8), drawn(16, 8), right.places(left.centers(grid), grid), grid)


def test_an_encoder_that_keeps_colors_finds_places_that_have_one():
    """A smooth image whose color tells the place; patch embedding alone sees it, whatever the encoder crops elsewhere."""
    encoder = new_encoder(dict(image_size=32, patch_size=4, embed_dim=64, depth=1, num_heads=4, mlp_dim=16))
    with torch.no_grad():
        for block in encoder.model.parameters():
            block.zero_()
        encoder.model.patch_embed.weight[:3].copy_(torch.eye(3)[:, :, None, None].expand(3, 3, 4, 4))
    rows, columns = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    image = Image.fromarray(torch.stack([4 * rows, 4 * columns, torch.full_like(rows, 255)], dim=-1).byte().numpy())
    tap = vv.Tap(0, norm=False)
    found = image_correspondence(encoder, [image] * 8, tap=tap)
    assert found.share > 0.8 > 3 * found.chance and found.patches == 8 * 64
    assert found == image_correspondence(encoder, [image] * 8, tap=tap)
    assert found != image_correspondence(encoder, [image] * 8, tap=tap, seed=1)


# the recipe


@pytest.fixture
def colors(tmp_path):
    """Images of three colors, read by their class folders, and a tiny encoder."""
    for split, count in (("train", 15), ("test", 6)):
        for i in range(count):
            name, color = list({"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220)}.items())[i % 3]
            file = tmp_path / "data" / split / name / f"{i}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (20 + i, 24), tuple(value + i for value in color)).save(file)
    fields = dict(image_size=16, patch_size=8, embed_dim=16, depth=4, num_heads=2, mlp_dim=32, position_prefix=1)
    new_encoder(fields).save_pretrained(tmp_path / "encoder")
    return ["--encoder", str(tmp_path / "encoder"), "--out", str(tmp_path / "out")]


def test_the_recipe_judges_an_encoder_beside_its_controls(colors, tmp_path, capsys):
    data = ["--train", str(tmp_path / "data"), "--test", str(tmp_path / "data")]
    probes = ["--probes", "[knn, logistic, linear, attentive, correspondence]", "--neighbors", "[1, 5]"]
    metrics = recipe.main(recipe.parse([*colors, *data, *probes]))
    assert (metrics["train"], metrics["test"], metrics["classes"]) == (15, 6, 3)
    found = metrics["found"]
    assert set(found) == {"encoder", "random weights", "pixels", "most frequent class"}
    assert found["pixels"]["knn 1"] == found["pixels"]["logistic"] == 1.0
    assert found["most frequent class"]["knn"] == pytest.approx(1 / 3)
    assert {"linear", "attentive", "correspondence by chance"} <= set(found["encoder"]) == set(found["random weights"])
    assert json.loads((tmp_path / "out/metrics.json").read_text()) == metrics
    shown = capsys.readouterr().out
    assert all(word in shown for word in (*found, "100.0%", "33.3%", "correspondence"))
    again = recipe.main(recipe.parse(["--config", str(tmp_path / "out/config.yaml")]))
    assert again["found"] == found


def test_images_without_labels_are_refused(colors, tmp_path):
    (tmp_path / "bare.csv").write_text("picture\n" + "data/train/red/0.png\n")
    with pytest.raises(ValueError, match="has no label: expected one for each image"):
        recipe.main(
            recipe.parse([*colors, "--train", str(tmp_path / "bare.csv"), "--test", str(tmp_path / "bare.csv")])
        )
