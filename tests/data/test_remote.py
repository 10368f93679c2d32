"""Shards by URL: the same samples as local ones, each once in an epoch, however many processes; damage is counted."""

import errno
import json
import logging
import pickle
import re
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from support.shards import VIEW, encoded, write_tar

from vlm_vision.cli.main import main
from vlm_vision.data.images.batches import ImageDataset, Skipped
from vlm_vision.data.images.samples import Samples, read_samples
from vlm_vision.data.shards import cache as shard_cache
from vlm_vision.data.shards import fetch
from vlm_vision.data.shards.cache import ShardCache
from vlm_vision.data.stored_image import open_stored_images
from vlm_vision.preprocess.images import load_image
from vlm_vision.train.image_data import image_batches, read_data
from vlm_vision.train.loop.prefetch import Prefetcher
from vlm_vision.train.loop.sampler import StepBatches
from vlm_vision.train.settings import ImageData, Training

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")  # the server
SIZES = (5, 4, 6, 5, 3, 5)
NUMBER = sum(SIZES)


def write_shards(folder: Path) -> None:
    """As img2dataset writes them; sample i has the caption "i" and the label i % 3."""
    folder.mkdir()
    row = 0
    for shard, size in enumerate(SIZES):
        members = {}
        for key in range(size):
            name = f"{shard:05}{key:04}"
            members |= {f"{name}.jpg": encoded(row), f"{name}.json": json.dumps({"caption": str(row)}).encode()}
            members |= {f"{name}.txt": str(row).encode(), f"{name}.cls": str(row % 3).encode()}
            row += 1
        write_tar(folder / f"{shard:05}.tar", members)
        (folder / f"{shard:05}_stats.json").write_text(json.dumps({"count": size + 1, "successes": size}))


class Server(ThreadingHTTPServer):
    """Files of a folder, with byte ranges."""

    daemon_threads = True

    def __init__(self, folder: Path):
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder, self.asked, self.lock = folder, [], threading.Lock()
        self.breaks: Counter[str] = Counter()
        """How many more answers of a file end after 5000 bytes."""
        self.refused: Counter[str] = Counter()
        """How many more requests of a file are answered with HTTP 503."""
        self.latency = 0.0
        self.url = f"http://127.0.0.1:{self.server_port}"

    @property
    def shards(self) -> str:
        return f"{self.url}/{{00000..{len(SIZES) - 1:05}}}.tar"

    def gets(self, suffix: str = ".tar") -> Counter[str]:
        return Counter(path[1:] for method, path, _ in self.asked if method == "GET" and path.endswith(suffix))


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        server, name = self.server, self.path[1:]
        time.sleep(server.latency)
        with server.lock:
            server.asked.append((self.command, self.path, self.headers.get("Range")))
            refused, broken = server.refused[name] > 0, body and server.breaks[name] > 0
            server.refused[name] -= refused
            server.breaks[name] -= broken
        file = server.folder / name
        if refused or not file.is_file():
            self.send_error(503 if refused else 404)
            return
        data, tag = file.read_bytes(), f'"{file.stat().st_mtime_ns}"'
        start = int(re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "bytes=0-")).group(1))
        if self.headers.get("If-Range", tag) != tag:
            start = 0
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(data) - start))
        self.send_header("ETag", tag)
        self.end_headers()
        if body:
            self.wfile.write(data[start : start + 5000] if broken else data[start:])

    def log_message(self, *about) -> None:
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(fetch, "RETRY_DELAYS", (0.01, 0.01, 0.01))
    write_shards(tmp_path / "served")
    server = Server(tmp_path / "served")
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def cache(tmp_path: Path, gb: float = 1.0, name: str = "cache") -> ShardCache:
    return ShardCache(str(tmp_path / name), gb)


def seen(samples: Samples) -> list[tuple]:
    return [
        (np.asarray(load_image(open_stored_images([one.image])[0])).tobytes(), one.caption, one.label)
        for one in samples
    ]


def rows_seen(samples: Samples, *, steps: int, first_step: int = 0, rank: int = 0, ranks: int = 1, workers: int = 0):
    """Captions of every batch, as a process of a recipe draws them."""
    settings = Training(out="", batch_size=4, micro_batch_size=2, steps=steps, seed=7, workers=workers)
    accelerator = SimpleNamespace(process_index=rank, num_processes=ranks, device=SimpleNamespace(type="cpu"))
    batches = image_batches(settings, accelerator, samples, [VIEW], first_step=first_step)  # type: ignore[arg-type]
    return [piece.captions for pieces in batches for piece in pieces]


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*/*.tar"))


def test_shards_by_url_give_the_samples_of_local_ones_and_are_fetched_once(server, tmp_path):
    local = read_samples(str(tmp_path / "served"))
    remote = read_samples(server.shards, cache=cache(tmp_path), classes=3)
    assert len(remote) == NUMBER and remote.classes == local.classes == ("0", "1", "2")
    assert not server.gets(), "nothing is fetched before it is wanted"
    assert seen(remote) == seen(local) == seen(pickle.loads(pickle.dumps(remote)))
    assert seen(remote[7:11]) == seen(local[7:11])
    assert set(server.gets().values()) == {1} and len(server.gets()) == len(SIZES)
    assert str(remote[9].image) == f"{server.url}/00002.tar/000020000.jpg"
    assert remote[0].image.version() != remote[1].image.version()
    again = read_samples(server.shards, cache=cache(tmp_path))
    assert [one.label for one in again] == [-1] * NUMBER and set(server.gets("stats.json").values()) == {1}


def test_any_protocol_of_fsspec_is_read(tmp_path):
    write_shards(tmp_path / "served")
    source = f"file://{tmp_path}/served/{{00000..{len(SIZES) - 1:05}}}.tar"
    samples = read_samples(source, cache=cache(tmp_path), classes=3)
    assert seen(samples) == seen(read_samples(str(tmp_path / "served")))
    with pytest.raises(
        ValueError, match="^zz://a/sizes.json cannot be read .* expected https:// or a protocol of fsspec"
    ):
        read_samples("zz://a/0.tar", cache=cache(tmp_path))


def order(together: int, **options) -> StepBatches:
    return StepBatches(
        **(dict(num_records=NUMBER, batch_size=4, micro_batch_size=2, steps=21, seed=3) | options),
        shards=SIZES,
        together=together,
    )


@pytest.mark.parametrize("together", [1, 2, 4, 6, 100])
def test_an_order_by_shards_shows_each_record_once_and_keeps_to_its_group(together):
    rows = sum(order(together), [])
    epochs = [rows[:28], rows[28:56], rows[56:84]]
    assert all(len(set(epoch)) == 28 for epoch in epochs) and epochs[0] != epochs[1] != epochs[2]
    shard_of = np.repeat(np.arange(len(SIZES)), SIZES)
    for epoch in epochs:
        shards = list(dict.fromkeys(shard_of[epoch].tolist()))
        for at in range(0, len(SIZES), together):
            places = [i for i, row in enumerate(epoch) if shard_of[row] in shards[at : at + together]]
            assert places == list(range(places[0], places[-1] + 1)), "a group is finished before the next one begins"


@pytest.mark.parametrize("first_step", [0, 3, 7, 10, 20])
def test_an_order_by_shards_goes_on_at_any_step(first_step):
    assert list(order(2, first_step=first_step)) == list(order(2))[2 * first_step :]
    assert list(order(2, first_step=first_step).coming(4)) == list(order(2).coming(4))[first_step:]


def test_an_epoch_by_shards_misses_no_record_where_batches_divide_it():
    assert sorted(sum(order(2, batch_size=7, micro_batch_size=1, steps=4), [])) == list(range(NUMBER))


def test_what_comes_is_what_is_drawn_from_next():
    shard_of = np.repeat(np.arange(len(SIZES)), SIZES)
    steps = [sum(pair, []) for pair in zip(*[iter(order(2))] * 2, strict=True)]
    for step, (rows, coming) in enumerate(zip(steps, order(2).coming(4), strict=True)):
        assert set(shard_of[rows]) <= set(coming), step
        assert set(shard_of[sum(steps[step : step + 2], [])]) <= set(coming)


def test_a_remote_epoch_equals_the_local_one_of_the_same_order(server, tmp_path):
    remote, _ = read_data(ImageData(train=server.shards, cache=str(tmp_path / "cache"), shuffle_shards=2))
    local, _ = read_data(ImageData(train=str(tmp_path / "served"), shuffle_shards=2))
    assert rows_seen(remote, steps=14) == rows_seen(local, steps=14)


def test_two_processes_of_two_workers_see_each_sample_once_and_go_on_in_the_middle(server, tmp_path):
    samples = read_samples(server.shards, cache=cache(tmp_path), shuffle_shards=2)
    whole = rows_seen(samples, steps=14)
    found: dict[int, list] = {}

    def run(rank: int) -> None:
        found[rank] = rows_seen(fresh, steps=14, rank=rank, ranks=2, workers=2)

    fresh = read_samples(server.shards, cache=cache(tmp_path, name="other"), shuffle_shards=2)
    before = server.gets()
    ranks = [threading.Thread(target=run, args=(rank,)) for rank in range(2)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()
    both = [piece for pair in zip(found[0], found[1], strict=True) for piece in pair]
    assert both == whole and len(set(sum(whole[:14], []))) == 28
    assert set((server.gets() - before).values()) == {1}, "processes that want the same shard fetch it once"
    assert rows_seen(fresh, steps=14, first_step=5, rank=1, ranks=2, workers=2) == found[1][5:]


def test_the_cache_keeps_to_its_budget_and_drops_what_was_not_used_for_long(server, tmp_path):
    largest = max(path.stat().st_size for path in (tmp_path / "served").glob("*.tar"))
    small = cache(tmp_path, 2.5 * largest / 1e9)
    samples = read_samples(server.shards, cache=small, shuffle_shards=2)
    held = []
    for row in (0, 5, 0, 9, 0, 15, 20, 25):
        samples[row]
        held.append(sum(path.stat().st_size for path in (tmp_path / "cache").glob("*/*.tar")))
    assert max(held) <= small.gb * 1e9
    assert server.gets() == {f"{i:05}.tar": 1 for i in range(6)}, "the one that is used again and again stays"
    assert files(tmp_path / "cache")[-1] == "00005.tar" and not list((tmp_path / "cache").glob("*/*.part"))
    assert rows_seen(samples, steps=14) == rows_seen(read_samples(str(tmp_path / "served"), shuffle_shards=2), steps=14)


def test_an_image_that_is_open_outlives_its_shard(server, tmp_path):
    small = cache(tmp_path, 1e-9)
    with small.opened(f"{server.url}/00000.tar", 5) as first:
        with small.opened(f"{server.url}/00001.tar", 4):
            assert files(tmp_path / "cache") == ["00001.tar"]
        name, places = first.sample(4)
        first.file.seek(places.image)
        assert (name, first.file.read(places.image_size)) == ("000000004.jpg", encoded(4))


def test_a_cache_too_small_for_the_shards_that_are_shuffled_is_refused(server, tmp_path):
    with pytest.raises(ValueError, match="holds 0 shards .* 6 are shuffled together: raise data.cache_gb"):
        read_samples(server.shards, cache=cache(tmp_path, 1e-6))
    with pytest.raises(ValueError, match="0 GB: expected more"):
        ImageData(train="x", cache_gb=0)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "0.jpg").write_bytes(encoded(0))
    with pytest.raises(ValueError, match="has no shards: leave data.shuffle_shards empty"):
        read_data(ImageData(train=str(tmp_path / "a"), shuffle_shards=2))


def test_a_broken_connection_goes_on_where_it_broke(server, tmp_path):
    server.breaks["00000.tar"], server.refused["00001.tar"] = 4, 2
    samples = read_samples(server.shards, cache=cache(tmp_path))
    assert seen(samples[:9]) == [(*rest, -1) for *rest, _ in seen(read_samples(str(tmp_path / "served"))[:9])]
    ranges = [sent for method, path, sent in server.asked if method == "GET" and path == "/00000.tar"]
    assert ranges == [None, *(f"bytes={5000 * i}-" for i in range(1, 5))]


def test_a_file_that_changed_meanwhile_is_fetched_from_its_beginning(server, tmp_path):
    server.breaks["00000.tar"] = 1
    target, old = tmp_path / "served" / "00000.tar", fetch.time.sleep

    def change(seconds: float) -> None:
        if server.gets()["00000.tar"] == 1:
            target.write_bytes((tmp_path / "served" / "00002.tar").read_bytes())
        old(seconds)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fetch.time, "sleep", change)
        assert fetch.fetch_temporary(f"{server.url}/00000.tar") == (tmp_path / "served" / "00002.tar").read_bytes()


def test_a_server_that_is_away_stops_the_run_and_counts_nothing_as_bad(server, tmp_path):
    samples = read_samples(server.shards, cache=cache(tmp_path))
    server.refused["00000.tar"] = 100
    with pytest.raises(fetch.UnreachableError, match="00000.tar cannot be fetched .HTTP 503.*: start again"):
        ImageDataset(samples, [VIEW])[0]
    assert not list((tmp_path / "cache").glob("*/*.part"))
    server.refused.clear()
    assert ImageDataset(samples, [VIEW])[0].caption == "0"


@pytest.mark.parametrize("workers", [0, 2])
def test_the_samples_of_a_missing_or_cut_shard_are_bad_and_replaced_by_those_of_the_next(
    server, tmp_path, caplog, workers
):
    samples = read_samples(server.shards, cache=cache(tmp_path), shuffle_shards=2)
    (tmp_path / "served" / "00001.tar").unlink()
    cut = tmp_path / "served" / "00003.tar"
    with open(cut, "r+b") as file:
        file.truncate(cut.stat().st_size * 3 // 10)
    images, skipped = ImageDataset(samples, [VIEW]), Skipped()
    with caplog.at_level(logging.WARNING):
        taken = [images[row] for row in range(NUMBER)]
    # Rows 5..8 are lost, and those as far into 00002.tar taken; of 00003.tar, rows 15..19, the first two are whole: those of 00004.tar.
    expected = [*range(5), 9, 10, 11, 12, *range(9, 15), 15, 16, 22, 20, 21, *range(20, 28)]
    assert [int(item.caption) for item in taken] == expected
    assert sum(len(item.skipped) for item in taken) == 7 and server.gets()["00001.tar"] == 1
    assert [len([one for one in caplog.messages if name in one]) for name in ("00001.tar", "00003.tar")] == [1, 1]
    assert "00001.tar is missing (HTTP 404 Not Found): its 4 samples count as bad" in caplog.text
    assert "it was cut short, download it again: 2 samples of 5" in caplog.text

    settings = Training(out="", batch_size=4, micro_batch_size=4, steps=7, workers=workers)
    accelerator = SimpleNamespace(process_index=0, num_processes=1, device=SimpleNamespace(type="cpu"))
    batches = image_batches(settings, accelerator, samples, [VIEW], first_step=0)  # type: ignore[arg-type]
    for (piece,) in batches:
        skipped.add(piece)
    assert (skipped.bad, skipped.seen) == (7, 35)


def test_a_shard_with_fewer_samples_than_told_and_one_that_is_no_tar_file(server, tmp_path, caplog):
    (tmp_path / "served" / "sizes.json").write_text(json.dumps({"00000.tar": 6, "00001.tar": 4}))
    (tmp_path / "served" / "00001.tar").write_bytes(b"<html>" * 500)
    samples = read_samples(server.shards, cache=cache(tmp_path))
    assert len(samples) == NUMBER + 1 and server.gets("_stats.json").total() == 4
    taken = [ImageDataset(samples, [VIEW])[row] for row in (5, 6)]
    assert [item.caption for item in taken] == ["10", "9"]
    assert [len(item.skipped) for item in taken] == [2, 1]
    assert "00000.tar: 5 samples of 6" in caplog.text


def test_a_label_that_is_no_class_is_a_bad_sample(server, tmp_path):
    samples = read_samples(server.shards, cache=cache(tmp_path), classes=2)
    item = ImageDataset(samples, [VIEW], needs=("label",))[2]
    assert item.label == 0 and "label '2': expected a number below 2" in item.skipped[0].reason


def test_unknown_sizes_are_refused_until_counted(server, tmp_path, capsys):
    (tmp_path / "served" / "00002_stats.json").unlink()
    with pytest.raises(ValueError, match=r"1 of 6 shards are unknown, such as .*00002.tar: .* 00002_stats.json .* vlm-vision sizes"):
        read_samples(server.shards, cache=cache(tmp_path))
    assert main(["sizes", server.shards, "--cache", str(tmp_path / "cache")]) == 0
    assert "sizes.json: 28 samples" in capsys.readouterr().out
    assert len(read_samples(server.shards, cache=cache(tmp_path))) == NUMBER

    assert main(["sizes", str(tmp_path / "served" / "{00000..00005}.tar")]) == 0
    stats = server.gets("_stats.json")
    assert len(read_samples(server.shards, cache=cache(tmp_path, name="new"))) == NUMBER
    assert server.gets("_stats.json") == stats
    assert main(["sizes", f"{server.url}/a.zip", "--cache", str(tmp_path / "cache")]) == 2
    assert "a.zip is not a shard: expected .tar files by URL" in capsys.readouterr().err


def test_shards_are_fetched_before_they_are_wanted(server, tmp_path):
    samples = read_samples(server.shards, cache=cache(tmp_path), shuffle_shards=2)
    assert samples.shards and samples.shards.fetch
    batches = iter(Prefetcher(order(2), samples.shards.fetch, number=samples.shards.near))
    next(batches)
    wanted = [f"{shard:05}.tar" for shard in next(order(2).coming(4))]
    until = time.monotonic() + 10
    while files(tmp_path / "cache") != sorted(wanted) and time.monotonic() < until:
        time.sleep(0.01)
    assert files(tmp_path / "cache") == sorted(wanted)
    batches.close()  # type: ignore[attr-defined]


def test_a_disk_that_is_full_stops_the_run_too(server, tmp_path, monkeypatch):
    def full(*paths):
        raise OSError(errno.ENOSPC, "No space left on device")

    samples = read_samples(server.shards, cache=cache(tmp_path))
    monkeypatch.setattr(shard_cache.os, "replace", full)
    with pytest.raises(
        fetch.UnreachableError, match="00000.tar cannot be written .No space left on device.: make room"
    ):
        ImageDataset(samples, [VIEW])[0]


def test_what_the_cache_may_fill_does_not_make_another_run(server):
    from recipes.mae import MaeConfig, MaeModelSettings

    encoder = dict(image_size=8, patch_size=4, embed_dim=8, depth=1, num_heads=1, mlp_dim=8)
    one, other, third = (
        MaeConfig(
            out="a", data=ImageData(train="x", **changes), model=MaeModelSettings(encoder=encoder)
        ).resume_fields()
        for changes in ({}, {"cache": "elsewhere", "cache_gb": 2}, {"shuffle_shards": 4})
    )
    assert one == other != third
