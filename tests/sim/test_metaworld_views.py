"""Cameras that hang upside down."""

import numpy as np
import pytest

pytest.importorskip("metaworld", reason="Meta-World is not installed: pip install 'vlm-vision[sim]'")

from vlm_vision.sim.metaworld import MetaWorld  # noqa: E402


def test_upside_down_cameras_are_turned_by_half_a_turn_and_others_are_not() -> None:
    world = MetaWorld("reach-v3", cameras=["corner4", "topview"], size=24)
    images = world.reset(3).images
    for view, turns in (("corner4", 2), ("topview", 0)):
        drawn = world._renderer(world._simulated.data, view, 24, 24)
        np.testing.assert_array_equal(images[view], np.rot90(drawn, turns))
        assert not np.array_equal(images[view], images[view][:, ::-1])
    world.close()
