"""Which key of a message is what, for the clients that are known and those that are told."""

import numpy as np
import pytest
from support.robot_clients import (
    Arm,
)

from vlm_vision.robot.observation import PolicySpec
from vlm_vision.serve.key_map import KeyMap


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


def test_messages_of_aloha_have_a_map_of_images_with_channels_first():
    images = {f"cam_{i}": np.random.default_rng(i).integers(0, 256, (3, 8, 6), dtype=np.uint8) for i in range(2)}
    keys = KeyMap.of(PolicySpec(("cam_0", "cam_1"), 14, state_dim=14), {})
    got = keys.observation({"images": images, "state": np.ones(14), "prompt": "do something"})
    np.testing.assert_array_equal(got.images["cam_1"], images["cam_1"].transpose(1, 2, 0))


def test_what_is_mapped_replaces_the_defaults_of_its_target():
    keys = KeyMap.of(Arm().spec, {"left": "top", "depth": "", "words": "instruction"})
    sent = {"left": np.zeros((2, 2, 3), np.uint8), "wrist": np.ones((2, 2, 3), np.uint8), "depth": 1, "words": "go"}
    assert set(keys.observation(sent | {"state": [1, 2, 3]}).images) == {"top", "wrist"}
    for change in ({"top": sent["left"]}, {"prompt": "go"}):
        with pytest.raises(ValueError, match="unknown key"):
            keys.observation(sent | {"state": [1, 2, 3]} | change)
    with pytest.raises(ValueError, match=r"mapped to 'bottom': expected one of \['top', 'wrist'"):
        KeyMap.of(Arm().spec, {"image": "bottom"})
