"""What power cuts and killed processes leave, and labels of two kinds."""

import os
import struct
import time

import pytest
from support.models import make_image
from support.shards import encoded, write_tar

from vlm_vision.data.images.samples import read_samples
from vlm_vision.data.shards.cache import ShardCache
from vlm_vision.data.shards.sizes import SIZES, sizes_of
from vlm_vision.files import whole


@pytest.fixture
def shard(tmp_path):
    """A shard by URL of the local disk, in a cache."""
    write_tar(tmp_path / "x.tar", {f"{i}.jpg": encoded(i) for i in range(3)})
    cache, url = ShardCache(str(tmp_path / "cache")), f"file://{tmp_path}/x.tar"
    with cache.opened(url) as opened:
        assert opened.count == 3
    return cache, url


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:9],
        lambda data: data[:-40] + bytes(40),
        lambda data: bytes(len(data)),
        lambda data: data[:-16] + struct.pack("<qq", 10**15, 80),
    ],
)
def test_a_damaged_shard_of_the_cache_is_fetched_again(shard, damage, caplog):
    cache, url = shard
    path = cache.beside(url)
    good = path.read_bytes()
    path.write_bytes(damage(good))
    with cache.opened(url) as opened:
        assert opened.count == 3 and opened.sample(1)[0] == "1.jpg"
    assert path.read_bytes() == good and "is damaged in the cache" in caplog.text


def test_damaged_and_absurd_sizes_are_not_believed(shard):
    cache, url = shard
    table = cache.beside(url, SIZES)
    for content in ("", "[", "[1]", '{"x.tar": 1000000000000000000}', '{"x.tar": true}'):
        table.write_text(content)
        with pytest.raises(ValueError, match="numbers of samples of 1 of 1 shards are unknown"):
            sizes_of(url, cache)
    table.write_text('{"x.tar": 3}')
    assert sizes_of(url, cache) == {url: 3}


def test_staging_folders_of_killed_processes_are_removed_after_a_day(tmp_path):
    old, young, other = (tmp_path / name for name in (".model.abcd1234", ".model.efgh5678", ".other.abcd1234"))
    for folder in (old, young, other):
        folder.mkdir()
        (folder / "a").write_text("")
    for path in (old / "a", old, other / "a", other):
        os.utime(path, (time.time() - 2 * 24 * 3600,) * 2)
    with whole(tmp_path / "model") as staging:
        (staging / "b").write_text("")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".model.efgh5678", ".other.abcd1234", "model"]


def test_one_odd_label_does_not_rename_all(tmp_path):
    make_image().save(tmp_path / "a.png")
    rows = "".join(f"a.png,{i}\n" for i in range(9))
    (tmp_path / "t.csv").write_text(f"image,label\n{rows}a.png,3x\n")
    with pytest.raises(ValueError, match="record 10, has the label '3x', and most labels are numbers such as 0"):
        read_samples(str(tmp_path / "t.csv"))
    (tmp_path / "t.csv").write_text("image,label\na.png,cat\na.png,3\na.png,dog\n")
    assert read_samples(str(tmp_path / "t.csv")).classes == ("3", "cat", "dog")
