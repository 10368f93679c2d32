"""WebDataset shards, local and by URL."""

import json

import fsspec
import pytest
from support.shards import write_tar
from support.sources import grays, keys, opened, png, put

from vlm_vision.data.shards.cache import ShardCache
from vlm_vision.tokens.sources.shards import shard_names


def members(first, count):
    found = {}
    for i in range(first, first + count):
        found[f"{i:03}.png"] = png(10 * i)
        if i % 3 == 0:
            found[f"{i:03}.json"] = json.dumps({"caption": f"json {i}"}).encode()
        if i % 3 != 2:
            found[f"{i:03}.txt"] = f"text {i}".encode()
        if i % 2:
            found[f"{i:03}.cls"] = str(i).encode()
    return found


def write_shards(folder):
    folder.mkdir(parents=True)
    for shard in range(3):
        write_tar(folder / f"{shard:02}.tar", members(3 * shard, 3))
    return folder


def check_all(source):
    items = list(source.items())
    assert [one.key for one in items] == [f"{i // 3:02}.tar/{i:03}.png" for i in range(9)]
    assert [one.caption for one in items] == [[f"json {i}", f"text {i}", None][i % 3] for i in range(9)]
    assert [one.label for one in items] == [i if i % 2 else None for i in range(9)]
    assert grays(source) == [10 * i for i in range(9)]
    assert grays(source, items[2:5]) == [20, 30, 40]
    source.check()


def test_shards_of_a_folder_a_pattern_and_braces(tmp_path):
    folder = write_shards(tmp_path / "x")
    put(folder / "readme.txt", "")
    for source in (folder, folder / "*.tar", folder / "{00..02}.tar", folder / "{00,01,02}.tar"):
        check_all(opened(source))
    check_all(opened([folder / f"0{i}.tar" for i in range(3)]))


def test_shards_by_url(tmp_path):
    folder = write_shards(tmp_path / "x")
    memory = fsspec.filesystem("memory")
    memory.put(str(folder), "/shards_by_url", recursive=True)
    cache = ShardCache(str(tmp_path / "cache"))
    for source in ("memory://shards_by_url/{00..02}.tar", "memory://shards_by_url/*.tar", "memory://shards_by_url"):
        check_all(opened(source, cache=cache))
    with pytest.raises(ValueError, match="03.tar is missing"):
        keys(opened("memory://shards_by_url/{02..03}.tar", cache=cache))


def test_shards_of_one_name_keep_the_folders_that_differ(tmp_path):
    assert shard_names(["a/b/0.tar", "a/c/0.tar", "a/1.tar"]) == {
        "a/b/0.tar": "b/0.tar",
        "a/c/0.tar": "c/0.tar",
        "a/1.tar": "1.tar",
    }
    assert list(shard_names(["0.tar", "a/0.tar"]).values()) == ["0.tar", "a/0.tar"]
    write_shards(tmp_path / "x/a"), write_shards(tmp_path / "x/b/c")
    source = opened(tmp_path / "x/**/*.tar")
    listed = keys(source)
    assert len(set(listed)) == 18 and {listed[0], listed[9]} == {"a/00.tar/000.png", "b/c/00.tar/000.png"}
    assert grays(source) == [10 * i for i in range(9)] * 2


def test_a_damaged_or_empty_shard_is_one_sentence(tmp_path, caplog):
    write_tar(tmp_path / "a.tar", members(0, 3))
    put(tmp_path / "b.tar", (tmp_path / "a.tar").read_bytes()[:1500])
    with pytest.raises(ValueError, match="b.tar .*(cut short|not a complete)"):
        keys(opened(tmp_path / "b.tar"))
    with pytest.raises(ValueError, match="c.tar hold no image: expected members"):
        keys(opened(write_tar(tmp_path / "c.tar", {"0.txt": b"a"})))
    assert keys(opened(write_tar(tmp_path / "d.tar", {"0.txt": b"a", "1.png": png(1)}))) == ["d.tar/1.png"]
    assert "1 of 2 samples of the shards have no image" in caplog.text
    damaged = opened(write_tar(tmp_path / "e.tar", {"0.png": png(1)[:50], "1.png": png(1)}))
    found = grays(damaged)
    assert "e.tar/0.png cannot be decoded" in str(found[0]) and found[1] == 1
