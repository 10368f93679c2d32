"""Map from the keys of a client's message to cameras, instruction and state."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from vlm_vision.robot.observation import Observation, PolicySpec

INSTRUCTION, STATE, IGNORED = "instruction", "state", ""
_INSTRUCTION_KEYS = ("prompt", "instruction")
_STATES = (("observation/state",), ("state",), ("observation/joint_position", "observation/gripper_position"))
_CAMERA_KEYS = ("{}", "observation/{}", "images/{}")
_ONLY_CAMERA_KEYS = ("image", "observation/image", "full_image")
_MOST_PIXELS, _MOST_ASPECT = 4096, 16
"""Largest side, and largest ratio of sides: a resize of the shorter side must not make gigabytes of the longer."""


@dataclass(frozen=True)
class KeyMap:
    """From messages to observations.

    A key of a dictionary inside a message is written `outer/inner`.

    Args:
        spec: of the policy.
        targets: key -> camera, "instruction", "state", or "" to ignore it.
        states: which keys, all of them and in this order, make a state; a message has those of one row.
    """

    spec: PolicySpec
    targets: Mapping[str, str]
    states: tuple[tuple[str, ...], ...]

    @classmethod
    def of(cls, spec: PolicySpec, mapping: Mapping[str, str]) -> "KeyMap":
        """The keys that openpi's LIBERO, DROID and ALOHA clients, OpenVLA's and OFT's send; `mapping` overrides them.

        A camera NAME is read from NAME, observation/NAME or images/NAME; a policy's only camera from image,
        observation/image and full_image too. An entry of `mapping` for a camera, the instruction or the state replaces
        these keys.

        Raises:
            ValueError: a target that the policy does not have; a camera with the name of another part.
        """
        if taken := {INSTRUCTION, STATE} & set(spec.cameras):
            raise ValueError(
                f"a camera has the name {min(taken)}, which is reserved for another part of a message: rename the camera"
            )
        known = [*spec.cameras, INSTRUCTION, STATE]
        for key, target in mapping.items():
            if target not in [*known, IGNORED]:
                raise ValueError(
                    f"key {key} is mapped to {target!r}: expected one of {known}, or an empty target to ignore it"
                )
        only = _ONLY_CAMERA_KEYS if len(spec.cameras) == 1 else ()
        keys = {name: [*(key.format(name) for key in _CAMERA_KEYS), *only] for name in spec.cameras}
        mapped = tuple(key for key, target in mapping.items() if target == STATE)
        states = (mapped,) if mapped else _STATES
        keys |= {INSTRUCTION: list(_INSTRUCTION_KEYS), STATE: [key for row in states for key in row]}
        targets = dict(mapping)
        for target in known:
            if target not in mapping.values():
                targets |= {key: target for key in keys[target] if key not in targets}
        return cls(spec, targets, states)

    def observation(self, message: object) -> Observation:
        """A checked observation, its images converted.

        Raises:
            ValueError: unknown keys, a camera or the instruction missing or given twice, an image that is too large or too
                long, and what `spec.check` refuses.
        """
        if not isinstance(message, Mapping):
            raise ValueError(f"the message is of type {type(message).__name__}: expected a map from keys to values")
        values: dict[str, object] = {}
        for key, value in _flat(message):
            if key in values:
                raise ValueError(
                    f"key {key[:80]!r} comes twice, at the top level and inside a dictionary: send it once"
                )
            values[key] = value
        if unknown := [key for key in values if key not in self.targets]:
            raise ValueError(
                f"unknown key {unknown[0][:80]!r}: the policy uses cameras {list(self.spec.cameras)}, and the known keys are "
                f"{[key for key, target in self.targets.items() if target]}; the server's --map KEY=CAMERA adds one"
            )
        images = {camera: _image(camera, self._one(camera, values)) for camera in self.spec.cameras}
        return self.spec.check(Observation(images, self._one(INSTRUCTION, values), self._state(values)))

    def _one(self, target: str, values: Mapping[str, object]) -> Any:
        keys = self._keys(target)
        present = [key for key in keys if key in values]
        if len(present) != 1:
            what = target if target == INSTRUCTION else f"camera {target}"
            how = f"{len(present)} times in the message, as {present}" if present else "missing"
            raise ValueError(f"{what} is {how}: send it once, as one of {keys}")
        return values[present[0]]

    def _state(self, values: Mapping[str, object]) -> np.ndarray | None:
        if not self.spec.state_dim:
            return None
        if not (present := {key for key in self._keys(STATE) if key in values}):
            return None
        keys = next((row for row in self.states if set(row) == present), None)
        if keys is None:
            rows = " or ".join(" and ".join(row) for row in self.states)
            raise ValueError(f"the state comes as {' and '.join(sorted(present))}: send it once, as {rows}")
        try:
            return np.concatenate([np.atleast_1d(np.asarray(values[key], dtype=np.float64)) for key in keys])
        except (ValueError, TypeError, OverflowError):
            raise ValueError(f"the state, from {' and '.join(keys)}, is not a list of numbers: send numbers") from None

    def _keys(self, target: str) -> list[str]:
        return [key for key, of in self.targets.items() if of == target]


def _image(camera: str, value: object) -> np.ndarray:
    """(H, W, C); from (3, H, W) too, which openpi's ALOHA client sends, where it can be nothing else."""
    if not isinstance(value, np.ndarray):
        raise ValueError(
            f"camera {camera} is of type {type(value).__name__}: expected a uint8 array (H, W, 3), which is written in JSON as "
            '{"__numpy__": base64 of its bytes, "dtype": "|u1", "shape": [H, W, 3]}, in msgpack as openpi\'s client does'
        )
    if value.ndim == 4:
        raise ValueError(
            f"camera {camera} has an image of shape {value.shape}, whose first axis is a batch: send one image (H, W, 3), image[0]"
        )
    if value.ndim == 3 and value.shape[0] == 3 and value.shape[2] not in (1, 3, 4):
        value = value.transpose(1, 2, 0)
    short, long = min(value.shape[:2], default=0), max(value.shape[:2], default=0)
    if long > _MOST_PIXELS or long > _MOST_ASPECT * short > 0:
        raise ValueError(
            f"camera {camera} has an image of shape {value.shape}: expected at most {_MOST_PIXELS} pixels along a side, and "
            f"no side longer than {_MOST_ASPECT} times the other; crop or shrink it"
        )
    return value


def _flat(message: Mapping, prefix: str = "", depth: int = 4) -> Iterator[tuple[str, object]]:
    for key, value in message.items():
        if not isinstance(key, str):
            raise ValueError(f"a key of the message is {str(key)[:40]}: expected text")
        if isinstance(value, Mapping) and depth:
            yield from _flat(value, f"{prefix}{key}/", depth - 1)
        else:
            yield prefix + key, value
