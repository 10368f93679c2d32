"""The page of a server: it computes what is asked for, for this machine alone."""

import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import uvicorn
from starlette.testclient import TestClient
from support.models import make_image

import vlm_vision as vv
from vlm_vision.page.compute.attention import LayerAttention
from vlm_vision.page.compute.trace import attention_layers
from vlm_vision.page.look import shown_encoders, shown_images
from vlm_vision.page.server import LookService, application

OWN = {"X-Vlm-Vision": "1"}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Layers whose attention was computed."""
    layers: list[tuple[int, ...]] = []

    def noted(encoder: Any, pixels: Any, chosen: Any) -> dict[int, LayerAttention]:
        layers.append(tuple(chosen))
        return attention_layers(encoder, pixels, chosen)

    monkeypatch.setattr("vlm_vision.page.server.attention_layers", noted)
    return layers


@pytest.fixture
def service() -> LookService:
    return LookService(shown_encoders("mini", pairs=True), shown_images([make_image(0, 60, 80)], ["one"]))


@pytest.fixture
def client(service: LookService) -> TestClient:
    return TestClient(application(service), base_url="http://127.0.0.1")


@pytest.fixture
def address(service: LookService) -> Iterator[str]:
    """Of a running server."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(application(service), log_level="error"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
        server.should_exit = True
        thread.join()


def test_layers_are_computed_when_someone_looks_at_them(visit: Any, address: str, asked: list, tmp_path):
    one = visit(address)
    assert asked == [(5,)], "the page opens with one layer"
    one.ask("choose", {"layer": 2})
    one.ask("choose", {"layer": 5})
    assert asked == [(5,), (2,)]
    encoder = vv.load("mini")
    expected = attention_layers(encoder, encoder.preprocess(make_image(0, 60, 80)), [2])[2].weights(9)[1]
    got = one.ask("attention", {"layer": 2, "head": 1, "token": 9})
    np.testing.assert_allclose(got, expected, atol=1e-6)
    make_image(3, 50, 50).save(tmp_path / "new.png")
    one.tab.set_input_files("input[type=file]", tmp_path / "new.png")
    one.wait("() => window.vlmVision.state().image === 1")
    one.ask("choose", {"tab": "text"})
    one.tab.fill("input[type=text]", "a blue circle")
    one.tab.click("button[type=submit]")
    one.wait("() => document.querySelector('.reading').textContent.includes('blue circle')")
    assert all(url.startswith((address, "data:", "blob:")) for url in one.requests)


def test_another_site_cannot_ask(client: TestClient, asked: list):
    assert client.get("/", headers={"Host": "evil.example"}).status_code == 400
    assert client.get("/attention/0/0/0/1").status_code == 403
    assert client.post("/image?name=a", content=b"x").status_code == 403
    assert asked == [] and client.get("/").status_code == 200


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("attention/0/0/0/9", "layer is 9: expected 0 to 5"),
        ("attention/3/0/0/1", "encoder is 3"),
        ("attention/0/4/0/1", "image is 4"),
    ],
)
def test_numbers_that_do_not_exist(client: TestClient, path: str, words: str):
    answer = client.get(f"/{path}", headers=OWN)
    assert answer.status_code == 400 and words in answer.text


def test_a_file_that_is_no_image(client: TestClient, service: LookService):
    answer = client.post("/image?name=notes.txt", content=b"hello", headers=OWN)
    assert answer.status_code == 400 and answer.text.startswith("notes.txt is not an image")
    answer = client.post("/image?name=huge.png", content=b"0" * (33 * 1024 * 1024), headers=OWN)
    assert answer.status_code == 400 and "shrink" in answer.text
    assert "notes.txt" not in service.page()


def test_texts(client: TestClient):
    answer = client.post("/text", json={"encoder": 0, "text": "a cat"}, headers=OWN).json()
    assert answer["names"] == ["a cat"] and answer["features"]["shape"] == [1, 192]
    assert client.post("/text", content=b"[]", headers=OWN).status_code == 400
