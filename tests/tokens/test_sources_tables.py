"""Tables with an image in each row, and LLaVA's JSON."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.sources import grays, keys, opened, png, put

from vlm_vision.data.conversations.easy_vqa import paths, questions
from vlm_vision.tokens.sources import records

COUNT = 9


def rows(folder, label=lambda i: i % 3):
    """Rows of a table, and their images."""
    for i in range(COUNT):
        put(folder / f"images/{i}.png", png(10 * i))
    return [
        {"file_name": f"images/{i}.png", "label": label(i), "text": f"number {i}", "key": f"k{i}", "other": i}
        for i in range(COUNT)
    ]


def write_table(file, listed):
    if file.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(listed), file, row_group_size=4)
    elif file.suffix == ".jsonl":
        put(file, "\n".join(json.dumps(row) for row in listed))
    elif file.suffix == ".json":
        put(file, json.dumps(listed, indent=1))
    else:
        mark = "\t" if file.suffix == ".tsv" else ","
        put(file, "\n".join(mark.join(map(str, line)) for line in [listed[0], *(row.values() for row in listed)]))
    return file


SUFFIXES = (".csv", ".tsv", ".jsonl", ".json", ".parquet")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_table_gives_paths_labels_and_captions(tmp_path, suffix):
    source = opened(write_table(tmp_path / f"t{suffix}", rows(tmp_path)))
    items = list(source.items())
    assert [one.key for one in items] == [f"images/{i}.png" for i in range(COUNT)]
    assert [one.label for one in items] == [0, 1, 2] * 3 and all(type(one.label) is int for one in items)
    assert [one.caption for one in items] == [f"number {i}" for i in range(COUNT)]
    assert grays(source) == [10 * i for i in range(COUNT)]
    assert grays(source, items[5:7]) == [50, 60]
    source.check()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_columns_may_be_chosen(tmp_path, suffix):
    listed = [
        {"a": row["file_name"], "b": f"c{i}", "c": f" {i} ", "d": i} for i, row in enumerate(rows(tmp_path / "x"))
    ]
    table = write_table(tmp_path / f"t{suffix}", listed)
    chosen = {"path_column": "a", "label_column": "b", "caption_column": "c", "id_column": "d"}
    source = opened(table, image_root=str(tmp_path / "x"), **chosen)
    items = list(source.items())
    assert [(one.key, one.label, one.caption) for one in items] == [(str(i), f"c{i}", str(i)) for i in range(COUNT)]
    assert grays(source) == [10 * i for i in range(COUNT)]
    with pytest.raises(ValueError, match="t.* has no column 'e': it has a, b, c, d"):
        keys(opened(table, caption_column="e"))
    with pytest.raises(ValueError, match="has the columns a, b, c, d: expected an image in path or image"):
        keys(opened(table))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_labels_are_whole_numbers_or_text_for_the_whole_table(tmp_path, suffix):
    listed = rows(tmp_path, lambda i: ["1", "2", "x"][i % 3])
    assert {one.label for one in opened(write_table(tmp_path / f"t{suffix}", listed)).items()} == {"1", "2", "x"}
    listed = rows(tmp_path, lambda i: ["007", "2", "3"][i % 3])
    assert {one.label for one in opened(write_table(tmp_path / f"u{suffix}", listed)).items()} == {"007", "2", "3"}
    listed = rows(tmp_path, lambda i: ["", "2", "-3"][i % 3])
    assert {one.label for one in opened(write_table(tmp_path / f"v{suffix}", listed)).items()} == {None, 2, -3}


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("a.csv", "path,label\na.png,1\nb.png\n", "a.csv, line 3, has 1 fields, expected 2: path, label"),
        ("a.csv", "path,path\na.png,1\n", "column 'path' twice"),
        ("a.csv", "path,label\n,1\n", "a.csv, line 2, has '' in path"),
        ("a.csv", b"path\n\xff.png\n", "not text in UTF-8"),
        ("a.csv", "path\n", "holds no row"),
        ("a.csv", "", "holds no row"),
        ("a.jsonl", '{"path": "a.png"}\n{"path"\n', "a.jsonl, line 2, is not valid JSON"),
        ("a.jsonl", '{"path": "a.png"}\n{"label": 1}\n', "a.jsonl, line 2, has None in path"),
        ("a.jsonl", '{"path": "a.png"}\n[1]\n', "a.jsonl, line 2, is not a record"),
        ("a.json", '{"path": "a.png"}', r"a.json is no JSON list of records: \[ is missing after 0"),
        ("a.json", '[{"path": "a.png"} {}]', "a.json is no JSON list of records: , is missing after 1"),
        ("a.json", '[{"path": "a.png"}, {"pa', "a.json is not valid JSON after 1 records"),
        ("a.json", '[{"path": "a.png"},]', "a.json is not valid JSON after 1 records"),
        ("a.json", "[1]", "record 1, is not a record"),
        ("a.json", "[]", "holds no row"),
        ("a.parquet", b"PAR1", "a.parquet cannot be read"),
    ],
)
def test_a_broken_table_is_one_sentence(tmp_path, name, text, sentence):
    with pytest.raises(ValueError, match=sentence):
        keys(opened(put(tmp_path / name, text)))


@pytest.mark.parametrize("piece", [1, 7, 1 << 16])
def test_a_json_list_is_read_in_pieces(tmp_path, monkeypatch, piece):
    monkeypatch.setattr(records, "PIECE", piece)
    listed = [{"path": f"{i}.png", "caption": 'x"]},[{' * i, "n": {"a": [i]}} for i in range(20)]
    source = opened(put(tmp_path / "a.json", " \n" + json.dumps(listed) + "\n "))
    assert [one.caption for one in source.items()] == [None, *(row["caption"] for row in listed[1:])]


def test_columns_that_the_first_record_lacks_are_read(tmp_path):
    put(tmp_path / "b.png", png(4))
    source = opened(put(tmp_path / "a.jsonl", '{"path": "b.png"}\n{"path": "c.png", "label": 3, "caption": "c"}\n'))
    assert [(one.label, one.caption) for one in source.items()] == [(None, None), (3, "c")]


@pytest.mark.parametrize("form", ["bytes", "struct"])
def test_parquet_may_hold_the_images(tmp_path, form):
    kinds = {"bytes": pa.binary(), "struct": pa.struct({"bytes": pa.binary(), "path": pa.string()})}
    cells = [png(10 * i) for i in range(COUNT)]
    if form == "struct":
        cells = [{"bytes": data, "path": f"{i}.png" if i % 2 else None} for i, data in enumerate(cells)]
        put(tmp_path / "8.png", png(88))
        cells[8] = {"bytes": None, "path": "8.png"}
        cells[3] = None
    table = pa.table({"picture": pa.array(cells, kinds[form]), "label": list(range(COUNT)), "id": list("abcdefghi")})
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=4)
    source = opened(tmp_path / "t.parquet")
    items = list(source.items())
    assert [one.label for one in items] == list(range(COUNT))
    found = grays(source)
    expected = [10 * i for i in range(COUNT)]
    if form == "struct":
        assert [one.key for one in items] == ["0", "1.png", "2", "3", "4", "5.png", "6", "7.png", "8.png"]
        assert "row 3, picture holds no image" in str(found[3])
        expected[8], expected[3] = 88, found[3]
    else:
        assert [one.key for one in items] == [str(i) for i in range(COUNT)]
    assert found == expected
    for start in range(COUNT):
        assert grays(source, items[start : start + 3]) == expected[start : start + 3]
    assert grays(source, items[1::3]) == expected[1::3]
    assert keys(opened(tmp_path / "t.parquet", id_column="id")) == list("abcdefghi")


def test_parquet_of_another_kind_is_one_sentence(tmp_path):
    pq.write_table(pa.table({"path": [1, 2]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="has int64 in path: expected paths, bytes or"):
        keys(opened(tmp_path / "a.parquet"))
    pq.write_table(pa.table({"x": [b"1"], "y": [b"2"]}), tmp_path / "b.parquet")
    with pytest.raises(ValueError, match="expected one of x, y; choose one with --path-column"):
        keys(opened(tmp_path / "b.parquet"))


def test_a_pattern_of_tables_and_metadata_of_a_folder(tmp_path):
    listed = rows(tmp_path)
    for part in range(3):
        write_table(tmp_path / f"t{part}.csv", listed[3 * part : 3 * part + 3])
    source = opened(tmp_path / "t*.csv")
    assert keys(source) == [row["file_name"] for row in listed]
    assert grays(source, list(source.items())[2:5]) == [20, 30, 40]
    write_table(tmp_path / "metadata.csv", listed)
    assert [one.caption for one in opened(tmp_path).items()] == [row["text"] for row in listed]


def llava(image, *answers, **more):
    turns = [{"from": who, "value": text} for one in answers for who, text in (("human", "<image>\n?"), ("gpt", one))]
    return {"id": 0, **({"image": image} if image else {}), "conversations": turns, **more}


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_llava_json_gives_each_image_once_with_its_first_answer(tmp_path, suffix):
    for i in range(3):
        put(tmp_path / f"x/{i}.png", png(10 * i))
    listed = [
        llava("2.png", "two", "more"),
        llava(None, "text only"),
        llava(["0.png", "2.png", "0.png"], "nought"),
        llava("2.png", "again"),
        llava("1.png", "one"),
    ]
    source = opened(write_table(tmp_path / f"a{suffix}", listed), image_root=str(tmp_path / "x"))
    assert [(one.key, one.caption) for one in source.items()] == [
        ("2.png", "two"),
        ("0.png", "nought"),
        ("1.png", "one"),
    ]
    assert grays(source) == [20, 0, 10]
    with pytest.raises(ValueError, match="--path-column is for tables and data sets: .* is LLaVA JSON"):
        opened(tmp_path / f"a{suffix}", path_column="image")


@pytest.mark.parametrize(
    ("listed", "sentence"),
    [
        ([llava("a.png", "a"), {"image": "b.png"}], "record 2: conversations must alternate"),
        ([llava("a.png", "a"), {"image": "b.png", "conversations": [1, 2]}], "record 2, is not in LLaVA's form"),
        ([llava({"a": 1}, "a")], "record 1, has .* as image: expected a path"),
        ([llava(None, "a")], "names no image"),
    ],
)
def test_broken_llava_json_is_one_sentence(tmp_path, listed, sentence):
    with pytest.raises(ValueError, match=sentence):
        keys(opened(write_table(tmp_path / "a.json", listed)))


def test_easy_vqa_as_llava_json(tmp_path):
    pytest.importorskip("easy_vqa")
    home = paths("test")
    asked = questions("test")[:300]
    table = write_table(tmp_path / "a.json", [llava(str(home[image]), answer) for _, answer, image in asked])
    source = opened(table)
    items = list(source.items())
    first = {image: answer for _, answer, image in reversed(asked)}
    assert [one.key for one in items] == [str(home[image]) for image in dict.fromkeys(image for *_, image in asked)]
    assert {one.key: one.caption for one in items} == {str(home[image]): answer for image, answer in first.items()}
    assert all(isinstance(one, int) for one in grays(source, items[:20]))
