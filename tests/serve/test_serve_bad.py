"""Observations and messages that no policy can use: one sentence each, and the connection serves on."""

import json
import pickle

import numpy as np
import pytest
from support.robot_clients import (
    Arm,
    Robot,
    as_json,
    http,
    observation,
    packed,
    running,
    seen,
    sees,
)

from vlm_vision.serve.key_map import KeyMap
from vlm_vision.serve.protocols import json_arrays, msgpack_arrays


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
    "camera twice": (seen(top=np.zeros((4, 4, 3), np.uint8)), "camera top is 2 times in the message"),
    "float image": (seen(**{"observation/top": np.zeros((4, 4, 3))}), "camera top.*float64.*uint8"),
    "wrong axes": (seen(**{"observation/top": np.zeros((4, 4, 2), np.uint8)}), r"camera top.*\(4, 4, 2\)"),
    "no image": (seen(**{"observation/top": "a.png"}), "camera top is of type str"),
    "image of gigabytes": (seen(**{"observation/top": np.zeros((1, 2000, 3), np.uint8)}), r"top.*\(1, 2000, 3\).*16"),
    "long side": (seen(**{"observation/top": np.zeros((4097, 300, 3), np.uint8)}), r"top.*\(4097, 300, 3\).*4096"),
    "long with channels first": (seen(**{"observation/top": np.zeros((3, 1, 17), np.uint8)}), r"\(1, 17, 3\)"),
    "NaN": (seen(**{"observation/state": np.array([0.0, np.nan, 1.0])}), "the state is .*nan.*finite"),
    "short state": (seen(**{"observation/state": np.zeros(2)}), r"the state has shape \(2,\)"),
    "no state": (seen(**{"observation/state": None}), "no state"),
    "state in words": (seen(**{"observation/state": "here"}), "not a list of numbers"),
    "key twice": (seen(observation={"top": np.zeros((4, 4, 3), np.uint8)}), "'observation/top' comes twice"),
    "state twice": (seen(state=np.zeros(3)), "the state comes as observation/state and state: send it once"),
    "half a state": (
        seen(**{"observation/state": None, "observation/joint_position": np.zeros(3)}),
        "comes as observation/joint_position: .* observation/joint_position and observation/gripper_position",
    ),
    "no instruction": (seen(prompt=None), "instruction is missing: send it once, as one of .*'prompt'"),
    "empty instruction": (seen(prompt=" "), "expected the task in words"),
    "long instruction": (seen(prompt="go " * 700), "has 2100 characters: expected at most 2000"),
    "instruction with an image": (seen(prompt="go <Image>"), "contains <image>"),
    "instruction of bytes": (seen(prompt=bytes(10_000)), r"the instruction is .{80}: expected the task in words"),
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
    "many lists": (b"\xdc\x0f\xff" + (b"\xdc\x00\x80" + b"\x90" * 128) * 4095, "more than 100000 values"),
    "many maps": (b"\xdc\x0f\xff" + (b"\xdc\x00\x80" + b"\x80" * 128) * 4095, "more than 100000 values"),
    "long list": (b"\xdd\x00\x01\x00\x00" + b"\x90" * 65536, "65536 exceeds max_array_len"),
    "long map": (b"\xdf\x00\x01\x00\x00", "65536 exceeds max_map_len"),
    "extension": (b"\x81\xa1a\xd4\x01\x00", "exceeds max_ext_len"),
    "shape of many sides": (
        seen(**{"observation/state": _array(shape=[1] * 4000)}),
        r"shape \[1, 1.*list of at most 8 sizes",
    ),
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
        "[" * 90_000: "cannot be read as JSON",
        "[" + "[]," * 60_000 + "1]": "more than 100000 brackets and commas",
        json.dumps({"encoded": "[" + "[]," * 60_000 + "1]"}): "more than 100000 brackets and commas",
        json.dumps({"encoded": "\ud800"}): "cannot be read as JSON",
        "[1]": "type list",
        json.dumps({"encoded": "{}", "image": 1}): "one text alone",
        json.dumps({"encoded": [1]}): "one text alone",
        json.dumps({"image": {"__numpy__": "AAAA", "dtype": "|O", "shape": [1]}}): "dtype '|O'",
        json.dumps({"image": {"__numpy__": "not base64!", "dtype": "|u1", "shape": [1]}}): "cannot be read as JSON",
        as_json(seen(**{"observation/state": [1.0, float("nan"), 2.0]})): "finite numbers",
        as_json(seen(**{"observation/state": [10**400, 0, 0]})): "is not a list of numbers",
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


def test_a_message_that_breaks_its_reading_is_refused_in_a_sentence(monkeypatch, caplog):
    def broken(self, message):
        raise OverflowError("a number\nbeyond all")

    monkeypatch.setattr(KeyMap, "observation", broken)
    with running(Arm()) as server, Robot(server.port) as robot:
        for _ in range(2):
            with pytest.raises(
                RuntimeError, match="^reading the message failed with OverflowError: a number beyond all$"
            ):
                robot.infer(seen())
        status, answer, _ = http(server.port, "/act", as_json(seen()))
        assert status == 500 and "OverflowError" in json.loads(answer)["error"]
    assert "in broken" in caplog.text


@pytest.mark.parametrize("state", [["a", "b", "c"], np.array(["1", "2", "3"]), [[1], [1, 2], 3], [10**400, 0, 0]])
def test_a_state_of_anything_but_numbers(state):
    told = observation(seen(**{"observation/state": state}))
    with pytest.raises(ValueError, match=r"the state is \[.*: expected 3 numbers"):
        Arm().spec.check(told)


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
