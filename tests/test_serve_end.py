"""How a server ends: by `stop`, by signals, and what becomes of those who wait."""

import threading

import numpy as np
import pytest
from robot_clients import (
    Arm,
    Robot,
    as_json,
    from_json,
    http,
    packed,
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
        with pytest.raises(RuntimeError, match="the policy was not done within 0.2 s"):
            robot.take()
