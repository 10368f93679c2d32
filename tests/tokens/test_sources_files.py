"""Images and videos in folders, patterns, lists and single files."""

import os
import random

import pytest
from PIL import Image
from support.sources import grays, keys, opened, png, put

from vlm_vision.data.shards.fetch import UnreachableError
from vlm_vision.tokens.sources.choose import open_sources
from vlm_vision.tokens.sources.options import SourceOptions

NAMES = ["B.png", "a-b/c.png", "a.png", "a/b/d.PNG", "a/e.jpg", "a0.png", "é.png"]
"""In the order of their bytes."""


def fill(folder):
    for number in random.Random(0).sample(range(len(NAMES)), len(NAMES)):
        put(folder / NAMES[number], png(10 * number))
    put(folder / ".hidden.png", b"")
    put(folder / ".cache/a.png", b"")
    return folder


def test_a_folder_is_listed_in_the_order_of_bytes(tmp_path, caplog):
    folder = fill(tmp_path / "x")
    put(folder / "a/notes.txt", "")
    source = opened(folder)
    assert keys(source) == NAMES == sorted(NAMES, key=str.encode)
    assert grays(source) == [10 * number for number in range(len(NAMES))]
    assert "left out: 1 .txt" in caplog.text
    assert grays(source, list(source.items())[2:4]) == [20, 30]
    source.check()


def test_links_to_folders_are_followed_and_a_circle_is_an_error(tmp_path):
    put(tmp_path / "far/a.png", png(1))
    folder = fill(tmp_path / "x")
    (folder / "z").symlink_to(tmp_path / "far")
    assert keys(opened(folder)) == [*NAMES[:-1], "z/a.png", NAMES[-1]]
    (folder / "a/up").symlink_to(folder)
    with pytest.raises(ValueError, match="a/up is a link to a folder that holds it"):
        keys(opened(folder))


def test_a_folder_without_images_counts_its_files(tmp_path):
    for name in ("a.txt", "b.txt", "c/d.pdf", "README"):
        put(tmp_path / "x" / name, "")
    with pytest.raises(ValueError, match="x holds no image and no video in it or below: it holds 2 .txt, 1 .pdf, 1 no"):
        keys(opened(tmp_path / "x"))
    (tmp_path / "y").mkdir()
    with pytest.raises(ValueError, match="y holds no image and no video.*: it holds no file"):
        keys(opened(tmp_path / "y"))


def test_a_name_that_is_no_text_is_an_error(tmp_path):
    put(tmp_path / "x/a.png", png(1))
    (tmp_path / "x" / os.fsdecode(b"\xff.png")).write_bytes(png(1))
    with pytest.raises(ValueError, match="not UTF-8: rename the file"):
        keys(opened(tmp_path / "x"))


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.png", ["B.png", "a.png", "a0.png", "é.png"]),
        ("**/*.png", ["B.png", "a-b/c.png", "a.png", "a0.png", "é.png"]),
        ("a*/*", ["a-b/c.png", "a/e.jpg"]),
        ("a/**", ["b/d.PNG", "e.jpg"]),
        ("**/b/*", ["a/b/d.PNG"]),
        ("[!a].png", ["B.png", "é.png"]),
        ("a?.png", ["a0.png"]),
    ],
)
def test_patterns_match_as_in_the_shell(tmp_path, monkeypatch, pattern, expected):
    folder = fill(tmp_path / "x")
    source = opened(f"{folder}/{pattern}")
    assert keys(source) == expected
    assert all(isinstance(one, int) for one in grays(source))
    monkeypatch.chdir(folder)
    assert keys(opened(pattern)) == expected
    assert all(isinstance(one, int) for one in grays(opened(pattern)))


def test_a_pattern_without_a_match_is_an_error(tmp_path):
    put(tmp_path / "a.txt", "")
    for pattern in ("*.png", "b/*.png"):
        with pytest.raises(ValueError, match="holds no image and no video among its matches|b cannot be listed"):
            keys(opened(tmp_path / pattern))


def test_single_files_have_the_key_of_their_name(tmp_path):
    folder = fill(tmp_path / "x")
    source = opened([folder / "a/e.jpg", folder / "B.png"])
    assert keys(source) == ["e.jpg", "B.png"] and grays(source) == [40, 0]


def test_a_list_has_a_path_in_each_line(tmp_path):
    folder = fill(tmp_path / "x")
    text = put(folder / "list.txt", f"\ufeffa.png\r\n\n./B.png\n{folder}/a/e.jpg\nmissing.png\n")
    source = opened(text)
    assert keys(source) == ["a.png", "./B.png", f"{folder}/a/e.jpg", "missing.png"]
    found = grays(source)
    assert found[:3] == [20, 0, 40] and "missing.png' does not exist" in str(found[3])
    moved = put(tmp_path / "list.txt", "a.png\n")
    assert grays(opened(moved, image_root=str(folder))) == [20]
    with pytest.raises(ValueError, match="holds no line"):
        keys(opened(put(tmp_path / "empty.txt", "\n")))
    with pytest.raises(ValueError, match="latin.txt is not text in UTF-8"):
        keys(opened(put(tmp_path / "latin.txt", b"a\xe9.png\n")))


def test_sources_are_joined_in_their_order(tmp_path):
    folder = fill(tmp_path / "x")
    text = put(folder / "list.txt", "a.png\n")
    source = opened([folder / "B.png", text, folder / "a0.png", folder / "a"])
    assert keys(source) == ["B.png", "a.png", "a0.png", "b/d.PNG", "e.jpg"]
    assert grays(source) == [0, 20, 50, 30, 40]
    assert grays(source, list(source.items())[1:3]) == [20, 50]
    source.check()


def test_an_image_bomb_and_a_damaged_image_are_errors_of_their_own(tmp_path, monkeypatch):
    put(tmp_path / "x/a.png", png(7)[:40])
    put(tmp_path / "x/b.png", png(9))
    Image.new("RGB", (64, 64)).save(tmp_path / "x/c.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    first, second, third = grays(opened(tmp_path / "x"))
    assert "a.png" in str(first) and second == 9 and "too many pixels" in str(third)


def test_a_folder_that_is_gone_is_no_damage(tmp_path):
    folder = fill(tmp_path / "x")
    source = opened(folder)
    folder.rename(tmp_path / "y")
    with pytest.raises(UnreachableError, match="x is gone or empty"):
        source.check()
    folder.mkdir()
    with pytest.raises(UnreachableError, match="x is gone or empty"):
        source.check()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"every": 2}, "--every is for videos and robot data: .*x is a folder of images; leave it out"),
        ({"path_column": "a"}, "--path-column is for tables and data sets: .*x is a folder of images"),
        ({"cameras": ("a",)}, "--cameras is for robot data"),
        ({"episodes": (1,)}, "--episodes is for robot data"),
        ({"split": "test"}, "--split is for data sets"),
        ({"revision": "main"}, "--revision is for data sets on the hub"),
        ({"image_root": "/"}, "--image-root is for tables, lists"),
    ],
)
def test_an_option_that_no_source_uses_is_an_error(tmp_path, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        opened(fill(tmp_path / "x"), **options)


def test_an_unknown_source_is_one_sentence(tmp_path):
    put(tmp_path / "a.docx", "")
    for source, sentence in [
        (tmp_path / "a.docx", "a.docx is not a source of images: expected images, videos"),
        (tmp_path / "b.png", "there is no file or folder .*b.png"),
        ("photos/b.png", "there is no file or folder photos/b.png"),
        (tmp_path / "b.tar", "there is no file .*b.tar: expected a shard"),
        ("zip://a.png::memory://b.zip", "joins protocols"),
        ("nonsense://a/b", "nonsense"),
    ]:
        with pytest.raises(ValueError, match=sentence):
            opened(source)
    with pytest.raises(ValueError, match="there is no source"):
        open_sources([])
    with pytest.raises(ValueError, match="named twice"):
        opened([tmp_path, tmp_path])
    with pytest.raises(ValueError, match="every is 0"):
        SourceOptions(every=0)
