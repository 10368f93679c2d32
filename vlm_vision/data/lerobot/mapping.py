"""Features under other names: which numbers of a data set are the state and the action."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from vlm_vision.data.lerobot.layout import COUNTERS, Feature, Info
from vlm_vision.robot.statistics import join_names


def wanted_numbers(folder: Path, info: Info, wanted: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """Name -> the features that make it, for those that are not empty: "joints + gripper" are two.

    Raises:
        ValueError: a feature that the data set does not have, or that is no numbers.
    """
    found = {}
    for name, text in wanted.items():
        parts = tuple(part.strip() for part in text.split(" + ")) if text else ()
        for part in parts:
            if part not in (known := number_features(info)):
                raise ValueError(f"{folder} has no feature of numbers {part!r}: it has {join_names(known) or 'none'}")
        if parts:
            found[name] = parts
    return found


def number_features(info: Info) -> list[str]:
    """Features of numbers in the tables, without the counters that every data set has."""
    features = info.features.items()
    return [name for name, one in features if one.is_table and one.dtype != "string" and name not in COUNTERS]


def mapped_features(info: Info, numbers: Mapping[str, Sequence[str]]) -> dict[str, Feature]:
    """Name -> the feature that its parts make together."""
    found = {}
    for name, parts in numbers.items():
        features = [info.features[part] for part in parts]
        size = sum(int(np.prod(feature.shape)) for feature in features)
        names = [one for feature in features for one in feature.flat_names]
        dtype = np.result_type(*(feature.dtype for feature in features)).name
        found[name] = Feature(dtype, (size,), names if len(names) == size else None)
    return found


def joined_columns(columns: Sequence[np.ndarray]) -> np.ndarray:
    """Columns (N, ...) of a feature's parts as one (N, D)."""
    return np.concatenate([column.reshape(len(column), -1) for column in columns], axis=1)
