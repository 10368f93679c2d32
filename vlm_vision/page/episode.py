"""A policy in a recorded episode: what its actions depend on, and how far they are from the recorded ones."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vlm_vision.data.lerobot import read_dataset
from vlm_vision.page.arrays import Arrays, image_url
from vlm_vision.page.compute.cover import covered
from vlm_vision.preprocess.images import load_image
from vlm_vision.robot.observation import Observation
from vlm_vision.robot.policy import Policy

_MOMENTS, _GRID, _SIDE = 12, (5, 5), 320
"""Most moments of an episode, squares that are covered one at a time, and the longer side of a frame in the page."""


def episode_part(policy: Policy, source: str, arrays: Arrays) -> tuple[dict[str, Any], Image.Image]:
    """What the page shows of an episode, and the first image of its first camera.

    errors: (moments,) root mean square distance of the first predicted action from the recorded one; changes: (moments,
    cameras, squares) the same distance of that action from the one with a covered square. Both in standard deviations of
    the episode's actions.

    Args:
        source: folder of a LeRobotDataset, or FOLDER:N for its episode N.

    Raises:
        ValueError: no such data set or episode, or one whose cameras or actions the policy does not have.
    """
    folder, _, number = source.rpartition(":") if source.rpartition(":")[2].isdigit() else (source, "", "0")
    dataset = read_dataset(Path(folder) if Path(folder).exists() else folder, episodes=[int(number)])
    actions = np.asarray(dataset.column("action"), dtype=np.float64)
    if actions.shape[1] != policy.spec.action_dim:
        raise ValueError(
            f"actions of {folder} have {actions.shape[1]} numbers, and those of the policy {policy.spec.action_dim}: pass an "
            "episode of the policy's own robot"
        )
    deviation = np.maximum(actions.std(axis=0), 1e-6)
    moments = sorted({round(at) for at in np.linspace(0, len(actions) - 1, _MOMENTS)})
    cameras, errors, changes, frames = policy.spec.cameras, [], [], []
    for moment in moments:
        seen = dataset.frame(moment).observation
        if missing := [name for name in cameras if name not in seen.images]:
            raise ValueError(
                f"{folder} has cameras {sorted(seen.images)}, but the policy uses {list(cameras)}: it lacks {', '.join(missing)}"
            )
        seen = replace(seen, images={name: load_image(seen.images[name]) for name in cameras})
        own = policy.act([seen]).values[0, 0]
        errors.append(_distance(own, actions[moment], deviation))
        changes.append([_changes(policy, seen, camera, own, deviation) for camera in cameras])
        frames.append([_frame(seen.images[name]) for name in cameras])
    first = load_image(dataset.frame(0).observation.images[cameras[0]])
    part = {
        "task": dataset.frame(0).observation.instruction,
        "moments": moments,
        "cameras": list(cameras),
        "errors": arrays.add(np.array(errors)),
        "grid": list(_GRID),
        "changes": arrays.add(np.array(changes)),
        "frames": frames,
    }
    return part, first


def _changes(policy: Policy, seen: Observation, camera: str, own: np.ndarray, deviation: np.ndarray) -> list[float]:
    """How far the first action moves for each covered square of one camera."""
    images = covered(load_image(seen.images[camera]), _GRID)
    observations = [replace(seen, images={**seen.images, camera: image}) for image in images]
    return [_distance(values[0], own, deviation) for values in policy.act(observations).values]


def _distance(one: np.ndarray, other: np.ndarray, deviation: np.ndarray) -> float:
    return float(np.sqrt(np.mean(((one - other) / deviation) ** 2)))


def _frame(image: Any) -> str:
    shown = load_image(image)
    shown.thumbnail((_SIDE, _SIDE))
    return image_url(shown, exact=False)
