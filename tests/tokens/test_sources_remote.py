"""Folders, patterns, tables, lists and images by URL."""

import json
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.sources import grays, keys, opened, png, put

from vlm_vision.data.shards import fetch
from vlm_vision.data.shards.fetch import UnreachableError

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")  # the server
NAMES = ["a b.png", "a-b/c.png", "a.png", "a/d.png", "é.png"]


def fill(folder):
    for number, name in enumerate(NAMES):
        put(folder / name, png(10 * number))
    put(folder / ".hidden/a.png", b"")
    put(folder / "list.txt", "a.png\na b.png\n")
    put(folder / "t.csv", "path,label\na.png,1\na/d.png,2\n")
    put(folder / "t.json", json.dumps([{"path": "a.png"}, {"path": "é.png"}]))
    pq.write_table(pa.table({"path": ["a/d.png"]}), folder / "t.parquet")
    return folder


@pytest.fixture
def memory(tmp_path):
    system = fsspec.filesystem("memory")
    system.put(str(fill(tmp_path / "x")), f"/{tmp_path.name}", recursive=True)
    yield f"memory://{tmp_path.name}"
    system.rm(f"/{tmp_path.name}", recursive=True)


@pytest.fixture
def web(tmp_path, monkeypatch):
    monkeypatch.setattr(fetch, "RETRY_DELAYS", (0.01,))
    monkeypatch.setattr(SimpleHTTPRequestHandler, "log_message", lambda *_: None)
    server = ThreadingHTTPServer(
        ("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(fill(tmp_path / "x")))
    )
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_folder_and_a_pattern_by_url(memory):
    source = opened(memory)
    assert keys(source) == NAMES and grays(source) == [0, 10, 20, 30, 40]
    source.check()
    source = opened(f"{memory}/a*/*.png")
    assert keys(source) == ["a-b/c.png", "a/d.png"] and grays(source) == [10, 30]
    source.check()
    with pytest.raises(ValueError, match="nothing is missing"):
        keys(opened(f"{memory}/nothing"))
    with pytest.raises(ValueError, match="no image and no video among its matches"):
        keys(opened(f"{memory}/*.gif"))


def test_a_file_url_is_a_local_path(tmp_path):
    fill(tmp_path / "x y")
    source = opened((tmp_path / "x y").as_uri())
    assert keys(source) == NAMES and grays(source) == [0, 10, 20, 30, 40]


@pytest.mark.parametrize("place", ["memory", "web"])
def test_lists_tables_and_images_by_url(place, request, tmp_path):
    base = request.getfixturevalue(place)
    for name, expected in [
        ("list.txt", {"a.png": 20, "a b.png": 0}),
        ("t.csv", {"a.png": 20, "a/d.png": 30}),
        ("t.json", {"a.png": 20, "é.png": 40}),
        ("t.parquet", {"a/d.png": 30}),
        ("a b.png", {"a b.png": 0}),
    ]:
        source = opened(f"{base}/{name}")
        assert dict(zip(keys(source), grays(source), strict=True)) == expected
        source.check()
    local = put(tmp_path / "urls.txt", f"{base}/a.png\n{base}/missing.png\n")
    source = opened(local)
    found = grays(source)
    assert keys(source)[0] == f"{base}/a.png" and found[0] == 20 and "missing.png is missing" in str(found[1])
    assert grays(opened(put(tmp_path / "p.csv", "image\na/d.png\n"), image_root=base)) == [30]


def test_a_query_is_no_wildcard_and_no_suffix(web):
    source = opened([f"{web}/a.png?width=3", f"{web}/%C3%A9.png?a=b.txt"])
    assert keys(source) == ["a.png", "é.png"] and grays(source) == [20, 40]


def test_folders_of_web_servers_are_listed_or_name_the_package(web):
    try:
        import aiohttp  # noqa: F401
    except ImportError:
        with pytest.raises(ValueError, match="needs another package: .*aiohttp"):
            keys(opened(web))
    else:
        assert keys(opened(web)) == NAMES


def test_videos_by_url(memory, tmp_path):
    pytest.importorskip("av")
    from test_sources_videos import numbers, write_video

    system = fsspec.filesystem("memory")
    system.put(str(write_video(tmp_path / "b.mp4", 9)), f"/{tmp_path.name}/b.mp4")
    system.pipe(f"/{tmp_path.name}/c.mp4", b"no video")
    source = opened(f"{memory}/*.mp4", every=4)
    assert keys(source) == ["b.mp4/0", "b.mp4/4", "b.mp4/8", "c.mp4"]
    found = grays(source)
    assert numbers(found[:3]) == [0, 4, 8] and f"{memory[len('memory://') :]}/c.mp4 cannot be decoded" in str(found[3])


def test_robot_data_by_url_is_one_sentence(memory):
    fsspec.filesystem("memory").pipe(f"{memory[len('memory:/') :]}/meta/info.json", b"{}")
    with pytest.raises(ValueError, match="is robot data, whose videos are read locally"):
        opened(memory)


def test_a_place_that_cannot_be_reached_stops_the_run(web, tmp_path, monkeypatch):
    source = opened(f"{web}/list.txt")
    items = list(source.items())
    monkeypatch.setattr(fetch.urllib.request, "urlopen", refuse)
    images = source.images(items)
    with pytest.raises(UnreachableError, match="a.png cannot be fetched"):
        next(images).read()  # pyright: ignore
    with pytest.raises(UnreachableError, match="list.txt cannot be reached"):
        source.check()
    with pytest.raises(UnreachableError, match="list.txt cannot be fetched"):
        keys(source)


def refuse(*_, **__):
    raise OSError("connection refused")


def test_a_folder_that_cannot_be_reached_stops_the_run(memory, monkeypatch):
    source = opened(memory)
    monkeypatch.setattr(fsspec.get_filesystem_class("memory"), "ls", refuse)
    with pytest.raises(UnreachableError, match="cannot be reached .connection refused.: start again later"):
        source.check()
    with pytest.raises(UnreachableError):
        keys(source)
