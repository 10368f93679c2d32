"""The numbers of all time steps, in memory."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from vlm_vision.data.lerobot.layout import Info
from vlm_vision.data.lerobot.meta import StoredEpisode
from vlm_vision.data.lerobot.tables import BadRowError, read_table, to_array


def read_rows(
    info: Info, episodes: Sequence[StoredEpisode], finite: frozenset[str]
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Feature -> (N, *shape) of the time steps of these episodes, one after another; and the row of each in its table.

    Each table is read once, memory-mapped. Images, and columns that are neither numbers nor text, are left out.

    Args:
        finite: features of which every number must be finite.

    Raises:
        ValueError: a damaged table, missing time steps, or a number that is not finite; it names the file, and the episode and
            time step if known.
    """
    names = [name for name, feature in info.features.items() if feature.is_table]
    by_file: dict[Path, list[StoredEpisode]] = {}
    for episode in episodes:
        by_file.setdefault(episode.file, []).append(episode)
    parts: dict[int, tuple[dict[str, np.ndarray], np.ndarray]] = {}
    for file, held in by_file.items():
        table = read_table(file, names)
        of, moments = (_counter(file, table, name) for name in ("episode_index", "frame_index"))
        order = np.lexsort((moments, of))
        ends = [np.searchsorted(of[order], [one.index for one in held], side) for side in ("left", "right")]
        kept = [order[first:last] for first, last in zip(*ends, strict=True)]
        for episode, rows in zip(held, kept, strict=True):
            if not np.array_equal(moments[rows], np.arange(episode.length)):
                raise ValueError(
                    f"{file} holds {len(rows)} time steps of episode {episode.index}, expected 0 to {episode.length - 1}: "
                    "download it again, or leave the episode out"
                )
        chosen = np.concatenate(kept)
        if not np.array_equal(chosen, np.arange(table.num_rows)):
            table = table.take(pa.array(chosen))
        values = {
            name: _column(file, info, table, name, of[chosen], moments[chosen], finite=name in finite) for name in names
        }
        bounds = np.cumsum([len(rows) for rows in kept])[:-1]
        split = {name: np.split(column, bounds) for name, column in values.items()}
        for i, (episode, rows) in enumerate(zip(held, kept, strict=True)):
            parts[episode.index] = {name: pieces[i] for name, pieces in split.items()}, rows
    together = [parts[episode.index] for episode in episodes]
    found = {name: np.concatenate([part[name] for part, _ in together]) for name in names}
    return found, np.concatenate([rows for _, rows in together])


def _counter(file: Path, table: pa.Table, name: str) -> np.ndarray:
    try:
        return to_array(table[name], "int64", ())
    except BadRowError as error:
        raise ValueError(f"{file}, row {error.row}: {name} {error}: download it again") from None
    except ValueError as error:
        raise ValueError(f"{file}: {name}: {error}: download it again") from None


def _column(
    file: Path, info: Info, table: pa.Table, name: str, of: np.ndarray, moments: np.ndarray, *, finite: bool
) -> np.ndarray:
    feature = info.features[name]
    try:
        values = to_array(table[name], feature.dtype, feature.shape)
        if finite and not (whole := np.isfinite(values).reshape(len(values), -1).all(1)).all():
            raise BadRowError(int(np.flatnonzero(~whole)[0]), "is NaN or Inf")
        return values
    except BadRowError as error:
        where = f"{file}, episode {of[error.row]}, frame {moments[error.row]}"
        raise ValueError(f"{where}: {name} {error}: repair it, or leave the episode out") from None
    except ValueError as error:
        raise ValueError(f"{file}: {name}: {error}: download it again") from None
