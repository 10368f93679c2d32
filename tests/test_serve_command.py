"""The command `vlm-vision serve`: its options, its refusals, its end on a signal."""

import os
import signal
import socket
import sys
import threading
import types

import numpy as np
import pytest
from robot_clients import (
    Arm,
    Robot,
    packed,
    refuses_connections,
    seen,
    sees,
    wait_for,
)

from vlm_vision.cli import main


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_the_command_ends_on_a_signal_with_code_0(monkeypatch, capfd, tmp_path, sent):
    arm, answers = Arm(), []
    loaded = types.SimpleNamespace(load_policy=lambda folder, *, statistics, device: arm)
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


def test_the_command_refuses(monkeypatch, capsys, tmp_path):
    monkeypatch.delenv("VLM_VISION_TOKEN", raising=False)
    monkeypatch.setitem(sys.modules, "vlm_vision.vla", types.SimpleNamespace(load_policy=lambda *_, **__: Arm()))
    (tmp_path / "empty").write_text("\n")
    base = ["serve", "--model", "folder", "--statistics", "kitchen"]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        for more, said in (
            (["--host", "0.0.0.0"], "there is no token"),
            (["--map", "top"], "--map top: expected KEY=CAMERA"),
            (["--map", "image=bottom", "--port", "0"], "key image is mapped to 'bottom'"),
            (["--token-file", str(tmp_path / "empty")], "is empty"),
            (["--port", str(taken.getsockname()[1])], "choose another by --port"),
        ):
            assert main([*base, *more]) == 2
            said_all = capsys.readouterr().err
            assert said in said_all and said_all.count("\n") == 1
