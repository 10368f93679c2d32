"""Data sets of the `datasets` library."""

import pytest
from support.sources import grays, keys, opened, png, put

datasets = pytest.importorskip("datasets")


def some_rows(count=6, **more):
    names = datasets.ClassLabel(names=["cat", "dog", "owl"])
    images = [{"bytes": png(10 * i), "path": f"{i}.png"} for i in range(count)]
    features = {
        "img": datasets.Image(),
        "label": names,
        "caption": datasets.Value("string"),
        "name": datasets.Value("string"),
    }
    rows = {"img": images, "label": [i % 3 for i in range(count)], "caption": [f"number {i}" for i in range(count)]}
    return datasets.Dataset.from_dict(
        rows | {"name": [f"n{i}" for i in range(count)]}, features=datasets.Features(features)
    )


def check_all(source):
    items = list(source.items())
    assert [(one.key, one.label, one.caption) for one in items] == [(str(i), i % 3, f"number {i}") for i in range(6)]
    assert all(type(one.label) is int for one in items)
    assert grays(source) == [10 * i for i in range(6)]
    assert grays(source, items[4:]) == [40, 50]
    source.check()


def test_a_folder_of_save_to_disk(tmp_path):
    some_rows().save_to_disk(tmp_path / "a")
    check_all(opened(tmp_path / "a"))
    datasets.DatasetDict({"train": some_rows(), "test": some_rows(2)}).save_to_disk(tmp_path / "b")
    check_all(opened(tmp_path / "b"))
    assert keys(opened(tmp_path / "b", split="test", id_column="name")) == ["n0", "n1"]
    with pytest.raises(ValueError, match="has the splits train, test: expected one of them, not 'x'"):
        keys(opened(tmp_path / "b", split="x"))
    with pytest.raises(ValueError, match="has no column 'x': it has img, label, caption, name"):
        keys(opened(tmp_path / "b", label_column="x"))
    with pytest.raises(ValueError, match="--every is for videos and robot data: .*b is a data set"):
        opened(tmp_path / "b", every=2)


def test_a_folder_of_parquet(tmp_path, monkeypatch):
    (tmp_path / "x/data").mkdir(parents=True)
    some_rows().to_parquet(str(tmp_path / "x/data/train-00000-of-00001.parquet"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    check_all(opened(tmp_path / "x"))


def test_several_images_in_a_row_and_labels_that_are_text(tmp_path):
    images = [[png(0), png(10)], [png(20)], []]
    features = {"images": datasets.List(datasets.Image()), "class": datasets.Value("string")}
    rows = {"images": [[{"bytes": one, "path": None} for one in cell] for cell in images], "class": ["a", "1", "b"]}
    datasets.Dataset.from_dict(rows, features=datasets.Features(features)).save_to_disk(tmp_path / "a")
    source = opened(tmp_path / "a")
    assert [(one.key, one.label) for one in source.items()] == [("0/0", "a"), ("0/1", "a"), ("1", "1")]
    assert grays(source) == [0, 10, 20]


def test_paths_and_damaged_images(tmp_path):
    put(tmp_path / "x/a.png", png(7))
    datasets.Dataset.from_dict({"path": ["a.png", "b.png"]}).save_to_disk(tmp_path / "a")
    found = grays(opened(tmp_path / "a", image_root=str(tmp_path / "x")))
    assert found[0] == 7 and "b.png" in str(found[1]) and "does not exist" in str(found[1])
    rows = {"image": [{"bytes": png(1)[:50], "path": None}, {"bytes": png(1), "path": None}]}
    datasets.Dataset.from_dict(rows, features=datasets.Features({"image": datasets.Image()})).save_to_disk(
        tmp_path / "b"
    )
    found = grays(opened(tmp_path / "b"))
    assert "row 0, image 0 cannot be decoded" in str(found[0]) and found[1] == 1


def test_a_hub_id_that_cannot_be_read_is_one_sentence(monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="nobody/nothing cannot be read, split train"):
        keys(opened("nobody/nothing"))
