"""Folders that load with `trust_remote_code=True` if this package is installed but not imported."""

from pathlib import Path
from typing import Any, ClassVar

MODULE = "vlm_vision_code"
CODE = '''"""The classes of this model, from the package vlm-vision."""

try:
    from vlm_vision.vlm.config import VisionLanguageConfig
    from vlm_vision.vlm.image_processor import VisionLanguageImageProcessor
    from vlm_vision.vlm.model import VisionLanguageModel
    from vlm_vision.vlm.processor import VisionLanguageProcessor
except ImportError as error:
    raise ImportError(f"this model needs the package vlm-vision ({error}): pip install vlm-vision") from error
'''
"""Content of the file that a folder gets. transformers imports it and takes the class that `auto_map` names."""

_UPLOAD = ("commit_message", "commit_description", "private", "token", "revision", "create_pr", "tags")
"""Arguments of `push_to_hub` alone."""


class RemoteCodeMixin:
    """`register_for_auto_class` and `save_pretrained` of a class of this package.

    As in transformers, a registered class writes `auto_map` into the folders it saves; but it also writes a file that
    imports the class, where transformers would copy the module that defines it.
    """

    auto_map: dict[str, str]
    _auto_class: ClassVar[str | None]
    _auto_entry: ClassVar[dict[str, str]] = {}

    @classmethod
    def register_for_auto_class(cls, *args: Any, **kwargs: Any) -> None:
        """As in transformers. A class of another package that derives from ours is saved as transformers does it."""
        super().register_for_auto_class(*args, **kwargs)  # type: ignore[misc]
        if cls.__module__.startswith("vlm_vision."):
            cls._auto_entry, cls._auto_class = {str(cls._auto_class): f"{MODULE}.{cls.__name__}"}, None

    def note_auto_map(self, described: Any) -> bool:
        """Write this class's entry into the auto_map of what is saved; whether that names our file."""
        entries = (getattr(described, "auto_map", None) or {}) | self._auto_entry
        if entries:
            described.auto_map = entries
        return any(str(entry).startswith(f"{MODULE}.") for entry in entries.values())

    def save_pretrained(self, save_directory: str | Path, *args: Any, push_to_hub: bool = False, **kwargs: Any) -> Any:
        """As in transformers; what goes to the Hub is all that a folder gets."""
        upload = {name: kwargs.pop(name) for name in _UPLOAD if name in kwargs}
        repo_id = kwargs.pop("repo_id", Path(save_directory).name)
        written = self.write_folder(Path(save_directory), *args, **kwargs)
        if push_to_hub:
            shards = {name: size for name, size in kwargs.items() if name == "max_shard_size"}
            self.push_to_hub(repo_id, **upload, **shards)  # type: ignore[attr-defined]
        return written

    def write_folder(self, folder: Path, *args: Any, **kwargs: Any) -> Any:
        """As `save_pretrained` of transformers, with the file that imports the class."""
        if kwargs.get("is_main_process", True) and self.note_auto_map(getattr(self, "config", self)):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{MODULE}.py").write_text(CODE)
        return super().save_pretrained(folder, *args, **kwargs)  # type: ignore[misc]
