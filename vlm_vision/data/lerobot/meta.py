"""The tables of meta/: tasks, and the location of each episode."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from vlm_vision.data.lerobot.layout import TASKS, Info, file_in
from vlm_vision.data.lerobot.tables import UNFINISHED, read_table

_PLACES = ("chunk_index", "file_index", "from_timestamp", "to_timestamp")
"""Columns that state where the clip of an episode is."""


@dataclass(frozen=True)
class Clip:
    """The part of a video that belongs to one episode."""

    file: Path
    start: float
    """Start of the clip in seconds."""
    end: float
    """End of the clip in seconds: the start of the next one."""


@dataclass(frozen=True)
class StoredEpisode:
    """Location of an episode.

    Args:
        index: its number in the data set.
        length: number of its time steps.
        file: the table of its numbers.
        clips: video feature -> its clip.
    """

    index: int
    length: int
    file: Path
    clips: dict[str, Clip]


def read_tasks(folder: Path) -> dict[int, str]:
    """task_index -> instruction. The text is the index of a pandas table, with the name task or none.

    Raises:
        ValueError: no such table, or a row without a number or without text.
    """
    table = read_table(folder / TASKS)
    texts = [
        name
        for name, kind in zip(table.schema.names, table.schema.types, strict=True)
        if pa.types.is_string(kind) or pa.types.is_large_string(kind)
    ]
    if "task_index" not in table.schema.names or len(texts) != 1:
        raise ValueError(
            f"{folder / TASKS} has the columns {', '.join(table.schema.names)}: expected task_index and one text"
        )
    tasks = list(zip(table["task_index"].to_pylist(), table[texts[0]].to_pylist(), strict=True))
    for row, (number, text) in enumerate(tasks):
        if number is None or text is None or not text.strip():
            raise ValueError(
                f"{folder / TASKS}, row {row}, has the task_index {number} and the text {text!r}: expected a number and an "
                "instruction in words"
            )
    return dict(tasks)


def read_episodes(folder: Path, info: Info) -> dict[int, StoredEpisode]:
    """All episodes of a data set, by their numbers.

    Raises:
        ValueError: tables that do not state the locations of the episodes.
    """
    paths = sorted((folder / "meta" / "episodes").glob("*/*.parquet"))
    if not paths:
        raise ValueError(
            f"{folder / 'meta' / 'episodes'} holds no tables: expected the folder of a LeRobotDataset v3; {UNFINISHED}"
        )
    columns = ["episode_index", "length", "data/chunk_index", "data/file_index"]
    columns += [f"videos/{key}/{name}" for key in info.videos for name in _PLACES]
    rows: dict[int, StoredEpisode] = {}
    for path in paths:
        for row in read_table(path, columns).to_pylist():
            if any(value is None for value in row.values()):
                raise ValueError(f"{path}, episode {row['episode_index']}: a value is missing: download it again")
            if row["episode_index"] in rows:
                raise ValueError(f"{path} holds episode {row['episode_index']}, which another table holds too")
            rows[row["episode_index"]] = _stored(folder, info, row)
    if len(rows) != info.total_episodes:
        raise ValueError(
            f"{folder} holds {len(rows)} episodes, its info.json states {info.total_episodes}: download it again; {UNFINISHED}"
        )
    return rows


def chosen_episodes(folder: Path, rows: dict[int, StoredEpisode], wanted: Iterable[int] | None) -> list[StoredEpisode]:
    """The episodes of these numbers, or all, in the order of their numbers. Raises ValueError for an unknown number."""
    chosen = sorted(rows) if wanted is None else sorted(set(wanted))
    if unknown := [number for number in chosen if number not in rows]:
        raise ValueError(f"{folder} has no episode {unknown[0]}: it has {len(rows)}, from {min(rows)} to {max(rows)}")
    if not chosen:
        raise ValueError(f"{folder}: no episode is chosen of {len(rows)}: choose at least one")
    return [rows[number] for number in chosen]


def _stored(folder: Path, info: Info, row: dict[str, Any]) -> StoredEpisode:
    clips = {}
    for key in info.videos:
        chunk, file, start, end = (row[f"videos/{key}/{name}"] for name in _PLACES)
        where = file_in(folder, info.video_path, video_key=key, chunk_index=chunk, file_index=file)
        clips[key] = Clip(where, start, end)
    places = {"chunk_index": row["data/chunk_index"], "file_index": row["data/file_index"]}
    file = file_in(folder, info.data_path, **places)
    return StoredEpisode(row["episode_index"], row["length"], file, clips)
