"""Spans of episodes in video files: disjoint, and as long as the episodes' rows."""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path

from vlm_vision.data.lerobot.meta import StoredEpisode


def check_spans(episodes: Mapping[int, StoredEpisode], chosen: Iterable[int], keys: Iterable[str], fps: float) -> None:
    """Raise ValueError for a chosen episode whose span in a video is of another length than its rows, or overlaps another's.

    Args:
        episodes: all episodes of the data set.
        chosen: numbers of those that are read.
        keys: video features that are read.
    """
    wanted, slack = set(chosen), 0.5 / fps
    for key in keys:
        files: dict[Path, list[StoredEpisode]] = {}
        for episode in episodes.values():
            clip, seconds = episode.clips[key], episode.length / fps
            files.setdefault(clip.file, []).append(episode)
            if episode.index in wanted and not (
                math.isfinite(clip.start) and clip.start >= 0 and abs(clip.end - clip.start - seconds) <= slack
            ):
                raise ValueError(
                    f"{clip.file}: the span of episode {episode.index} is {clip.start:.4g} to {clip.end:.4g} s, and its "
                    f"{episode.length} rows last {seconds:.4g} s: {_WAYS_OUT}"
                )
        for file, held in files.items():
            held.sort(key=lambda one: (one.clips[key].start, one.index))
            for before, after in zip(held, held[1:], strict=False):
                overlap = before.clips[key].end - after.clips[key].start
                if overlap > slack and {before.index, after.index} & wanted:
                    raise ValueError(
                        f"{file}: the spans of episodes {before.index} and {after.index} overlap by {overlap:.4g} s, so that "
                        f"one of them would show images of the other: {_WAYS_OUT}"
                    )


_WAYS_OUT = "download meta/episodes again, or leave the episode out"
