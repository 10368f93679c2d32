"""Make the Auto classes of transformers know our models, without importing transformers.

`import vlm_vision` must stay light, yet `AutoModelForImageTextToText` must load our folders after it. So our classes
are registered when transformers' own auto modules are imported: at once if they already are, else right after.
"""

import importlib
import importlib.abc
import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

_REGISTERS = {
    "transformers.models.auto.configuration_auto": "vlm_vision.vlm.config",
    "transformers.models.auto.image_processing_auto": "vlm_vision.vlm.image_processor",
    "transformers.models.auto.processing_auto": "vlm_vision.vlm.processor",
    "transformers.models.auto.modeling_auto": "vlm_vision.vlm.model",
}
"""Auto module of transformers -> our module that registers a class with it when imported."""


class _LoaderWithHook(importlib.abc.Loader):
    """Loads a module as its own loader does, then imports one of ours."""

    def __init__(self, loader: importlib.abc.Loader, then: str):
        self._loader, self._then = loader, then

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        importlib.import_module(self._then)


class _Finder(importlib.abc.MetaPathFinder):
    """Stands first on sys.meta_path and steps aside for everything but the auto modules."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in _REGISTERS:
            return None
        for finder in sys.meta_path:
            if not isinstance(finder, _Finder) and (spec := finder.find_spec(fullname, path, target)) and spec.loader:
                spec.loader = _LoaderWithHook(spec.loader, _REGISTERS[fullname])
                return spec
        return None


def install() -> None:
    """Register now with what is imported, and with the rest when it is. Calling it again does nothing."""
    if any(isinstance(finder, _Finder) for finder in sys.meta_path):
        return
    sys.meta_path.insert(0, _Finder())
    for theirs, ours in _REGISTERS.items():
        if theirs in sys.modules:
            importlib.import_module(ours)
