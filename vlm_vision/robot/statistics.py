"""Statistics of actions and states by the name of the data, and readers of the files of other projects."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vlm_vision.files import read_json, shown

FIELDS = ("mean", "std", "min", "max", "q01", "q99")


@dataclass(frozen=True, eq=False)
class Statistics:
    """Statistics of one feature, each (D,) float64; None if a file does not have it.

    Args:
        mask: (D,) bool, where normalization applies; other numbers pass as they are (a gripper that is 0 or 1).
        count: rows that were counted.
    """

    mean: np.ndarray | None = None
    std: np.ndarray | None = None
    min: np.ndarray | None = None
    max: np.ndarray | None = None
    q01: np.ndarray | None = None
    q99: np.ndarray | None = None
    mask: np.ndarray | None = None
    count: int = 0

    def __post_init__(self) -> None:
        lengths = {}
        for name in (*FIELDS, "mask"):
            if (field := getattr(self, name)) is None:
                continue
            try:
                values = np.asarray(field, dtype=bool if name == "mask" else np.float64).reshape(-1)
            except (TypeError, ValueError):
                raise ValueError(
                    f"{name} of the statistics is {shown(field)}: expected one number for each dimension"
                ) from None
            if name != "mask" and not np.isfinite(values).all():
                raise ValueError(f"{name} of the statistics is {shown(values.tolist())}: expected finite numbers")
            object.__setattr__(self, name, values)
            lengths[name] = len(values)
        if len(set(lengths.values())) != 1:
            raise ValueError(
                f"the statistics have lengths {lengths}: expected equal lengths, one number for each dimension"
            )

    @property
    def dim(self) -> int:
        """Numbers of the feature."""
        return next(len(getattr(self, name)) for name in (*FIELDS, "mask") if getattr(self, name) is not None)

    @classmethod
    def of(cls, rows: np.ndarray, mask: np.ndarray | None = None) -> "Statistics":
        """Of (n, D) rows; std over n, quantiles by linear interpolation, as numpy.

        Raises:
            ValueError: no rows, or a number that is not finite.
        """
        rows = np.asarray(rows, dtype=np.float64)
        if rows.ndim != 2 or not rows.size:
            raise ValueError(f"rows have shape {rows.shape}: expected (n, D) with at least one")
        if bad := int((~np.isfinite(rows).all(axis=1)).sum()):
            raise ValueError(f"{bad} of {len(rows)} rows hold NaN or Inf: remove or correct them")
        q01, q99 = np.quantile(rows, [0.01, 0.99], axis=0)
        return cls(rows.mean(0), rows.std(0), rows.min(0), rows.max(0), q01, q99, mask, len(rows))

    def to_dict(self) -> dict[str, Any]:
        """As JSON; `Statistics(**...)` makes it again."""
        told = {name: getattr(self, name).tolist() for name in (*FIELDS, "mask") if getattr(self, name) is not None}
        return told | {"count": self.count}


Named = dict[str, dict[str, Statistics]]
"""Name of the data -> feature ("action", "proprio", "observation.state") -> its statistics."""


def read_statistics(source: str | Path) -> Named:
    """Statistics in a file, or in the file of that kind in a folder.

    Known: OpenVLA's dataset_statistics.json and config.json (norm_stats), openpi's norm_stats.json (its features are
    "actions" and "state"), LeRobot's meta/stats.json. The last two name no data: the name is that of the folder.

    Raises:
        ValueError: nothing of the kind.
    """
    path = Path(source)
    if path.is_dir():
        files = ("dataset_statistics.json", "norm_stats.json", "meta/stats.json", "stats.json", "config.json")
        found = [path / name for name in files if (path / name).is_file()]
        if not found:
            raise ValueError(f"{path} has no statistics: expected one of {', '.join(files)}")
        path = found[0]
    held = read_json(path)
    held = held.get("norm_stats", held)
    folder = path.parent.parent if path.parent.name == "meta" else path.parent
    depth = _depth(held)
    if depth == 3:
        return {name: _features(features, path) for name, features in held.items()}
    if depth == 2:
        return {folder.resolve().name: _features(held, path)}
    raise ValueError(f"{path} holds no statistics: expected mean, std, min, max, q01 or q99 by feature")


def choose_statistics(named: Named, name: str) -> dict[str, Statistics]:
    """The statistics of one data set; the name may be empty if there is one data set.

    Raises:
        ValueError: an unknown name, or no name if there are several; it lists the known ones.
    """
    if name in named:
        return named[name]
    if not name and len(named) == 1:
        return next(iter(named.values()))
    problem = f"statistics {name!r} are not known" if name else "there are statistics of several data sets"
    raise ValueError(f"{problem}: choose one of {join_names(named)}")


def join_names(names: Iterable[str]) -> str:
    """Names in a sentence."""
    return ", ".join(repr(name) for name in sorted(names))


def _depth(held: Any) -> int:
    """Levels of names above the numbers: 2 for feature -> statistic, 3 for data -> feature -> statistic."""
    for depth in range(1, 4):
        if not isinstance(held, Mapping) or not held:
            return 0
        if any(name in held for name in FIELDS):
            return depth
        held = next((inner for inner in held.values() if isinstance(inner, Mapping)), None)
    return 0


def _features(held: Mapping[str, Any], path: Path) -> dict[str, Statistics]:
    found = {}
    for name, told in held.items():
        if not isinstance(told, Mapping) or not any(field in told for field in FIELDS):
            continue  # a count of episodes
        if np.ndim(next(told[field] for field in FIELDS if field in told)) > 1:
            continue  # of images: by channel, (3, 1, 1)
        fields = {field: told[field] for field in (*FIELDS, "mask") if told.get(field) is not None}
        count = told.get("count", 0)
        try:
            found[name] = Statistics(**fields, count=int(np.reshape(count, -1)[0]))
        except ValueError as error:
            raise ValueError(f"{path}: {name}: {error}") from None
    return found
