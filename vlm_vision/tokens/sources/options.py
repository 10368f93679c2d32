"""Options of sources, which the command line fills."""

from collections.abc import Mapping
from dataclasses import dataclass, fields

from vlm_vision.data.shards.cache import ShardCache
from vlm_vision.tokens.sources.columns import Choice


@dataclass(frozen=True)
class SourceOptions:
    """How to read sources. An option that no source uses is an error."""

    path_column: str = ""
    """Column of a table or data set that holds the image or its path; default the usual one, such as path or image."""
    label_column: str = ""
    """Column of the label; default label or class, if there is one."""
    caption_column: str = ""
    """Column of the caption; default caption or text, if there is one."""
    id_column: str = ""
    """Column of the keys; default the path, or the number of the row of a data set."""
    image_root: str = ""
    """Folder that paths in tables, lists, LLaVA JSON and data sets start from; default the folder of the file."""
    split: str = ""
    """Split of a data set; default train."""
    subset: str = ""
    """Configuration of a hub id that has several."""
    every: int = 1
    """Distance of the frames that are read of videos and robot data."""
    cameras: tuple[str, ...] = ()
    """Names of the cameras of robot data; default all."""
    episodes: tuple[int, ...] = ()
    """Numbers of the episodes of robot data; default all."""
    revision: str = ""
    """Branch, tag or commit of a hub id."""
    cache: ShardCache = ShardCache()
    """Folder of shards by URL, and its size."""

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"every is {self.every}: expected 1 or more, the distance of frames")
        if negative := [number for number in self.episodes if number < 0]:
            raise ValueError(f"episodes holds {negative[0]}: expected numbers from 0")

    @property
    def choice(self) -> Choice:
        """The columns that are named."""
        return Choice(self.path_column, self.label_column, self.caption_column, self.id_column)

    def check_used(self, uses: Mapping[str, tuple[str, frozenset[str]]]) -> None:
        """Raise ValueError for an option that no source uses.

        Args:
            uses: source -> its kind in words, and the options that it uses.
        """
        used = frozenset[str]().union(*(names for _, names in uses.values()))
        for option in fields(self):
            name = option.name
            if name != "cache" and getattr(self, name) != option.default and name not in used:
                source, (kind, _) = next(iter(uses.items()))
                others = f", and the {len(uses) - 1} others do not use it" if len(uses) > 1 else ""
                flag = name.replace("_", "-")
                raise ValueError(f"--{flag} is for {_FOR[name]}: {source} is {kind}{others}; leave it out")


COLUMNS = frozenset({"path_column", "label_column", "caption_column", "id_column"})
_FOR = dict.fromkeys(COLUMNS, "tables and data sets") | {
    "image_root": "tables, lists, LLaVA JSON and data sets",
    "split": "data sets",
    "subset": "data sets on the hub",
    "every": "videos and robot data",
    "cameras": "robot data",
    "episodes": "robot data",
    "revision": "data sets on the hub",
}
"""Option -> the sources that use it."""
