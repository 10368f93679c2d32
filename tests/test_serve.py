"""A policy behind real sockets: right answers to two kinds of client, and no client harms another."""

import json
import os
import pickle
import re
import signal
import socket
import sys
import threading
import time
import types
from pathlib import Path

import numpy as np
import pytest
from robot_clients import (
    Arm,
    Robot,
    as_json,
    frame,
    from_json,
    http,
    observation,
    packed,
    raw,
    rest,
    running,
    seen,
)
from websockets.exceptions import ConnectionClosed, InvalidStatus

from vlm_vision.cli import main
from vlm_vision.robot.observation import Observation, PolicySpec
from vlm_vision.serve import json_arrays, msgpack_arrays
from vlm_vision.serve.keys import KeyMap
from vlm_vision.serve.settings import Settings


def sees(arm: Arm, message: dict) -> np.ndarray:
    return arm.expected(observation(message))


def test_openpi():
    arm = Arm(action_names=tuple("abcdefg"), fps=10)
    with running(arm, statistics="kitchen") as server, Robot(server.port) as robot:
        assert robot.metadata["cameras"] == ["top", "wrist"] and robot.metadata["statistics"] == "kitchen"
        assert (robot.metadata["chunk"], robot.metadata["action_dim"], robot.metadata["fps"]) == (4, 7, 10)
        assert robot.metadata["keys"]["observation/top"] == "top"
        for seed in range(3):
            answer = robot.infer(seen(seed))
            np.testing.assert_array_equal(answer["actions"], sees(arm, seen(seed)))
            assert answer["actions"].dtype == np.float32
            timing = answer["server_timing"]
            assert timing["total_ms"] >= timing["infer_ms"] > 0 and timing["queue_ms"] >= 0
            assert ("prev_total_ms" in timing) == (seed > 0)
            assert {"preprocess_ms": 1.0, "encode_ms": 2.0, "prefill_ms": 3.0}.items() <= answer[
                "policy_timing"
            ].items()


@pytest.mark.filterwarnings("ignore:.*context manager:DeprecationWarning")
def test_openpi_client_itself():
    client = pytest.importorskip("openpi_client.websocket_client_policy", reason="pip install --no-deps openpi-client")
    arm = Arm()
    with running(arm, token="s3cret") as server:
        policy = client.WebsocketClientPolicy("127.0.0.1", server.port, api_key="s3cret")
        np.testing.assert_array_equal(policy.infer(seen())["actions"], sees(arm, seen()))
        with pytest.raises(RuntimeError, match="the state is"):
            policy.infer(seen(**{"observation/state": np.full(3, np.nan)}))
        np.testing.assert_array_equal(policy.infer(seen(1))["actions"], sees(arm, seen(1)))
        policy._ws.close()


def test_the_client_of_the_readme():
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    (client,) = re.findall(r"```python\n(import msgpack.*?)```", readme, flags=re.DOTALL)
    arm, message = Arm(cameras=("top",)), seen()
    with running(arm) as server:
        given = {"picture": message["observation/top"], "state": message["observation/state"]}
        exec(client.replace("8000", str(server.port)), given)
    expected = Observation({"top": given["picture"]}, "open the drawer", given["state"])
    np.testing.assert_array_equal(given["actions"], arm.expected(expected))


def test_openvla():
    arm, image = Arm(cameras=("front",), state_dim=0), seen()["observation/top"]
    asked = {"image": image, "instruction": "open the drawer", "unnorm_key": "bridge"}
    expected = np.resize([image.mean(), 15, 0], 7).astype(np.float32)
    with running(arm, statistics="bridge") as server:
        status, body, headers = http(server.port, "/act", as_json(asked))
        assert status == 200
        np.testing.assert_allclose(from_json(body), expected, rtol=1e-6)  # one action, not the chunk
        assert {"queue", "preprocess", "encode", "prefill", "decode", "infer", "total"} == {
            part.split(";")[0].strip() for part in headers["server-timing"].split(",")
        }
        status, body, _ = http(server.port, "/act", json.dumps({"encoded": as_json(asked)}))
        assert status == 200
        np.testing.assert_allclose(from_json(json.loads(body)), expected, rtol=1e-6)

        status, body, _ = http(server.port, "/act", as_json(asked | {"unnorm_key": "fractal"}))
        assert status == 400 and "'fractal'" in json.loads(body)["error"] and "'bridge'" in json.loads(body)["error"]
        assert http(server.port, "/act", as_json({k: v for k, v in asked.items() if k != "unnorm_key"}))[0] == 200


def test_openvla_oft():
    arm = Arm()
    seeing = seen()
    asked = {"full_image": seeing["observation/top"], "wrist_image": seeing["observation/wrist"]}
    asked |= {"state": list(seeing["observation/state"]), "instruction": seeing["prompt"]}
    with running(arm, keys={"full_image": "top", "wrist_image": "wrist"}) as server:
        status, body, _ = http(server.port, "/act", as_json(asked))
        actions = from_json(body)
        assert status == 200 and isinstance(actions, list) and len(actions) == 4
        np.testing.assert_array_equal(np.stack(actions), sees(arm, seeing))


def test_clients_in_one_batch_equal_one_by_one():
    arm = Arm()
    arm.hold.clear()
    with running(arm, max_batch=4) as server:
        robots = [Robot(server.port) for _ in range(7)]
        for seed, robot in enumerate(robots):
            robot.socket.send(packed(seen(seed)))
            if not seed:
                assert arm.began.wait(5)  # the first runs alone, and holds the policy
        wait_for(lambda: b"vlm_vision_queue_length 6" in http(server.port, "/metrics")[1])
        arm.hold.set()
        for seed, robot in enumerate(robots):
            np.testing.assert_array_equal(robot.take()["actions"], sees(arm, seen(seed)))
            robot.socket.close()
        assert arm.batches == [1, 4, 2]


def test_one_that_fails_in_a_batch_fails_alone():
    arm = Arm()
    arm.hold.clear()
    words = ["first", "open", "crash", "diverge", "close"]
    with running(arm) as server:
        robots = [Robot(server.port) for _ in words]
        for word, robot in zip(words, robots, strict=True):
            robot.socket.send(packed(seen(prompt=word)))
            if word == "first":
                assert arm.began.wait(5)
        wait_for(lambda: b"vlm_vision_queue_length 4" in http(server.port, "/metrics")[1])
        arm.hold.set()
        for word, robot in zip(words, robots, strict=True):
            if word in ("crash", "diverge"):
                said = "the policy failed with RuntimeError: out of memory in two lines" if word == "crash" else "NaN"
                with pytest.raises(RuntimeError, match=said):
                    robot.take()
            else:
                np.testing.assert_array_equal(robot.take()["actions"], sees(arm, seen(prompt=word)))
            robot.infer(seen())  # the connection serves on
            robot.socket.close()
        assert http(server.port, "/healthz")[0] == 200


def test_a_policy_unlike_its_spec():
    arm = Arm()
    arm.expected = lambda observation: np.zeros((3, 7), dtype=np.float32)
    with (
        running(arm) as server,
        Robot(server.port) as robot,
        pytest.raises(RuntimeError, match=r"\(1, 3, 7\), its spec"),
    ):
        robot.infer(seen())


class Bait:
    """Says so if it is unpickled."""

    unpickled = False

    def __reduce__(self):
        return setattr, (Bait, "unpickled", True)


def _array(**fields) -> dict[bytes, object]:
    return {b"__ndarray__": True, b"data": bytes(8), b"dtype": "<f8", b"shape": [1]} | {
        name.encode(): value for name, value in fields.items()
    }


BAD = {
    "unknown camera": (seen(**{"observation/left": np.zeros((4, 4, 3), np.uint8)}), "observation/left.*'top', 'wrist'"),
    "missing camera": (seen(**{"observation/wrist": None}), "camera wrist is missing.*observation/wrist"),
    "camera twice": (seen(top=np.zeros((4, 4, 3), np.uint8)), "camera top is given 2 times"),
    "float picture": (seen(**{"observation/top": np.zeros((4, 4, 3))}), "camera top.*float64.*uint8"),
    "wrong axes": (seen(**{"observation/top": np.zeros((4, 4, 2), np.uint8)}), r"camera top.*\(4, 4, 2\)"),
    "no picture": (seen(**{"observation/top": "a.png"}), "camera top is of type str"),
    "NaN": (seen(**{"observation/state": np.array([0.0, np.nan, 1.0])}), "the state is .*nan.*finite"),
    "short state": (seen(**{"observation/state": np.zeros(2)}), r"the state has shape \(2,\)"),
    "no state": (seen(**{"observation/state": None}), "no state"),
    "state in words": (seen(**{"observation/state": "here"}), "no list of numbers"),
    "state twice": (seen(state=np.zeros(3)), "the state is given as observation/state and state: give it once"),
    "half a state": (
        seen(**{"observation/state": None, "observation/joint_position": np.zeros(3)}),
        "given as observation/joint_position: .* observation/joint_position and observation/gripper_position",
    ),
    "no instruction": (seen(prompt=None), "instruction is missing: give it once, as one of .*'prompt'"),
    "empty instruction": (seen(prompt=" "), "say in words"),
    "objects": (seen(**{"observation/state": _array(dtype="|O")}), r"dtype '\|O'"),
    "structures": (seen(**{"observation/state": _array(dtype="|V8")}), r"dtype '\|V8'"),
    "too few bytes": (seen(**{"observation/state": _array(shape=[2**20, 2**20])}), "came with 8 bytes"),
    "negative shape": (seen(**{"observation/state": _array(shape=[-1])}), r"shape \[-1\]"),
    "scalar of objects": (
        seen(**{"observation/state": {b"__npgeneric__": True, b"dtype": "O", b"data": 1}}),
        "dtype 'O'",
    ),
    "no map": ([1, 2], "type list: expected a map"),
    "garbage": (b"\xc1garbage", "cannot be read as msgpack"),
    "pickle": (pickle.dumps(Bait()), "cannot be read as msgpack|expected a map"),
    "pickle inside": (seen(**{"observation/top": pickle.dumps(Bait())}), "camera top is of type bytes"),
    "pickle as array": (seen(**{"observation/top": _array(data=pickle.dumps(Bait()), dtype="O")}), "dtype 'O'"),
    "text": ("do something", "the message is text"),
    "deep": (b"\x81\xa1a" * 2000 + b"\x01", "cannot be read as msgpack"),
}


def test_bad_observations_are_refused_in_one_sentence():
    arm = Arm()
    with running(arm) as server, Robot(server.port) as robot:
        for name, (message, said) in BAD.items():
            with pytest.raises(RuntimeError, match=said) as caught:
                robot.ask(message if isinstance(message, bytes | str) else packed(message))
            assert "\n" not in str(caught.value), name
            np.testing.assert_array_equal(robot.infer(seen())["actions"], sees(arm, seen()), err_msg=name)
    assert not Bait.unpickled and len(arm.batches) == len(BAD)


def test_bad_requests_over_http():
    bodies = {
        "{": "cannot be read as JSON",
        "[" * 100_000: "cannot be read as JSON",
        "[1]": "type list",
        json.dumps({"encoded": "{}", "image": 1}): "that text alone",
        json.dumps({"encoded": [1]}): "that text alone",
        json.dumps({"image": {"__numpy__": "AAAA", "dtype": "|O", "shape": [1]}}): "dtype '|O'",
        json.dumps({"image": {"__numpy__": "not base64!", "dtype": "|u1", "shape": [1]}}): "cannot be read as JSON",
        as_json(seen(**{"observation/state": [1.0, float("nan"), 2.0]})): "finite numbers",
        as_json(seen(prompt="crash")): "the policy failed",
        as_json(seen() | {"unnorm_key": "bridge"}): "without a name",
    }
    arm = Arm()
    with running(arm) as server:
        for body, said in bodies.items():
            status, answer, _ = http(server.port, "/act", body)
            assert status == (500 if "crash" in body else 400) and said in json.loads(answer)["error"], body[:100]
        assert http(server.port, "/act")[0] == 405 and http(server.port, "/nothing")[0] == 404
        assert http(server.port, "/act", as_json(seen()))[0] == 200


def test_mutated_messages_raise_nothing_but_value_errors():
    random, keys = np.random.default_rng(0), KeyMap.of(Arm().spec, {})
    small = seen(
        **{"observation/top": np.zeros((2, 2, 3), np.uint8), "observation/wrist": np.zeros((1, 1, 3), np.uint8)}
    )
    refused = 0
    for read, whole in ((msgpack_arrays.unpack, packed(small)), (json_arrays.loads, as_json(small).encode())):
        for _ in range(500):
            data = bytearray(whole[: random.integers(1, len(whole) + 1)] if random.random() < 0.3 else whole)
            for place in random.integers(0, len(data), 3):
                data[place] = random.integers(0, 256)
            try:
                keys.observation(read(bytes(data)))
            except ValueError:
                refused += 1
    assert 500 < refused < 1000


@pytest.mark.parametrize(
    ("cameras", "state_dim", "message"),
    [
        (
            ("image", "wrist_image"),
            8,
            ["observation/image", "observation/wrist_image", "observation/state:8"],
        ),  # LIBERO
        (
            ("exterior_image_1_left", "wrist_image_left"),
            8,
            [
                "observation/exterior_image_1_left",
                "observation/wrist_image_left",
                "observation/gripper_position:1",
                "observation/joint_position:7",
            ],
        ),  # DROID
        (("full_image", "left_wrist_image"), 14, ["full_image", "left_wrist_image", "state:14"]),  # OFT on ALOHA
        (("front",), 0, ["image"]),  # OpenVLA
    ],
)
def test_messages_of_known_clients_need_no_map(cameras, state_dim, message):
    sent = {"prompt": "go"}
    for key in message:
        name, _, size = key.partition(":")
        sent[name] = np.arange(int(size)) + int(size) if size else np.full((4, 4, 3), len(sent), np.uint8)
    got = KeyMap.of(PolicySpec(cameras, 7, state_dim=state_dim), {}).observation(sent)
    assert [int(np.asarray(got.images[name]).mean()) for name in cameras] == list(range(1, 1 + len(cameras)))
    if "observation/joint_position" in sent:  # joints first, in whichever order they came
        np.testing.assert_array_equal(got.state, [7, 8, 9, 10, 11, 12, 13, 1])


def test_messages_of_aloha_have_a_map_of_pictures_with_channels_first():
    pictures = {f"cam_{i}": np.random.default_rng(i).integers(0, 256, (3, 8, 6), dtype=np.uint8) for i in range(2)}
    keys = KeyMap.of(PolicySpec(("cam_0", "cam_1"), 14, state_dim=14), {})
    got = keys.observation({"images": pictures, "state": np.ones(14), "prompt": "do something"})
    np.testing.assert_array_equal(got.images["cam_1"], pictures["cam_1"].transpose(1, 2, 0))


def test_what_is_mapped_replaces_the_defaults_of_its_target():
    keys = KeyMap.of(Arm().spec, {"left": "top", "depth": "", "words": "instruction"})
    sent = {"left": np.zeros((2, 2, 3), np.uint8), "wrist": np.ones((2, 2, 3), np.uint8), "depth": 1, "words": "go"}
    assert set(keys.observation(sent | {"state": [1, 2, 3]}).images) == {"top", "wrist"}
    for change in ({"top": sent["left"]}, {"prompt": "go"}):
        with pytest.raises(ValueError, match="unknown key"):
            keys.observation(sent | {"state": [1, 2, 3]} | change)
    with pytest.raises(ValueError, match=r"mapped to 'bottom': expected one of \['top', 'wrist'"):
        KeyMap.of(Arm().spec, {"image": "bottom"})


def test_who_stalls_is_let_go_and_the_others_served():
    arm = Arm()
    with running(arm, stall_s=0.5) as server, Robot(server.port) as robot:
        message = frame(packed(seen()))
        with raw(server.port) as garbage:
            garbage.sendall(b"\x16\x03\x01 this is not HTTP\r\n\r\n")
            assert b" 400 " in rest(garbage)
        silent, head, body = raw(server.port), raw(server.port), raw(server.port)
        head.sendall(b"POST /act HTTP/1.1\r\nHos")
        body.sendall(b"POST /act HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{")
        half, begun, parts = (raw(server.port, websocket=True) for _ in range(3))
        half.sendall(message[: len(message) // 2])
        begun.sendall(message[:1])
        parts.sendall(b"\x02\x81" + bytes(4) + b"a")  # a message of several frames, without the last
        for _ in range(5):
            np.testing.assert_array_equal(robot.infer(seen())["actions"], sees(arm, seen()))
        for line in (silent, head, body):
            got = rest(line)
            assert b" 408 " in got and b"the request was not complete after 0.5 s: send it at once" in got
        for line in (half, begun, parts):
            assert b"the message was not complete after 0.5 s: send it at once" in rest(line)
        time.sleep(0.2)
        robot.infer(seen())  # silence between messages is no stall


def test_who_does_not_take_answers_is_let_go():
    arm = Arm(chunk=20_000)
    with running(arm, stall_s=0.5) as server, Robot(server.port) as robot:
        deaf = raw(server.port, websocket=True)
        with deaf:
            deaf.settimeout(0.5)
            with pytest.raises((OSError, TimeoutError)):  # 560 kB for each, until the server takes no more
                for _ in range(10_000):
                    deaf.sendall(frame(packed(seen())))
            assert robot.infer(seen())["actions"].shape == (20_000, 7)
            deaf.settimeout(10)
            with pytest.raises(OSError):
                while True:
                    deaf.sendall(bytes(1000))
                    time.sleep(0.05)


def test_floods_are_refused():
    arm = Arm()
    with running(arm, rate=4) as server, Robot(server.port) as robot, Robot(server.port) as other:
        for _ in range(10):
            robot.socket.send(packed(seen()))
        outcomes = []
        for _ in range(10):
            try:
                outcomes.append(robot.take() and "answered")
            except RuntimeError as refusal:
                outcomes.append(str(refusal))
        assert 4 <= outcomes.count("answered") < 10
        assert "too many requests: at most 4 a second are answered; ask less often" in outcomes
        np.testing.assert_array_equal(other.infer(seen())["actions"], sees(arm, seen()))
        statuses = [http(server.port, "/act", as_json(seen()))[0] for _ in range(10)]
        assert 4 <= statuses.count(200) < 10 and set(statuses) == {200, 429}


def test_the_queue_and_the_connections_are_bounded():
    arm = Arm()
    arm.hold.clear()
    with running(arm, max_queue=2, max_connections=5) as server:
        robots = [Robot(server.port) for _ in range(4)]
        robots[0].socket.send(packed(seen()))
        assert arm.began.wait(5)
        for robot in robots[1:3]:
            robot.socket.send(packed(seen()))
        wait_for(lambda: b"vlm_vision_queue_length 2" in http(server.port, "/metrics")[1])
        with pytest.raises(RuntimeError, match="2 observations wait for the policy already"):
            robots[3].infer(seen())
        with raw(server.port):
            assert b"5 connections are open, which is the most" in rest(raw(server.port))
        arm.hold.set()
        for robot in robots:
            if robot is not robots[3]:
                np.testing.assert_array_equal(robot.take()["actions"], sees(arm, seen()))
            robot.socket.close()


def test_messages_too_large():
    arm = Arm()
    with running(arm, max_message_mb=0.05) as server, Robot(server.port) as other:
        with Robot(server.port) as robot, pytest.raises(ConnectionClosed, match="1009"):
            robot.ask(bytes(60_000))
        status, answer, _ = http(server.port, "/act", b" " * 60_000)
        assert status == 413 and "larger than 0.05 MiB" in json.loads(answer)["error"]
        with raw(server.port) as line:  # a size that is told by nobody
            line.sendall(b"POST /act HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
            for _ in range(6):
                line.sendall(b"2710\r\n" + b" " * 10_000 + b"\r\n")
            assert b" 413 " in line.recv(4096)
        np.testing.assert_array_equal(other.infer(seen())["actions"], sees(arm, seen()))


def test_tokens():
    arm = Arm()
    with running(arm, token="s3cret") as server:
        with Robot(server.port, token="s3cret") as robot:
            np.testing.assert_array_equal(robot.infer(seen())["actions"], sees(arm, seen()))
        for wrong in ("", "s3cre", "s3cret2"):
            with pytest.raises(InvalidStatus) as caught:
                Robot(server.port, token=wrong)
            assert caught.value.response.status_code == 401 and b"token" in (caught.value.response.body or b"")
        body = as_json(seen())
        assert http(server.port, "/act", body, Authorization="Bearer s3cret")[0] == 200
        assert http(server.port, "/act", body, Authorization="Basic s3cret")[0] == 401
        status, answer, _ = http(server.port, "/act", body)
        assert status == 401 and "Authorization: Bearer TOKEN" in json.loads(answer)["error"]
        assert http(server.port, "/metrics")[0] == 401 and http(server.port, "/healthz")[:2] == (200, b"OK\n")
    with running(arm) as server:
        status, answer, _ = http(server.port, "/act", body, Origin="https://example.org")
        assert status == 403 and "browser" in json.loads(answer)["error"]


def test_settings_are_checked():
    assert Settings(host="::1").token == "" and Settings(host="0.0.0.0", no_token=True).token == ""
    assert "s3cret" not in repr(Settings(host="0.0.0.0", token="s3cret"))
    for wrong, said in (
        ({"host": "0.0.0.0"}, "--no-token"),
        ({"host": "robot.example.org"}, "other machines"),
        ({"max_batch": 0}, "max_batch is 0"),
        ({"rate": 0}, "rate is 0"),
        ({"max_wait_ms": float("nan")}, "max_wait_ms is nan"),
        ({"port": 70_000}, "port is 70000"),
        ({"token": "two words"}, "characters"),
    ):
        with pytest.raises(ValueError, match=said):
            Settings(**wrong)


def test_stopping_answers_what_is_in_flight_and_refuses_what_comes():
    arm = Arm()
    arm.hold.clear()
    with running(arm) as server:
        flying, late = Robot(server.port), Robot(server.port)
        flying.socket.send(packed(seen(1)))
        posted = []
        thread = threading.Thread(target=lambda: posted.append(http(server.port, "/act", as_json(seen(2)))))
        thread.start()
        assert arm.began.wait(5)
        wait_for(lambda: b"vlm_vision_queue_length 1" in http(server.port, "/metrics")[1] or arm.batches == [2])
        server.stop()
        wait_for(lambda: _refuses_connections(server.port))
        with pytest.raises(RuntimeError, match="the server is stopping"):
            late.infer(seen())
        arm.hold.set()
        np.testing.assert_array_equal(flying.take()["actions"], sees(arm, seen(1)))
        thread.join(10)
        np.testing.assert_array_equal(np.stack(from_json(posted[0][1])), sees(arm, seen(2)))
        for robot in (flying, late):
            with pytest.raises(ConnectionClosed):
                robot.socket.recv(10)


def test_a_policy_that_never_ends_does_not_keep_the_server():
    arm = Arm()
    arm.hold.clear()
    with running(arm, grace_s=0.2) as server, Robot(server.port) as robot:
        robot.socket.send(packed(seen()))
        assert arm.began.wait(5)
        server.stop()
        with pytest.raises(RuntimeError, match="the policy was not done within 0.2 s"):
            robot.take()


def test_metrics_count():
    arm = Arm()
    with running(arm) as server, Robot(server.port) as robot:
        for _ in range(3):
            robot.infer(seen())
        with pytest.raises(RuntimeError):
            robot.infer(seen(prompt=""))
        http(server.port, "/act", as_json(seen()))
        status, body, headers = http(server.port, "/metrics")
        samples = dict(line.rsplit(" ", 1) for line in body.decode().splitlines() if not line.startswith("#"))
        assert status == 200 and headers["content-type"].startswith("text/plain; version=0.0.4")
        assert samples['vlm_vision_requests_total{protocol="websocket",status="200"}'] == "3"
        assert samples['vlm_vision_requests_total{protocol="websocket",status="400"}'] == "1"
        assert samples['vlm_vision_requests_total{protocol="http",status="200"}'] == "1"
        assert samples['vlm_vision_batches_total{size="1"}'] == "4"
        assert samples['vlm_vision_stage_seconds_count{stage="encode"}'] == "4"
        assert float(samples['vlm_vision_stage_seconds_sum{stage="encode"}']) == pytest.approx(0.008)
        assert samples["vlm_vision_queue_length"] == "0"


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_the_command_ends_on_a_signal_with_code_0(monkeypatch, capfd, tmp_path, sent):
    arm, answers = Arm(), []
    loaded = types.SimpleNamespace(load_policy=lambda folder, *, statistics, device: arm)
    monkeypatch.setitem(sys.modules, "vlm_vision.vla", loaded)
    (tmp_path / "token").write_text("s3cret\n")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]

    def client() -> None:
        wait_for(lambda: not _refuses_connections(port))
        arm.hold.clear()
        with Robot(port, token="s3cret") as robot:
            robot.socket.send(packed(seen(left=seen()["observation/top"], **{"observation/top": None})))
            arm.began.wait(5)
            os.kill(os.getpid(), sent)
            wait_for(lambda: _refuses_connections(port))
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


def wait_for(condition) -> None:
    until = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


def _refuses_connections(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except ConnectionRefusedError:
        return True
    return False
