"""What reaches the model of an observation, and of steps past the end."""

import numpy as np
import torch
from support.policies import made, observation

from vlm_vision.robot.observation import Observation
from vlm_vision.vla import VLAPolicy


def test_cameras_are_read_by_name_whatever_their_order() -> None:
    policy, sent = VLAPolicy(made("parallel")), observation(1)
    turned = Observation(dict(reversed(sent.images.items())), sent.instruction, sent.state)
    assert list(turned.images) == list(reversed(policy.spec.cameras))
    np.testing.assert_array_equal(policy.act([turned]).values, policy.act([sent]).values)
    first, second = policy.spec.cameras
    swapped = Observation({first: sent.images[second], second: sent.images[first]}, sent.instruction, sent.state)
    assert np.abs(policy.act([swapped]).values - policy.act([sent]).values).max() > 1e-6


def test_flow_sums_the_error_of_the_steps_before_the_end(monkeypatch) -> None:
    head = made("flow").head
    monkeypatch.setattr(head, "prefill", lambda prefix: None)
    monkeypatch.setattr(head, "velocity", lambda cache, actions, time: torch.zeros_like(actions))
    noise, actions = torch.randn(2, 4, 3), torch.randn(2, 4, 3)
    padded = torch.tensor([[False, False, False, True], [False, True, True, True]])
    loss = head.loss(None, actions, padded, noise=noise, time=torch.tensor([0.3, 0.8]))
    expected = (noise - actions)[~padded].square().sum()
    torch.testing.assert_close(loss, expected)
