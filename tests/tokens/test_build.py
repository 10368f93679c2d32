"""The store that recipes make of their own images, and what is read from a store in place of a tower's output."""

import io
import pickle
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from support.models import make_image
from support.shards import write_tar

import vlm_vision as vv
from vlm_vision.data.conversations.hf_dataset import hf_dataset
from vlm_vision.data.conversations.webdataset import webdataset
from vlm_vision.data.stored_image import ImageSource
from vlm_vision.new_models import new_encoder
from vlm_vision.tokens import shard
from vlm_vision.tokens.extraction.extract import extract
from vlm_vision.tokens.sources.choose import open_sources
from vlm_vision.tokens.training.build import build_features, fingerprint, has_one_tap
from vlm_vision.tokens.training.features import StoredFeatures
from vlm_vision.tokens.training.keys import find_keys
from vlm_vision.tokens.training.match import check_weights, matching_store
from vlm_vision.tokens.wanted import Wanted


@pytest.fixture
def files(tmp_path) -> list[str]:
    paths = [str(tmp_path / "images" / f"{i}.png") for i in range(5)]
    (tmp_path / "images").mkdir()
    for i, path in enumerate(paths):
        make_image(i).save(path)
    return paths


def encoded(seed: int) -> bytes:
    file = io.BytesIO()
    make_image(seed).save(file, "PNG")
    return file.getvalue()


def in_shard(folder: Path, count: int = 4) -> list[ImageSource]:
    members = {f"{i}.png": encoded(i) for i in range(count)} | {f"{i}.txt": b"words" for i in range(count)}
    return [one.images[0] for one in webdataset(write_tar(folder / "x.tar", members))]


def in_data_set(folder: Path) -> list[ImageSource]:
    rows = {
        "image": [{"bytes": encoded(i), "path": None} for i in range(4)],
        "question": ["q"] * 4,
        "answer": ["a"] * 4,
    }
    features = datasets.Features(
        {"image": datasets.Image(), "question": datasets.Value("string"), "answer": datasets.Value("string")}
    )
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(folder / "data"))
    return [one.images[0] for one in hf_dataset(str(folder / "data"))]


FORMS = {"shard": in_shard, "data set": in_data_set}


@torch.no_grad()
def test_stored_tokens_are_the_encoders(encoder, files, tmp_path):
    features = build_features(tmp_path / "made", encoder, [*files, files[0]], batch_size=2, dtype="float32")
    chosen = [files[3], files[0], files[3]]
    torch.testing.assert_close(features[chosen], encoder(encoder.preprocess(chosen)).patch_tokens, rtol=0, atol=1e-5)
    assert len(features.store) == 5 and features.store[0].cls_token is None


@pytest.mark.parametrize("fused", [False, True])
@torch.no_grad()
def test_several_blocks_lie_in_the_channels_as_the_encoder_puts_them(encoder, files, tmp_path, fused):
    encoder.tap = vv.Tap(-1, False, more=(0,))
    if fused:
        small = dict(image_size=32, patch_size=8, embed_dim=16, depth=2, num_heads=2, mlp_dim=32)
        encoder = vv.FusedEncoder([encoder, new_encoder(small, tap=vv.Tap(-1, False, more=(0,)))]).eval()
    features = build_features(tmp_path / "made", encoder, files, dtype="float32")
    wanted = encoder(encoder.preprocess(files)).patch_tokens
    torch.testing.assert_close(features[files], wanted, rtol=0, atol=1e-5)
    assert has_one_tap(encoder)
    if fused:
        encoder.towers[1].tap = vv.Tap(0)
        assert not has_one_tap(encoder)


def test_tokens_are_computed_once_and_again_when_anything_changes_or_is_gone(encoder, files, tmp_path, monkeypatch):
    before = fingerprint(encoder, files)
    build_features(tmp_path / "made", encoder, files)
    monkeypatch.setattr(vv.Encoder, "forward", lambda *a, **k: pytest.fail("encoded again"))
    build_features(tmp_path / "made", encoder, files)
    monkeypatch.undo()
    assert len(list((tmp_path / "made").iterdir())) == 1
    encoder.tap = vv.Tap(-2)
    changed = {before, fingerprint(encoder, files)}
    with torch.no_grad():
        encoder.model.norm.weight[0] += 1
    changed.add(fingerprint(encoder, files))
    encoder.preprocess = encoder.preprocess.at(40, 40)
    changed.add(fingerprint(encoder, files))
    make_image(9).save(files[0])
    changed.add(fingerprint(encoder, files))
    assert len(changed) == 5


def test_a_build_that_is_killed_resumes(encoder, files, tmp_path, monkeypatch):
    take = shard.ShardWriter.finish
    monkeypatch.setattr("vlm_vision.tokens.extraction.opening.MOST_IMAGES", 2)

    def dies(self, about):
        if self.number == 1:
            raise KeyboardInterrupt
        take(self, about)

    monkeypatch.setattr(shard.ShardWriter, "finish", dies)
    with pytest.raises(KeyboardInterrupt):
        build_features(tmp_path / "made", encoder, files)
    monkeypatch.undo()
    seen = []
    pixels = vv.Preprocess.each
    monkeypatch.setattr(vv.Preprocess, "each", lambda self, image: seen.append(str(image)) or pixels(self, image))
    features = build_features(tmp_path / "made", encoder, files)
    assert features[files].shape == (5, 16, 32) and set(seen) == set(files[2:])


def test_tokens_too_large_for_their_type_are_refused(encoder, files, tmp_path):
    with torch.no_grad():
        encoder.model.norm.weight.mul_(1e6)
    with pytest.raises(ValueError, match="0.png: patch_tokens.-1 is not finite in float16: store it in float32"):
        build_features(tmp_path / "made", encoder, files)
    assert list((tmp_path / "made").iterdir()) == []
    assert build_features(tmp_path / "made", encoder, files, dtype="float32")[files].isfinite().all()


def test_an_image_that_is_damaged_or_missing_stops_the_build(encoder, files, tmp_path):
    Path(files[4]).write_bytes(b"no image")
    with pytest.raises(ValueError, match="4.png' is not an image"):
        build_features(tmp_path / "made", encoder, files, batch_size=2)
    assert list((tmp_path / "made").iterdir()) == []
    Path(files[4]).unlink()
    with pytest.raises(ValueError, match=r"there is no image .*4.png"):
        build_features(tmp_path / "made", encoder, files)


@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_tokens_of_stored_images_are_those_of_their_files(encoder, files, tmp_path, form):
    stored = FORMS[form](tmp_path)
    features = build_features(tmp_path / "made", encoder, stored, batch_size=4, dtype="float32")
    wanted = encoder(encoder.preprocess(files[3::-1])).patch_tokens
    torch.testing.assert_close(features[stored[::-1]], wanted, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="has no tokens of the image"):
        features[files[:1]]
    sent = pickle.dumps(features)
    assert len(sent) < 1000 and torch.equal(pickle.loads(sent)[stored], features[stored])


def test_tokens_are_made_again_when_a_shard_changes(encoder, tmp_path):
    before = fingerprint(encoder, in_shard(tmp_path))
    assert fingerprint(encoder, in_shard(tmp_path, 5)[:4]) != before


# A store of the user


def made(encoder, tmp_path, source: str, **wanted) -> vv.TokenStore:
    extract(open_sources([source]), encoder, tmp_path / "store", wanted=Wanted(**wanted))
    return vv.TokenStore(tmp_path / "store")


@pytest.mark.parametrize("form", ["folder", "pattern", *FORMS])
@torch.no_grad()
def test_images_are_found_by_what_a_source_calls_them(encoder, files, tmp_path, form):
    images: list[ImageSource] = FORMS[form](tmp_path) if form in FORMS else list(files[:4])
    sources = {"folder": "images", "pattern": "*/*.png", "shard": "x.tar", "data set": "data"}
    store = made(encoder, tmp_path, str(tmp_path / sources[form]))
    keys = find_keys(store, images, root=str(tmp_path) if form == "pattern" else "")
    names = {"folder": "1.png", "pattern": "images/1.png", "shard": "x.tar/1.png", "data set": "1"}
    assert keys[str(images[1])] == names[form] and len(keys) == 4
    features = StoredFeatures(store, encoder, keys)
    wanted = encoder(encoder.preprocess(files[:4]))
    torch.testing.assert_close(features[images], wanted.patch_tokens, rtol=0, atol=1e-5)
    (out,) = features.outputs(images[2:3])
    torch.testing.assert_close(out.pooled, wanted.pooled[2:3], rtol=0, atol=1e-5)
    torch.testing.assert_close(out.cls_token, wanted.cls_token[2:3], rtol=0, atol=1e-5)
    assert out.grid == wanted.grid


def test_the_longest_end_of_a_path_is_taken_with_a_warning(encoder, tmp_path, caplog):
    for name in ("a/b/1.png", "b/1.png", "1.png"):
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        make_image(len(name)).save(tmp_path / "images" / name)
    store = made(encoder, tmp_path, str(tmp_path / "images"))
    found = find_keys(store, ["/x/a/b/1.png", "/y/b/1.png", "1.png", "/x/a/b/1.png"])
    assert found == {"/x/a/b/1.png": "a/b/1.png", "/y/b/1.png": "b/1.png"}
    assert "by the ends of their paths (/x/a/b/1.png takes the tokens of 'a/b/1.png')" in caplog.text
    with pytest.raises(ValueError, match="the images /x/c/1.png and /y/c/1.png would both take the key '1.png'"):
        find_keys(store, ["/x/c/1.png", "/y/c/1.png"])
    with pytest.raises(ValueError, match="has no tokens of the image /x/2.png; its keys are like '1.png'"):
        find_keys(store, ["/x/2.png"])


@pytest.mark.parametrize("source", ["images", "images/*.png", "list.txt"])
def test_images_of_the_source_of_a_store_are_found_without_a_warning(encoder, files, tmp_path, caplog, source):
    (tmp_path / "list.txt").write_text("".join(f"images/{Path(file).name}\n" for file in files))
    place = str(tmp_path / source)
    extract(open_sources([place]), encoder, tmp_path / "store", described={"sources": [place], "options": {}})
    assert len(find_keys(vv.TokenStore(tmp_path / "store"), files)) == len(files) and not caplog.text


def test_a_bad_image_of_the_store_is_named_with_its_reason(encoder, files, tmp_path):
    Path(files[2]).write_bytes(b"no image")
    store = made(encoder, tmp_path, str(tmp_path / "images"))
    with pytest.raises(ValueError, match=r"2.png, which could not be read \(.*is not an image.*replace the image"):
        find_keys(store, files)


CHANGES = {
    "architecture": (dict(depth=2), {}, "another encoder: encoder architecture depth is 3 in the store and 2 here"),
    "size": (dict(size=40), {}, "encoder preprocess .* is .* in the store and .* here"),
    "layer": (dict(tap=vv.Tap(-2)), {}, r"holds the layers -1 and this run reads -2 \(tap layer\)"),
    "norm": (dict(tap=vv.Tap(-1, False)), {}, r"tokens with the final norm and this run reads them without it"),
    "pool": ({}, dict(pool=2), "pool is 2 in .*store and 1 in the encoder"),
    "parts": ({}, dict(parts=("cls_token",)), "store has no patch_tokens, it has cls_token"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_store_of_another_encoder_is_refused_with_the_difference(encoder, files, tmp_path, name):
    change, wanted, says = CHANGES[name]
    made(encoder, tmp_path, str(tmp_path / "images"), **wanted)
    fields = dict(image_size=32, patch_size=8, embed_dim=32, depth=3, num_heads=4, mlp_dim=64, position_prefix=1)
    other = new_encoder(fields | {key: value for key, value in change.items() if key == "depth"})
    other.tap = change.get("tap", vv.Tap())
    if "size" in change:
        other.preprocess = other.preprocess.at(40, 40)
    with pytest.raises(ValueError, match=says):
        matching_store(tmp_path / "store", other)


def test_a_layer_has_two_names_and_weights_are_compared(encoder, files, tmp_path):
    made(encoder, tmp_path, str(tmp_path / "images"), layers=(2, 0))
    store = matching_store(tmp_path / "store", encoder)
    check_weights(store, encoder, "here")
    assert StoredFeatures(store, encoder, tap=vv.Tap(-3)).layers == (0,)
    with torch.no_grad():
        encoder.model.norm.weight[0] += 1
    with pytest.raises(ValueError, match=r"the encoder's weights \(fingerprint\) are .* in .*store and .* in here"):
        check_weights(store, encoder, "here")


def test_a_half_written_store_is_refused(encoder, files, tmp_path, monkeypatch):
    monkeypatch.setattr(vv.Preprocess, "each", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        made(encoder, tmp_path, str(tmp_path / "images"), shard_images=2)
    with pytest.raises(ValueError, match="store is half written: run the command that makes it again"):
        matching_store(tmp_path / "store", encoder)


def test_numbers_of_every_format_are_read(encoder, files, tmp_path):
    store = made(encoder, tmp_path, str(tmp_path / "images"), dtype="int8")
    features = StoredFeatures(store, encoder, find_keys(store, files))
    assert features[files].dtype == torch.float32
    assert np.isfinite(features[files].numpy()).all()
