"""Controls of a policy's success: blank images, and shuffled instructions."""

import random
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from vlm_vision.preprocess.images import load_image
from vlm_vision.robot.observation import Observation

GRAY = 128


def blank_images(observation: Observation) -> Observation:
    """The same moment with mid-gray images, each of its own size."""
    sizes = {name: load_image(image).size for name, image in observation.images.items()}
    grays = {name: np.full((height, width, 3), GRAY, dtype=np.uint8) for name, (width, height) in sizes.items()}
    return replace(observation, images=grays)


def shuffled_instructions(instructions: Mapping[str, str], seed: int = 0) -> dict[str, str]:
    """Task -> the instruction of another task: one ring through all tasks, drawn by `seed` (Sattolo 1986).

    Raises:
        ValueError: fewer than two tasks, or two with the same words.
    """
    if len(instructions) < 2 or len(set(instructions.values())) < len(instructions):
        raise ValueError(
            f"the instructions are {dict(instructions)}: expected two tasks or more, with different instructions"
        )
    tasks = list(instructions)
    given, drawn = tasks.copy(), random.Random(seed)
    for last in range(len(given) - 1, 0, -1):
        other = drawn.randrange(last)
        given[last], given[other] = given[other], given[last]
    return {task: instructions[other] for task, other in zip(tasks, given, strict=True)}
