"""The three commands of recipes/configs/vla_smoke.yaml: recorded, learned, let act in closed loop, and served."""

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("metaworld", reason="Meta-World is not installed: pip install 'vlm-vision[sim]'")

pytest.importorskip("websockets", reason="the server is not installed: pip install 'vlm-vision[serve]'")

from support.robot_clients import Robot, as_json, from_json, http, running

from recipes import vla, vla_eval
from vlm_vision.cli.main import main
from vlm_vision.data.lerobot import read_dataset
from vlm_vision.preprocess.images import load_image
from vlm_vision.sim.metaworld import MetaWorld
from vlm_vision.vla import load_policy

CONFIG = Path(__file__).parents[2] / "recipes" / "configs" / "vla_smoke.yaml"
TASK = "button-press-topdown-v3"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    try:
        MetaWorld(TASK, size=32).reset(0)
    except OSError as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("smoke")
    given = ["--tasks", TASK, "--episodes", "4", "--size", "32", "--png", "--out", str(folder / "recorded")]
    assert main(["record", *given]) == 0
    return folder


def test_recorded_learned_in_closed_loop_and_served(folder):
    data = json.dumps({"robot": str(folder / "recorded")})
    config = vla.parse(["--config", str(CONFIG), "--data.train", data, "--out", str(folder / "run")])
    losses = vla.main(config)["losses"]
    assert np.mean(losses[-8:]) < 0.55 * np.mean(losses[:3])
    policy, moment = load_policy(folder / "run/model"), read_dataset(folder / "recorded").frame(0).observation
    assert policy.spec.fps == 80 and policy.spec.action_names == ("x", "y", "z", "gripper")
    assert policy.act([moment]).values.shape == (1, 5, 4)
    given = ["--policy", str(folder / "run/model"), "--tasks", json.dumps([TASK]), "--episodes", "2", "--size", "32"]
    given += ["--controls", '["right"]', "--horizon", "30", "--films", "1", "--out", str(folder / "eval")]
    found = vla_eval.main(vla_eval.parse(given))
    assert [one["steps"] for one in found["right"]["episodes"]] == [30, 30]
    assert (folder / "eval/contact_sheet.png").is_file()
    assert len(list((folder / "eval/videos").rglob("*.mp4"))) == 1
    message = {name: np.asarray(load_image(image)) for name, image in moment.images.items()}
    message |= {"state": np.asarray(moment.state), "prompt": moment.instruction}
    wanted = policy.act([moment]).values[0]
    with running(policy) as server:
        with Robot(server.port) as robot:
            np.testing.assert_allclose(robot.infer(message)["actions"], wanted, rtol=1e-5, atol=1e-6)
        status, body, _ = http(server.port, "/act", as_json(message))
        assert status == 200
        np.testing.assert_allclose(np.stack(from_json(body)), wanted, rtol=1e-5, atol=1e-6)
