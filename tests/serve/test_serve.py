"""A policy behind real sockets: right answers to two kinds of client, alone and in batches."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from support.robot_clients import (
    Arm,
    Robot,
    as_json,
    from_json,
    http,
    packed,
    running,
    seen,
    sees,
    wait_for,
)

from vlm_vision.robot.observation import Observation
from vlm_vision.robot.policy import Actions


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


@pytest.mark.parametrize("first", ["import msgpack", "import base64"])
def test_the_clients_of_the_docs(first):
    page = (Path(__file__).parents[2] / "docs" / "serving.md").read_text()
    (client,) = re.findall(rf"```python\n({first}.*?)```", page, flags=re.DOTALL)
    arm, names = Arm(cameras=("front",)), {}
    with running(arm) as server:
        exec(client.replace("8000", str(server.port)), names)
    expected = Observation({"front": names["image"]}, "push the block", names["state"])
    np.testing.assert_array_equal(np.stack(names["actions"]), arm.expected(expected))


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
        pytest.raises(RuntimeError, match=r"\(1, 3, 7\), expected"),
    ):
        robot.infer(seen())


def test_stages_that_are_no_numbers_fail_their_request_alone():
    class Vague(Arm):
        def act(self, observations):
            return Actions(super().act(observations).values, {"encode": None} if len(self.batches) == 1 else {})  # type: ignore[dict-item]

    arm = Vague()
    with running(arm) as server, Robot(server.port) as robot:
        with pytest.raises(RuntimeError, match="the policy failed with TypeError"):
            robot.infer(seen())
        np.testing.assert_array_equal(robot.infer(seen())["actions"], sees(arm, seen()))


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
