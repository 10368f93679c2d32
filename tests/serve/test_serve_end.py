"""How a server ends: by `stop`, by signals, and what becomes of those who wait."""

import threading
import time

import numpy as np
import pytest
from support.robot_clients import (
    Arm,
    Robot,
    as_json,
    frame,
    from_json,
    http,
    packed,
    raw,
    refuses_connections,
    running,
    seen,
    sees,
    wait_for,
)
from websockets.exceptions import ConnectionClosed


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
        wait_for(lambda: refuses_connections(server.port))
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
        with pytest.raises(RuntimeError, match="the policy did not finish within 0.2 s"):
            robot.take()


def test_who_waits_for_a_policy_that_ended_is_refused(caplog):
    arm = Arm()
    arm.hold.clear()
    with running(arm, max_batch=1) as server:
        robots = [Robot(server.port) for _ in range(3)]
        robots[0].socket.send(packed(seen(prompt="exit")))
        assert arm.began.wait(5)
        robots[1].socket.send(packed(seen()))
        wait_for(lambda: b"vlm_vision_queue_length 1" in http(server.port, "/metrics")[1])
        arm.hold.set()
        for robot in robots[:2]:
            with pytest.raises(RuntimeError, match="^the policy has stopped: restart the server$"):
                robot.take()
        with pytest.raises(RuntimeError, match="the policy has stopped"):
            robots[2].infer(seen())
        assert http(server.port, "/act", as_json(seen()))[0] == 503 and http(server.port, "/health")[0] == 503
        for robot in robots:
            robot.socket.close()
    assert "SystemExit: for good" in caplog.text


def test_answers_that_are_being_sent_are_not_cut():
    arm = Arm(chunk=1_000_000)
    with running(arm) as server, raw(server.port, websocket=True) as slow:
        slow.sendall(frame(packed(seen())))
        assert b"\x82" == slow.recv(1)  # the answer has begun, and 28 MB are more than the sockets hold
        server.stop()
        wait_for(lambda: refuses_connections(server.port))
        time.sleep(2)
        taken = 0
        while part := slow.recv(2**20):
            taken += len(part)
        assert taken > 28_000_000
