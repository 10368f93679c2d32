"""Folders, tables, shards and data sets give the same samples; a bad one is skipped, counted and named."""

import csv
import io
import json
import logging
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.models import make_image
from support.shards import VIEW, encoded, write_tar
from torch.utils.data import DataLoader

from vlm_vision.data.images.batches import Draw, Draws, ImageDataset, Skipped, collate
from vlm_vision.data.images.samples import Samples, read_samples
from vlm_vision.data.images.views import Crop, View
from vlm_vision.data.stored_image import open_stored_images
from vlm_vision.preprocess.images import load_image
from vlm_vision.train.loop.sampler import StepBatches

CLASSES = ("cat", "dog", "robin")
LABELS = [0, 0, 1, 1, 1, 2]
CAPTIONS = [f'an image, the "{i}th",\nof a {CLASSES[label]}' for i, label in enumerate(LABELS)]


def write_class_folders(folder: Path) -> str:
    for i, label in enumerate(LABELS):
        (folder / CLASSES[label]).mkdir(exist_ok=True)
        (folder / CLASSES[label] / f"{i}.JPEG").write_bytes(encoded(i))
    (folder / "cat" / "list.txt").write_text("no image")
    return str(folder)


def write_splits(folder: Path) -> str:
    for split in ("train", "val"):
        (folder / split).mkdir()
    write_class_folders(folder / "train")
    return str(folder)


def write_images(folder: Path) -> str:
    for i in range(len(LABELS)):
        (folder / f"{i}.jpg").write_bytes(encoded(i))
    return str(folder)


def rows() -> list[dict]:
    return [{"image": f"{i}.jpg", "caption": CAPTIONS[i], "label": CLASSES[LABELS[i]]} for i in range(len(LABELS))]


def write_csv(folder: Path) -> str:
    write_images(folder)
    with open(folder / "data.csv", "w", newline="") as file:
        table = csv.DictWriter(file, ["caption", "label", "image"])
        table.writeheader()
        table.writerows(rows())
    return str(folder / "data.csv")


def write_jsonl(folder: Path) -> str:
    write_images(folder)
    records = [{"picture": row["image"], "text": row["caption"], "label": LABELS[i]} for i, row in enumerate(rows())]
    (folder / "data.jsonl").write_text("\n".join(map(json.dumps, records)) + "\n\n")
    return str(folder / "data.jsonl")


def write_shards(folder: Path) -> str:
    for shard in range(2):
        members = {}
        for i in range(3 * shard, 3 * shard + 3):
            record = {
                "caption": CAPTIONS[i] if i else None,
                "url": "x",
                "status": "success",
            }  # as img2dataset writes it
            members |= {f"{i:09}.jpg": encoded(i), f"{i:09}.txt": CAPTIONS[i].encode()}
            members |= {f"{i:09}.json": json.dumps(record).encode(), f"{i:09}.cls": f"{LABELS[i]}\n".encode()}
        write_tar(folder / f"{shard:05}.tar", members)
    (folder / "00000.parquet").write_bytes(b"beside the shards")
    return str(folder / "{00000..00001}.tar")


def data_set():
    datasets = pytest.importorskip("datasets")
    images = [{"bytes": encoded(i), "path": None} for i in range(len(LABELS))]
    made = datasets.Dataset.from_dict({"image": images, "text": CAPTIONS, "label": LABELS})
    names = datasets.ClassLabel(names=list(CLASSES))
    return made.cast_column("image", datasets.Image()).cast_column("label", names)


def write_data_set(folder: Path) -> str:
    data_set().save_to_disk(folder / "data")
    return str(folder / "data")


def write_parquet(folder: Path) -> str:
    (folder / "data").mkdir()
    data_set().to_parquet(folder / "data" / "train-00000.parquet")
    return str(folder)


FORMS = {
    "class folders": write_class_folders,
    "splits": write_splits,
    "pictures": write_images,
    "csv": write_csv,
    "jsonl": write_jsonl,
    "shards": write_shards,
    "folder of shards": lambda folder: str(Path(write_shards(folder)).parent),
    "data set": write_data_set,
    "parquet": write_parquet,
}


@pytest.fixture(autouse=True)
def _no_cache_of_other_runs(tmp_path_factory, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))
    datasets.disable_progress_bars()


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_samples(tmp_path, form):
    samples = read_samples(FORMS[form](tmp_path))
    assert len(samples) == len(LABELS)
    for i, sample in enumerate(samples):
        assert (
            np.asarray(load_image(open_stored_images([sample.image])[0]))
            == np.asarray(Image.open(io.BytesIO(encoded(i))))
        ).all()
        assert sample.caption == ("" if form in ("class folders", "splits", "pictures") else CAPTIONS[i])
        assert sample.label == (-1 if form == "pictures" else LABELS[i])
        assert sample.name
    numbers = form in ("jsonl", "shards", "folder of shards")
    assert samples.classes == (() if form == "pictures" else ("0", "1", "2") if numbers else CLASSES)
    assert len({sample.name for sample in samples}) == len(samples)


@pytest.mark.parametrize("form", FORMS)
def test_worker_processes_read_what_this_one_reads(tmp_path, form):
    samples = read_samples(FORMS[form](tmp_path))
    images = pickle.loads(pickle.dumps(ImageDataset(samples, [VIEW], seed=3)))
    draws = [[Draw(row, step) for row in order] for step, order in enumerate([[4, 1], [5, 0], [2, 3]])]
    here, there = (
        list(DataLoader(each, batch_sampler=draws, collate_fn=collate, num_workers=workers))  # type: ignore[arg-type]
        for each, workers in ((ImageDataset(samples, [VIEW], seed=3), 0), (images, 2))
    )
    for one, same in zip(here, there, strict=True):
        assert (one.views[0] == same.views[0]).all() and (one.labels == same.labels).all()
        assert one.captions == same.captions and one.seeds == same.seeds


def test_a_slice_keeps_the_classes(tmp_path):
    samples = read_samples(write_class_folders(tmp_path))
    some = samples[4:1:-2]
    assert isinstance(some, Samples) and some.classes == CLASSES
    assert list(some) == [samples[4], samples[2]]


def test_a_split_with_fewer_classes_is_labeled_as_the_whole(tmp_path):
    for name, classes in (("whole", ("ant", "bee", "cat", "dog")), ("part", ("bee", "dog"))):
        for one in classes:
            (tmp_path / name / one).mkdir(parents=True)
            make_image().save(tmp_path / name / one / "0.png")
    whole, part = (read_samples(str(tmp_path / name)) for name in ("whole", "part"))
    assert [sample.label for sample in part.with_classes(whole.classes)] == [1, 3]
    with pytest.raises(ValueError, match="'ant' is not one of the 2"):
        whole.with_classes(part.classes)


def test_a_class_may_be_called_train(tmp_path):
    for name in ("bus", "train"):
        (tmp_path / name).mkdir()
        make_image().save(tmp_path / name / "0.png")
    assert read_samples(str(tmp_path)).classes == ("bus", "train")


def test_missing_labels_and_captions_are_told_by_their_marks(tmp_path):
    (tmp_path / "data.csv").write_text("image,caption,label\na.jpg,,cat\nb.jpg,a dog,\n")
    first, second = read_samples(str(tmp_path / "data.csv"), images="/there")
    assert (first.image, first.caption, first.label) == ("/there/a.jpg", "", 0)
    assert (second.caption, second.label) == ("a dog", -1)


def test_a_caption_is_that_of_the_json_or_else_of_the_text(tmp_path):
    texts = [b'{"caption": "first"}', b"{", b"[" * 100_000, b'{"caption": " "}', b"[1]"]
    members = {}
    for i, text in enumerate(texts):
        members |= {f"{i}.png": b"x", f"{i}.json": text, f"{i}.txt": b" second\n"}
    write_tar(tmp_path / "a.tar", members | {"5.png": b"x", "6.txt": b"alone"})
    captions = [sample.caption for sample in read_samples(str(tmp_path / "a.tar"))]
    assert captions == ["first", *["second"] * 4, ""]


def _empty(folder: Path) -> None:
    pass


def _mixed(folder: Path) -> None:
    write_class_folders(folder)
    write_images(folder)


def _empty_class(folder: Path) -> None:
    write_class_folders(folder)
    (folder / "eel").mkdir()


def _no_image_column(folder: Path) -> None:
    (folder / "data.csv").write_text("file,label\na,b\n")


def _bad_json(folder: Path) -> None:
    (folder / "data.jsonl").write_text('{"image": "a.jpg"}\n{\n')


def _no_path(folder: Path) -> None:
    (folder / "data.jsonl").write_text('{"image": "a.jpg"}\n{"image": 3}\n')


def _huge_label(folder: Path) -> None:
    (folder / "data.csv").write_text("image,label\na.jpg,20231231000\n")


@pytest.mark.parametrize(
    ("write", "source", "sentence"),
    [
        (_empty, "", "holds no image"),
        (_empty, "nowhere", "is not a source of images"),
        (_empty, "no.csv", "there is no file"),
        (_mixed, "", "both images and folders of images"),
        (_empty_class, "", "eel holds no image: add images or remove it"),
        (_no_image_column, "data.csv", "columns file, label: expected image as picture or image"),
        (_bad_json, "data.jsonl", "line 2, is not valid JSON"),
        (_no_path, "data.jsonl", "record 2, has no path in image"),
        (_huge_label, "data.csv", "label 20231231000: expected numbers of classes from 0"),
    ],
)
def test_what_is_no_source_is_refused_in_one_sentence(tmp_path, write, source, sentence):
    write(tmp_path)
    with pytest.raises(ValueError, match=sentence) as raised:
        read_samples(str(tmp_path / source))
    assert "\n" not in str(raised.value)


def test_a_split_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ValueError, match="has the splits train, val: expected one of them, not 'test'"):
        read_samples(write_splits(tmp_path), "test")


def batches(images: ImageDataset, size: int, workers: int = 0):
    return DataLoader(images, batch_size=size, collate_fn=collate, num_workers=workers)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_sample_gives_way_to_the_next_and_is_counted_and_named(tmp_path, caplog, workers):
    source = write_csv(tmp_path)
    (tmp_path / "1.jpg").write_bytes(encoded(1)[:200])
    (tmp_path / "2.jpg").unlink()
    (tmp_path / "5.jpg").write_bytes(b"<html>")
    samples, skipped = read_samples(source), Skipped()
    with caplog.at_level(logging.WARNING):
        found = list(batches(ImageDataset(samples, [VIEW]), 3, workers))
        for batch in found:
            skipped.add(batch)
    assert [batch.views[0].shape for batch in found] == [(3, 3, 16, 16)] * 2
    assert [caption for batch in found for caption in batch.captions] == [CAPTIONS[i] for i in (0, 3, 3, 3, 4, 0)]
    assert (skipped.bad, skipped.seen) == (4, 10)
    assert str(skipped).startswith("4 of 10 samples were skipped, the first is data.csv, record 2: image file")
    assert len(caplog.records) == 1


def test_a_row_whose_image_cannot_be_named_is_skipped_too():
    def make(row: int):
        raise ValueError("row is torn") if row == 1 else OSError("gone")

    with pytest.raises(ValueError, match="2 samples in a row cannot be used, the first is sample 1: row is torn"):
        ImageDataset(Samples(make, range(2)), [VIEW])[1]


def test_a_missing_caption_or_label_is_skipped_only_where_it_is_needed(tmp_path):
    write_images(tmp_path)
    (tmp_path / "data.csv").write_text("image,caption,label\n0.jpg,,cat\n1.jpg,a dog,\n2.jpg,a cat,cat\n")
    samples = read_samples(str(tmp_path / "data.csv"))
    taken = {
        needs: ImageDataset(samples, [VIEW], needs=needs)[0].caption
        for needs in ((), ("caption",), ("caption", "label"))
    }
    assert taken == {(): "", ("caption",): "a dog", ("caption", "label"): "a cat"}


def test_more_than_a_tenth_bad_stops_the_run_only_at_its_beginning(tmp_path):
    samples = read_samples(write_class_folders(tmp_path))
    good = collate([ImageDataset(samples, [VIEW])[0]] * 50)
    (tmp_path / "cat" / "0.JPEG").unlink()
    bad = collate([ImageDataset(samples, [VIEW])[0]] * 50)
    late, early = Skipped(), Skipped()
    for _ in range(20):
        late.add(good)
    for _ in range(20):
        late.add(bad)
    assert late.bad == 1000
    early.add(bad)
    early.add(bad)
    with pytest.raises(ValueError, match="150 of the first 300 samples cannot be used, the first is .*0.JPEG"):
        early.add(bad)


def test_views_depend_on_run_step_row_and_copy_but_not_on_the_cut_of_a_batch(tmp_path):
    samples = read_samples(write_class_folders(tmp_path))

    def seeds(micro_batch_size: int, first_step: int = 0, seed: int = 0) -> list[list[int]]:
        order = StepBatches(6, batch_size=4, micro_batch_size=micro_batch_size, steps=6, first_step=first_step)
        draws = Draws(order, micro_batches=order.micro_batches, first_step=first_step, copies=2)
        loader = DataLoader(ImageDataset(samples, [VIEW], seed=seed), batch_sampler=draws, collate_fn=collate)  # type: ignore[arg-type]
        flat = [seed for batch in loader for seed in batch.seeds]
        return [flat[i : i + 8] for i in range(0, len(flat), 8)]

    whole = seeds(4)
    assert seeds(2) == whole and seeds(4, first_step=2) == whole[2:]
    assert len({seed for step in whole for seed in step}) == 6 * 8
    assert not {seed for step in whole for seed in step} & {seed for step in seeds(4, seed=1) for seed in step}


def test_each_view_of_an_image_is_another(tmp_path):
    views = ImageDataset(read_samples(write_class_folders(tmp_path)), [VIEW, VIEW, View(crop=Crop(8))])[0].views
    assert [tuple(view.shape) for view in views] == [(3, 16, 16), (3, 16, 16), (3, 8, 8)]
    assert not torch.equal(views[0], views[1])
