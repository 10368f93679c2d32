"""Clients that stall, flood or may not come, and what is bounded: no client harms another."""

import json
import time

import numpy as np
import pytest
from support.robot_clients import (
    Arm,
    Robot,
    as_json,
    frame,
    http,
    packed,
    raw,
    rest,
    running,
    seen,
    sees,
    wait_for,
)
from websockets.exceptions import ConnectionClosed, InvalidStatus

from vlm_vision.serve.settings import ServerSettings


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
        second = raw(server.port)  # a request whose beginning came in one packet with another
        second.sendall(
            b"GET /health HTTP/1.1\r\nHost: x\r\n\r\nPOST /act HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{"
        )
        half, begun, parts = (raw(server.port, websocket=True) for _ in range(3))
        half.sendall(message[: len(message) // 2])
        begun.sendall(message[:1])
        parts.sendall(b"\x02\x81" + bytes(4) + b"a")  # a message of several frames, without the last
        for _ in range(5):
            np.testing.assert_array_equal(robot.infer(seen())["actions"], sees(arm, seen()))
        for line in (silent, head, body, second):
            got = rest(line)
            assert b" 408 " in got and b"the request was not complete after 0.5 s: send it without a pause" in got
        for line in (half, begun, parts):
            assert b"the message was not complete after 0.5 s: send it without a pause" in rest(line)
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


def test_floods_are_refused_by_address():
    arm = Arm()
    with running(arm, rate=4) as server, Robot(server.port) as robot, Robot(server.port, address="127.0.0.2") as other:
        for _ in range(10):
            robot.socket.send(packed(seen()))
        outcomes = []
        for _ in range(10):
            try:
                outcomes.append(robot.take() and "answered")
            except RuntimeError as request_error:
                outcomes.append(str(request_error))
        assert 3 <= outcomes.count("answered") < 10
        assert "too many requests: at most 4 a second are answered; ask less often" in outcomes
        np.testing.assert_array_equal(other.infer(seen())["actions"], sees(arm, seen()))
        statuses = [http(server.port, "/act", as_json(seen()))[0] for _ in range(10)]
        assert statuses.count(200) < 10 and set(statuses) == {200, 429}
        with pytest.raises(InvalidStatus, match="429"):  # another connection is no other bucket
            for _ in range(10):
                Robot(server.port).socket.close()


def test_guesses_of_the_token_are_throttled():
    with running(Arm(), rate=4, token="s3cret") as server:
        statuses = []
        for _ in range(8):
            with pytest.raises(InvalidStatus) as caught:
                Robot(server.port, token="guess")
            statuses.append(caught.value.response.status_code)
        assert set(statuses) == {401, 429}
        statuses = [http(server.port, "/metrics", Authorization="Bearer guess")[0] for _ in range(8)]
        assert set(statuses) == {401, 429}


@pytest.mark.parametrize("kind", ["goodbye", "cut websocket", "cut request"])
def test_who_leaves_makes_room_and_is_not_computed(kind):
    arm = Arm()
    arm.hold.clear()
    with running(arm, max_queue=2) as server:
        robots = [Robot(server.port) for _ in range(3)]
        robots[0].socket.send(packed(seen()))
        assert arm.began.wait(5)
        leaving = []
        for _ in range(2):
            line = Robot(server.port).socket if kind == "goodbye" else raw(server.port, websocket="socket" in kind)
            if kind == "goodbye":
                line.send(packed(seen()))
            elif kind == "cut websocket":
                line.sendall(frame(packed(seen())))
            else:
                body = as_json(seen()).encode()
                line.sendall(b"POST /act HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
            leaving.append(line)
        wait_for(lambda: b"vlm_vision_queue_length 2" in http(server.port, "/metrics")[1])
        for line in leaving:
            line.close()
        wait_for(lambda: b"vlm_vision_queue_length 0" in http(server.port, "/metrics")[1])
        for robot in robots[1:]:
            robot.socket.send(packed(seen(1)))
        wait_for(lambda: b"vlm_vision_queue_length 2" in http(server.port, "/metrics")[1])
        arm.hold.set()
        for robot, message in zip(robots, (seen(), seen(1), seen(1)), strict=True):
            np.testing.assert_array_equal(robot.take()["actions"], sees(arm, message))
            robot.socket.close()
        assert arm.batches == [1, 2]


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
        with pytest.raises(RuntimeError, match="2 observations are waiting for the policy already"):
            robots[3].infer(seen())
        with raw(server.port):
            assert b"5 connections are open, the largest number" in rest(raw(server.port))
        arm.hold.set()
        for robot in robots:
            if robot is not robots[3]:
                np.testing.assert_array_equal(robot.take()["actions"], sees(arm, seen()))
            robot.socket.close()


def test_one_address_leaves_room_for_others():
    with running(Arm(), max_connections=5, token="s3cret", stall_s=30) as server:
        silent = [raw(server.port) for _ in range(2)]
        assert b"2 connections of this address are open, the largest number over HTTP" in rest(raw(server.port))
        with Robot(server.port, token="s3cret", address="127.0.0.2") as robot:
            robot.infer(seen())
        for line in silent:
            line.close()


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
    assert ServerSettings(host="::1").token == "" and ServerSettings(host="0.0.0.0", no_token=True).token == ""
    assert "s3cret" not in repr(ServerSettings(host="0.0.0.0", token="s3cret"))
    for wrong, said in (
        ({"host": "0.0.0.0"}, "--no-token"),
        ({"host": "robot.example.org"}, "other machines"),
        ({"max_batch": 0}, "max_batch is 0"),
        ({"rate": 0}, "rate is 0"),
        ({"max_wait_ms": float("nan")}, "max_wait_ms is nan"),
        ({"max_wait_ms": float("inf")}, "max_wait_ms is inf"),
        ({"rate": float("inf")}, "rate is inf"),
        ({"stall_s": float("inf")}, "stall_s is inf"),
        ({"grace_s": 1e300}, "grace_s is 1e\\+300: it must be at least 0 and at most 1000000"),
        ({"max_message_mb": float("inf")}, "max_message_mb is inf"),
        ({"port": 70_000}, "port is 70000"),
        ({"token": "two words"}, "characters"),
    ):
        with pytest.raises(ValueError, match=said):
            ServerSettings(**wrong)
