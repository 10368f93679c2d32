"""The command `vlm-vision serve`: its options, its refusals, its end on a signal."""

import os
import signal
import socket
import sys
import threading
import time
import types

import numpy as np
import pytest
import torch
from support.robot_clients import (
    Arm,
    Robot,
    packed,
    refuses_connections,
    seen,
    sees,
    wait_for,
)
from websockets.exceptions import ConnectionClosed

from vlm_vision.cli.main import main


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_the_command_ends_on_a_signal_with_code_0(monkeypatch, capfd, tmp_path, sent):
    arm, answers = Arm(), []
    loaded = types.SimpleNamespace(load_policy=lambda folder, *, statistics, device, graphs: arm)
    monkeypatch.setitem(sys.modules, "vlm_vision.vla", loaded)
    (tmp_path / "token").write_text("s3cret\n")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]

    def client() -> None:
        wait_for(lambda: not refuses_connections(port))
        arm.hold.clear()
        with Robot(port, token="s3cret") as robot:
            robot.socket.send(packed(seen(left=seen()["observation/top"], **{"observation/top": None})))
            arm.began.wait(5)
            os.kill(os.getpid(), sent)
            wait_for(lambda: refuses_connections(port))
            arm.hold.set()
            answers.append(robot.take()["actions"])

    thread = threading.Thread(target=client)
    thread.start()
    arguments = ["--model", "folder", "--statistics", "kitchen", "--port", str(port), "--map", "left=top"]
    assert main(["serve", *arguments, "--token-file", str(tmp_path / "token"), "--max-wait-ms", "0"]) == 0
    thread.join(10)
    np.testing.assert_array_equal(answers[0], sees(arm, seen()))
    assert f"ws://127.0.0.1:{port}" in capfd.readouterr().out


def test_a_second_sigint_waits_for_nothing(monkeypatch):
    arm = Arm()
    monkeypatch.setitem(sys.modules, "vlm_vision.vla", types.SimpleNamespace(load_policy=lambda *_, **__: arm))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]

    def client() -> None:
        wait_for(lambda: not refuses_connections(port))
        arm.hold.clear()
        with Robot(port) as robot:
            robot.socket.send(packed(seen()))
            arm.began.wait(5)
            os.kill(os.getpid(), signal.SIGINT)
            wait_for(lambda: refuses_connections(port))
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGTERM)  # which does not take it back
            with pytest.raises(ConnectionClosed):
                robot.take()

    before = signal.signal(signal.SIGTERM, lambda *_: None)  # should it come when the server has ended
    try:
        thread, began = threading.Thread(target=client), time.monotonic()
        thread.start()
        given = ["serve", "--model", "folder", "--statistics", "kitchen", "--port", str(port), "--grace-s", "60"]
        assert main(given) == 0
        assert time.monotonic() - began < 15  # the policy would take 20 s
        thread.join(10)
    finally:
        signal.signal(signal.SIGTERM, before)
        arm.hold.set()


def test_what_is_said_of_a_policy_is_passed_on_if_it_is_said(monkeypatch, capsys):
    given = []

    def load(folder, **options):
        given.append(options)
        raise ValueError("seen")

    monkeypatch.setitem(sys.modules, "vlm_vision.vla", types.SimpleNamespace(load_policy=load))
    base = ["serve", "--model", "folder", "--statistics", "kitchen"]
    published = [
        "--cameras",
        "full",
        "wrist",
        "--chunk",
        "8",
        "--normalization",
        "min_max",
        "--evaluation",
        "openvla_oft",
    ]
    for more in ([], [*published, "--crop", "--graphs", "2", "--dtype", "bfloat16"]):
        assert main([*base, *more]) == 2
    assert capsys.readouterr().err == "vlm-vision serve: seen\n" * 2
    always = {"statistics": "kitchen", "device": torch.device("cpu")}
    told = {
        "cameras": ["full", "wrist"],
        "chunk": 8,
        "normalization": "min_max",
        "evaluation": "openvla_oft",
        "crop": True,
        "dtype": torch.bfloat16,
    }
    assert given == [always | {"graphs": 0}, always | {"graphs": 2} | told]


def test_a_policy_of_our_own_tells_all_of_itself(capsys, tmp_path):
    base = ["serve", "--model", str(tmp_path), "--statistics", "kitchen"]
    for more in (["--cameras", "top"], ["--chunk", "4"], ["--evaluation", "openvla", "--crop"]):
        assert main([*base, *more]) == 2
        said = capsys.readouterr().err
        assert f"is not a folder of OpenVLA, which alone takes {more[0][2:]}" in said and said.count("\n") == 1


def test_the_command_refuses(monkeypatch, capsys, tmp_path):
    monkeypatch.delenv("VLM_VISION_TOKEN", raising=False)
    monkeypatch.setitem(sys.modules, "vlm_vision.vla", types.SimpleNamespace(load_policy=lambda *_, **__: Arm()))
    (tmp_path / "empty").write_text("\n")
    base = ["serve", "--model", "folder", "--statistics", "kitchen"]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        for more, said in (
            (["--host", "0.0.0.0"], "there is no token"),
            (["--crop"], "--crop needs --evaluation"),
            (["--map", "top"], "--map top: expected KEY=CAMERA"),
            (["--map", "image=bottom", "--port", "0"], "key image is mapped to 'bottom'"),
            (["--token-file", str(tmp_path / "empty")], "is empty"),
            (["--port", str(taken.getsockname()[1])], "choose another port with --port"),
        ):
            assert main([*base, *more]) == 2
            said_all = capsys.readouterr().err
            assert said in said_all and said_all.count("\n") == 1
