"""A checkpoint folder or file: each of its files is opened once, at first use."""

from functools import cached_property
from pathlib import Path
from typing import Any

from vlm_vision.checkpoints.big_vision.npz import NpzFile
from vlm_vision.checkpoints.hub import hub_id, resolve
from vlm_vision.checkpoints.weights import WeightFiles
from vlm_vision.files import read_json

Json = dict[str, Any]
ADAPTER = "adapter_config.json"
"""Configuration of an adapter of peft."""

OWN_MODEL = "vlm_vision"
"""model_type of a `VisionLanguageModel`, which its own from_pretrained loads."""


class Checkpoint:
    """A path, its JSON files, and the names, shapes and dtypes of its weights.

    The format that recognises it reads from it. `load`, `load_projector`, `load_text`, `load_pair` and `load_mae` take one
    instead of a name, so that a tower and a projector of one folder are read from files opened once.

    Args:
        path: a local folder or file.
        hub_id: hub id that the folder was downloaded from; empty for another one.
    """

    def __init__(self, path: Path, hub_id: str = ""):
        self.path, self.is_folder, self.hub_id = path, path.is_dir(), hub_id
        self._json: dict[str, Json] = {}
        self._weights: dict[str, WeightFiles] = {}
        self._others: dict[Path, Checkpoint] = {}

    @classmethod
    def at(cls, source: "str | Path | Checkpoint", revision: str | None = None) -> "Checkpoint":
        """The checkpoint of a shipped name, path or hub id. Raises ValueError if there is none."""
        return source if isinstance(source, Checkpoint) else cls(resolve(source, revision), hub_id(source))

    def __str__(self) -> str:
        return str(self.path)

    def has(self, name: str) -> bool:
        """Whether this is a folder with a file of that name. Raises ValueError for a link to a file that is missing."""
        path = self.path / name
        if path.is_symlink() and not path.exists():
            raise ValueError(
                f"{path} is a link to a file that is missing, as in a pruned cache: download the folder again"
            )
        return path.is_file()

    def check_no_adapter(self) -> None:
        """Raise ValueError for a folder with an adapter, which transformers would apply and which is not read here."""
        if self.has(ADAPTER):
            base = self.json(ADAPTER).get("base_model_name_or_path") or "its base model"
            raise ValueError(
                f"{self.path} holds an adapter ({ADAPTER}, of {str(base)[:100]}) that would change its weights: merge it with "
                f"peft's merge_and_unload and save the result, or remove {ADAPTER} to load the base alone"
            )

    def json(self, name: str) -> Json:
        """The JSON object in a file of the folder, not to be changed. Raises ValueError as `read_json`."""
        if name not in self._json:
            self._json[name] = read_json(self.path / name)
        return self._json[name]

    def described_by(self, files: dict[str, Json]) -> "Checkpoint":
        """The same folder, opened as it is, with another content of the JSON files of these names."""
        same = Checkpoint(self.path, self.hub_id)
        same._json, same._weights, same._others = self._json | files, self._weights, self._others
        return same

    @property
    def config(self) -> Json:
        """config.json; empty where there is none."""
        return self.json("config.json") if self.has("config.json") else {}

    @property
    def weights(self) -> WeightFiles:
        """All weights of the folder, under the usual file names, or of the file. Raises ValueError as `WeightFiles`."""
        return self.weights_in("")

    def weights_in(self, name: str) -> WeightFiles:
        """The weights in one file of the folder."""
        if name not in self._weights:
            self._weights[name] = WeightFiles(self.path / name)
        return self._weights[name]

    @cached_property
    def arrays(self) -> NpzFile:
        """The arrays of an `.npz` file. Raises ValueError as `NpzFile`."""
        return NpzFile(self.path)

    def other(self, path: Path) -> "Checkpoint":
        """Another folder or file that this one refers to."""
        if path == self.path:
            return self
        if path not in self._others:
            self._others[path] = Checkpoint(path, self.hub_id)
        return self._others[path]
