"""The token store: what goes in comes out, however the work was done."""

import errno
import filecmp
import pickle
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support.token_sources import Files, write_images

import vlm_vision as vv
from vlm_vision.data.shards.fetch import UnreachableError
from vlm_vision.new_models import new_encoder
from vlm_vision.tokens import shard as shard_file
from vlm_vision.tokens.batch import collate_rows
from vlm_vision.tokens.extraction.extract import extract
from vlm_vision.tokens.merge import merge
from vlm_vision.tokens.shuffled import ShuffledRows
from vlm_vision.tokens.wanted import Wanted

ERRORS = {"float32": 1e-5, "float16": 1e-3, "bfloat16": 8e-3, "int8": 8e-3}
"""Largest error of the store's numbers, as a share of the largest value."""


def registers_encoder(**more: object) -> vv.Encoder:
    fields = dict(image_size=32, patch_size=8, embed_dim=32, depth=3, num_heads=4, mlp_dim=64, position_prefix=1)
    return new_encoder(fields | dict(num_registers=2, pool="cls") | more).eval()


def same_files(one: Path, other: Path) -> None:
    names = sorted(path.relative_to(one) for path in one.rglob("*") if path.is_file())
    assert names == sorted(path.relative_to(other) for path in other.rglob("*") if path.is_file())
    _, mismatch, errors = filecmp.cmpfiles(one, other, [str(name) for name in names], shallow=False)
    assert not mismatch and not errors


@pytest.mark.parametrize("dtype", ERRORS)
def test_every_part_of_every_layer_comes_back(tmp_path: Path, dtype: str) -> None:
    encoder = registers_encoder()
    source = write_images(tmp_path / "images", 7)
    wanted = Wanted(layers=(-1, 0), dtype=dtype, batch_size=2, shard_images=3)  # type: ignore[arg-type]
    extract(source, encoder, tmp_path / "store", wanted=wanted)
    store = vv.TokenStore(tmp_path / "store")
    assert store.keys() == [f"{i:03d}.png" for i in range(7)] and len(store) == 7 and store.failures == []
    for i, key in enumerate(store.keys()):
        row = store[key]
        pixels = encoder.preprocess(str(tmp_path / "images" / key))
        for layer in (-1, 0):
            with torch.no_grad():
                out = encoder(pixels, tap=vv.Tap(layer))
            for part in ("patch_tokens", "cls_token", "register_tokens"):
                close(getattr(row.taps[layer], part), getattr(out, part)[0], dtype)
        with torch.no_grad():
            close(row.pooled, encoder(pixels).pooled[0], dtype)
        assert row.patch_tokens is row.taps[-1].patch_tokens
        assert (row.key, row.grid, row.frames, row.label, row.caption) == (key, (4, 4), 1, i, f"image {i}")
    assert torch.equal(store[-1].patch_tokens, store[6].patch_tokens)
    assert store.about["rows"] == 7 and store.about["failures"] == 0
    assert (store.about["loss"]["patch_tokens.-1"]["largest_error"] == 0) == (dtype == "float32")


def close(stored: torch.Tensor, exact: torch.Tensor, dtype: str) -> None:
    assert stored.shape == exact.shape
    assert (stored.float() - exact).abs().max() <= ERRORS[dtype] * exact.abs().max()


def test_images_of_any_shape_have_grids_of_their_own(tmp_path: Path) -> None:
    encoder = registers_encoder(pool="none")
    encoder.preprocess = encoder.preprocess.with_budget(16, 8)
    source = write_images(tmp_path / "images", 5, size=(40, 20))
    (tmp_path / "images" / "000.png").unlink()
    extract(source, encoder, tmp_path / "store", wanted=Wanted(batch_size=3))
    store = vv.TokenStore(tmp_path / "store")
    for key in store.keys():
        pixels = encoder.preprocess.each(str(tmp_path / "images" / key))
        [out] = encoder.packed(pixels)
        assert store[key].grid == out.grid and store[key].pooled is None
        close(store[key].patch_tokens, out.patch_tokens[0], "float32")
    wide = write_images(tmp_path / "wide", 2, size=(16, 60), seed=1)
    for path in (tmp_path / "images").iterdir():
        path.rename(tmp_path / "wide" / f"tall{path.name}")
    extract(wide, encoder, tmp_path / "unequal")
    unequal = vv.TokenStore(tmp_path / "unequal")
    batch = next(iter(torch.utils.data.DataLoader(unequal, batch_size=len(unequal), collate_fn=collate_rows)))
    for i, row in enumerate(unequal):
        assert torch.equal(batch.patch_tokens[i][batch.mask[i]], row.patch_tokens)
        assert not batch.patch_tokens[i][~batch.mask[i]].any() and tuple(batch.grids[i].tolist()) == row.grid
    assert batch.keys == unequal.keys() and batch.pooled is None
    with pytest.raises(ValueError, match="rows have .* to .* tokens"):
        vv.TokenStore(tmp_path / "unequal").patch_tokens([0, -1])


def test_fused_towers_keep_their_layers_apart(tmp_path: Path) -> None:
    small = new_encoder(dict(image_size=32, patch_size=8, embed_dim=16, depth=2, num_heads=2, mlp_dim=32)).eval()
    fused = vv.FusedEncoder([registers_encoder(), small])
    extract(write_images(tmp_path / "images", 3), fused, tmp_path / "store", wanted=Wanted(layers=(-1, -2), norm=False))
    row = vv.TokenStore(tmp_path / "store")[1]
    for layer in (-1, -2):
        with torch.no_grad():
            out = fused(fused.preprocess(str(tmp_path / "images" / "001.png")), tap=vv.Tap(layer, norm=False))
        close(row.taps[layer].patch_tokens, out.patch_tokens[0], "float32")
        close(row.taps[layer].cls_token, out.cls_token[0], "float32")
    assert row.register_tokens is None


def test_patches_are_averaged_in_squares(tmp_path: Path) -> None:
    encoder = registers_encoder()
    source = write_images(tmp_path / "images", 2)
    extract(source, encoder, tmp_path / "store", wanted=Wanted(pool=2, parts=("patch_tokens",)))
    row = vv.TokenStore(tmp_path / "store")[0]
    with torch.no_grad():
        tokens = encoder(encoder.preprocess(str(tmp_path / "images" / "000.png"))).patch_tokens[0]
    corner = tokens.reshape(4, 4, -1)[:2, 2:].mean(dim=(0, 1))
    assert row.grid == (2, 2) and row.cls_token is None and row.pooled is None
    close(row.patch_tokens[1], corner, "float32")
    with pytest.raises(ValueError, match="4x4 patches cannot be pooled by 3x3"):
        extract(source, encoder, tmp_path / "other", wanted=Wanted(pool=3))


def test_half_precision_and_threads_give_the_same_bytes_in_every_run(tmp_path: Path) -> None:
    encoder, source = registers_encoder(), write_images(tmp_path / "images", 9)
    wanted = Wanted(precision="bfloat16", dtype="bfloat16", batch_size=2, shard_images=4)
    for name, workers in (("one", 1), ("three", 3)):
        extract(source, encoder, tmp_path / name, wanted=wanted, workers=workers)
    same_files(tmp_path / "one", tmp_path / "three")


def test_what_is_cut_off_anywhere_is_finished_by_the_same_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, source = registers_encoder(), write_images(tmp_path / "images", 8)
    (tmp_path / "images" / "003.png").write_bytes(b"no image")
    wanted = Wanted(batch_size=2, shard_images=3)
    extract(source, encoder, tmp_path / "whole", wanted=wanted)
    replace = shard_file.os.replace
    for cut in range(11):
        left = iter(range(cut))

        def cut_off(here: object, there: object, left=left) -> None:
            if next(left, None) is None:
                raise KeyboardInterrupt
            replace(here, there)

        with monkeypatch.context() as patch:
            patch.setattr(shard_file.os, "replace", cut_off)
            try:
                extract(source, encoder, tmp_path / f"cut{cut}", wanted=wanted)
            except KeyboardInterrupt:
                pass
        extract(source, encoder, tmp_path / f"cut{cut}", wanted=wanted)
        same_files(tmp_path / "whole", tmp_path / f"cut{cut}")
    assert next(left, None) is None and (tmp_path / "cut10").is_dir()


def test_bad_images_are_listed_and_stop_the_run_above_a_share(tmp_path: Path) -> None:
    encoder, source = registers_encoder(), write_images(tmp_path / "images", 10)
    for i in (2, 5):
        (tmp_path / "images" / f"{i:03d}.png").write_bytes(b"\x89PNG damaged")
    wanted = Wanted(batch_size=2, shard_images=4)
    extract(source, encoder, tmp_path / "store", wanted=wanted)
    store = vv.TokenStore(tmp_path / "store")
    assert len(store) == 8 and [key for key, _ in store.failures] == ["002.png", "005.png"]
    assert "002.png' is not an image" in store.failures[0][1]
    with pytest.raises(ValueError, match="1 of 10 images cannot be read, more than the share of 0.05") as refused:
        extract(source, encoder, tmp_path / "strict", wanted=wanted, max_bad=0.05)
    assert "002.png" in str(refused.value)
    with pytest.warns(UserWarning, match="half written, with 1 shards of 3"):
        assert len(vv.TokenStore(tmp_path / "strict")) == 3
    extract(source, encoder, tmp_path / "strict", wanted=wanted, max_bad=0.2)
    same_files(tmp_path / "store", tmp_path / "strict")


def test_a_source_that_vanishes_stops_the_run_and_keeps_the_rows(tmp_path: Path) -> None:
    encoder, source = registers_encoder(), write_images(tmp_path / "images", 8)
    wanted = Wanted(batch_size=2, shard_images=2)
    extract(source, encoder, tmp_path / "whole", wanted=wanted)
    done = []

    def vanish(finished: int, total: int, bad: int) -> None:
        done.append(finished)
        if len(done) == 2:
            (tmp_path / "images").rename(tmp_path / "away")

    with pytest.raises(UnreachableError, match="is gone"):
        extract(source, encoder, tmp_path / "store", wanted=wanted, progress=vanish)
    with pytest.warns(UserWarning, match="half written"):
        assert len(vv.TokenStore(tmp_path / "store")) in (2, 4)
    (tmp_path / "away").rename(tmp_path / "images")
    extract(source, encoder, tmp_path / "store", wanted=wanted)
    same_files(tmp_path / "whole", tmp_path / "store")


def test_a_full_disk_is_one_sentence_and_keeps_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, source = registers_encoder(), write_images(tmp_path / "images", 6)
    wanted = Wanted(batch_size=2, shard_images=2)
    append, calls = shard_file.ShardWriter._append, []

    def full(self: shard_file.ShardWriter, name: str, value: torch.Tensor) -> None:
        calls.append(name)
        if len(calls) > 15:
            raise OSError(errno.ENOSPC, "No space left on device")
        append(self, name, value)

    with monkeypatch.context() as patch:
        patch.setattr(shard_file.ShardWriter, "_append", full)
        with pytest.raises(
            OSError, match="store cannot be written .No space left on device.: make room, and run the same"
        ):
            extract(source, encoder, tmp_path / "store", wanted=wanted)
    with pytest.warns(UserWarning, match="half written"):
        assert len(vv.TokenStore(tmp_path / "store")) == 2
    extract(source, encoder, tmp_path / "store", wanted=wanted)
    extract(source, encoder, tmp_path / "whole", wanted=wanted)
    same_files(tmp_path / "whole", tmp_path / "store")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (dict(wanted=Wanted(layers=(-2,))), r"layers is \[-1\] in the store and \[-2\] here"),
        (dict(wanted=Wanted(norm=False)), "norm is true in the store and false here"),
        (dict(wanted=Wanted(dtype="float16")), 'dtype is "float32" in the store and "float16" here'),
        (dict(weights=1), "the encoder's weights .fingerprint. is"),
        (dict(mean=0.1), "encoder preprocess mean is"),
        (dict(described={"sources": ["b"]}), "is finished, from a: --append adds the images of b"),
        (dict(more=True), "now has 1 more images, such as new.png: --append adds them"),
    ],
)
def test_a_store_of_other_settings_is_refused_with_the_difference(tmp_path: Path, changed: dict, message: str) -> None:
    encoder, source = registers_encoder(), write_images(tmp_path / "images", 3)
    call = dict(described={"sources": ["a"]}, wanted=Wanted())
    extract(source, encoder, tmp_path / "store", **call)
    before = {path: path.read_bytes() for path in (tmp_path / "store").rglob("*") if path.is_file()}
    if changed.pop("weights", 0):
        with torch.no_grad():
            encoder.model.patch_embed.weight[0, 0, 0, 0] += 1
    if "mean" in changed:
        encoder.preprocess = encoder.preprocess.__class__.from_dict(
            encoder.preprocess.to_dict() | {"mean": [changed.pop("mean")] * 3}
        )
    if changed.pop("more", False):
        (tmp_path / "images" / "000.png").rename(tmp_path / "images" / "new.png")
    with pytest.raises(ValueError, match=message):
        extract(source, encoder, tmp_path / "store", **call | changed)
    assert {path: path.read_bytes() for path in (tmp_path / "store").rglob("*") if path.is_file()} == before


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    encoder, source = registers_encoder(), write_images(tmp_path / "images", 2)
    (tmp_path / "file").write_text("text")
    with pytest.raises(ValueError, match="file is a file: choose a folder"):
        extract(source, encoder, tmp_path / "file")
    with pytest.raises(ValueError, match="images holds other files and no store.json"):
        extract(source, encoder, tmp_path / "images")
    assert sorted(path.name for path in (tmp_path / "images").iterdir()) == ["000.png", "001.png"]
    with pytest.raises(ValueError, match="two images have the key '000.png'"):
        extract(Twice(tmp_path / "images"), encoder, tmp_path / "twice")
    assert not (tmp_path / "twice").exists()
    for missing in (tmp_path / "nothing", tmp_path / "images"):
        with pytest.raises(ValueError, match="expected a token store, which `vlm-vision tokens` writes"):
            vv.TokenStore(missing)


class Twice(Files):
    def items(self):
        yield from super().items()
        yield from super().items()


def test_damaged_stores_are_refused(tmp_path: Path) -> None:
    encoder, source = registers_encoder(), write_images(tmp_path / "images", 4)
    wanted = Wanted(shard_images=2)
    extract(source, encoder, tmp_path / "store", wanted=wanted)
    extract(write_images(tmp_path / "others", 6, seed=1), encoder, tmp_path / "other", wanted=Wanted(shard_images=3))
    tensors, index = (
        tmp_path / "store" / "tensors" / "00001.safetensors",
        tmp_path / "store" / "index" / "00001.parquet",
    )
    whole, part = tensors.read_bytes(), index.read_bytes()

    tensors.write_bytes(whole[:-5])
    with pytest.raises(ValueError, match="00001.safetensors has .* bytes, its header states .*: it is truncated"):
        vv.TokenStore(tmp_path / "store")[3]
    tensors.write_bytes((tmp_path / "other" / "tensors" / "00001.safetensors").read_bytes())
    with pytest.raises(ValueError, match="does not belong to its part of the index"):
        vv.TokenStore(tmp_path / "store")[3]
    tensors.unlink()
    with pytest.raises(ValueError, match="00001.safetensors is missing"):
        vv.TokenStore(tmp_path / "store")[3]
    tensors.write_bytes(whole)

    index.write_bytes((tmp_path / "other" / "index" / "00001.parquet").read_bytes())
    with pytest.raises(ValueError, match="00001.parquet is a part of the index of another store"):
        vv.TokenStore(tmp_path / "store")
    index.write_bytes(part[:-9])
    with pytest.raises(ValueError, match="00001.parquet is damaged"):
        vv.TokenStore(tmp_path / "store")
    index.unlink()
    with pytest.raises(ValueError, match="holds 2 rows, its store.json states 4"):
        vv.TokenStore(tmp_path / "store")


def test_append_adds_what_is_new_or_was_bad(tmp_path: Path) -> None:
    encoder, source = registers_encoder(), write_images(tmp_path / "images", 5)
    good = (tmp_path / "images" / "001.png").read_bytes()
    (tmp_path / "images" / "001.png").write_bytes(b"damaged")
    extract(source, encoder, tmp_path / "store", wanted=Wanted(shard_images=2))
    (tmp_path / "images" / "001.png").write_bytes(good)
    write_images(tmp_path / "images", 7)
    extract(source, encoder, tmp_path / "store", wanted=Wanted(shard_images=2), append=True)
    store = vv.TokenStore(tmp_path / "store")
    names = [f"{i:03d}.png" for i in (0, 2, 3, 4, 1, 5, 6)]
    assert store.keys() == names and store.failures == [] and store.about["failures"] == 0
    with torch.no_grad():
        exact = encoder(encoder.preprocess(str(tmp_path / "images" / "001.png"))).patch_tokens[0]
    close(store["001.png"].patch_tokens, exact, "float32")
    extract(source, encoder, tmp_path / "store", wanted=Wanted(shard_images=2), append=True)
    assert vv.TokenStore(tmp_path / "store").keys() == names


def test_images_without_labels_join_a_store_of_numbers_and_those_with_texts_do_not(tmp_path: Path) -> None:
    encoder, source = registers_encoder(), write_images(tmp_path / "images", 2)
    extract(source, encoder, tmp_path / "store")
    for name in ("more", "texts"):
        write_images(tmp_path / name, 1, seed=1)
        (tmp_path / name / "000.png").rename(tmp_path / name / f"{name}.png")
    extract(Labeled(tmp_path / "more", None), encoder, tmp_path / "store", append=True)
    assert [row.label for row in vv.TokenStore(tmp_path / "store")] == [0, 1, None]
    with pytest.raises(ValueError, match="are whole numbers, those of .* are not: use a separate store"):
        extract(Labeled(tmp_path / "texts", "cat"), encoder, tmp_path / "store", append=True)
    extract(Labeled(tmp_path / "texts", "cat"), encoder, tmp_path / "cats")
    assert vv.TokenStore(tmp_path / "cats")[0].label == "cat"


@dataclass(frozen=True)
class Labeled(Files):
    label: str | None

    def items(self):
        return (replace(item, label=self.label) for item in super().items())


def test_two_stores_merge_to_one(tmp_path: Path) -> None:
    encoder, wanted = registers_encoder(), Wanted(shard_images=2)
    for name, seed in (("a", 0), ("b", 1)):
        source = write_images(tmp_path / name, 3, seed=seed)
        for path in (tmp_path / name).iterdir():
            path.rename(path.with_name(name + path.name))
        (tmp_path / name / f"{name}999.png").write_bytes(b"damaged")
        extract(source, encoder, tmp_path / f"store_{name}", wanted=wanted)
    merge([tmp_path / "store_a", tmp_path / "store_b"], tmp_path / "merged")
    one, other, merged = (vv.TokenStore(tmp_path / name) for name in ("store_a", "store_b", "merged"))
    assert merged.keys() == one.keys() + other.keys() and len(merged.failures) == 2
    for i, row in enumerate([*map(one.__getitem__, range(3)), *map(other.__getitem__, range(3))]):
        assert torch.equal(merged[i].patch_tokens, row.patch_tokens) and merged[i].label == row.label
    with pytest.raises(ValueError, match="both hold an image 'a000.png'"):
        merge([tmp_path / "store_a", tmp_path / "store_a"], tmp_path / "twice")
    extract(Files(tmp_path / "b"), encoder, tmp_path / "half", wanted=Wanted(dtype="float16"))
    with pytest.raises(ValueError, match='dtype is "float32" in the store and "float16" in the other'):
        merge([tmp_path / "store_a", tmp_path / "half"], tmp_path / "unlike")
    assert not (tmp_path / "twice").exists() and not (tmp_path / "unlike").exists()


def test_readers_see_every_row_once(tmp_path: Path) -> None:
    encoder, source = registers_encoder(), write_images(tmp_path / "images", 11)
    extract(source, encoder, tmp_path / "store", wanted=Wanted(shard_images=2, dtype="float16"))
    store = vv.TokenStore(tmp_path / "store")
    assert torch.equal(store.patch_tokens([3, "007.png"])[1], store["007.png"].patch_tokens)
    assert torch.equal(pickle.loads(pickle.dumps(store))[4].patch_tokens, store[4].patch_tokens)
    loader = torch.utils.data.DataLoader(store, batch_size=4, collate_fn=list, num_workers=2)
    assert [row.key for batch in loader for row in batch] == store.keys()
    orders = [[row.key for row in ShuffledRows(store, seed=0, window=2, epoch=epoch)] for epoch in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2] and sorted(orders[0]) == store.keys() == sorted(orders[2])
    shared = torch.utils.data.DataLoader(
        ShuffledRows(store, seed=0, window=2), batch_size=None, collate_fn=lambda row: row.key, num_workers=2
    )
    assert sorted(shared) == store.keys()
    for wrong, message in ((11, "row 11 of 11"), (-12, "row -12 of 11")):
        with pytest.raises(IndexError, match=message):
            store[wrong]
    with pytest.raises(KeyError, match="has no image 'none.png'; its keys are like '000.png'"):
        store["none.png"]
    assert "003.png" in store and "none.png" not in store
    assert np.array_equal(store.grids(), np.full((11, 2), 4))
