"""Make the Auto classes of transformers know our models, without importing transformers.

`import vlm_vision` must stay light, yet `AutoModelForImageTextToText` must load our folders after it. So our classes are
registered after transformers' own auto modules are imported. They wait until no module of transformers or of this library is
half imported: the auto modules import each other, and an import of one of them at that time may get an unfinished module.
"""

import sys

TYPE_CHECKING = False  # typing.TYPE_CHECKING, whose import takes longer than everything else here
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.abc import Loader
    from importlib.machinery import ModuleSpec
    from types import ModuleType

_REGISTERS = {
    "transformers.models.auto.configuration_auto": "vlm_vision.vlm.config",
    "transformers.models.auto.image_processing_auto": "vlm_vision.vlm.image_processor",
    "transformers.models.auto.processing_auto": "vlm_vision.vlm.processor",
    "transformers.models.auto.modeling_auto": "vlm_vision.vlm.model",
}
"""Auto module of transformers -> our module that registers a class with it when imported; low to high."""
_waiting = dict(_REGISTERS)
"""Those that are not registered yet."""
_unfinished: set[str] = set()
"""Modules of transformers and of this library that are being imported now."""


class _WatchedLoader:
    """Loads a module as its own loader does, then registers what can be registered."""

    def __init__(self, loader: "Loader"):
        self._loader = loader

    def __getattr__(self, name: str):
        return getattr(self._loader, name)  # runpy asks for get_code

    def create_module(self, spec: "ModuleSpec") -> "ModuleType | None":
        return self._loader.create_module(spec)

    def exec_module(self, module: "ModuleType") -> None:
        assert module.__spec__ is not None
        module.__loader__ = module.__spec__.loader = self._loader
        _unfinished.add(module.__name__)
        try:
            self._loader.exec_module(module)
        finally:
            _unfinished.discard(module.__name__)
        _register()


class _Finder:
    """First on sys.meta_path until all is registered; it ignores other packages."""

    def find_spec(
        self, fullname: str, path: "Sequence[str] | None", target: "ModuleType | None" = None
    ) -> "ModuleSpec | None":
        if fullname.partition(".")[0] not in ("transformers", "vlm_vision"):
            return None
        for finder in sys.meta_path:
            if finder is not self and (spec := finder.find_spec(fullname, path, target)):
                if hasattr(spec.loader, "exec_module"):
                    spec.loader = _WatchedLoader(spec.loader)  # pyright: ignore
                return spec
        return None


_FINDER = _Finder()


def _register() -> None:
    """Import those of our modules whose auto modules are there, unless some import is under way."""
    from importlib import import_module

    for theirs in _REGISTERS:
        if not _unfinished and theirs in _waiting and theirs in sys.modules:
            ours = _waiting.pop(theirs)
            try:
                import_module(ours)
            except Exception as error:  # not to be taken for a fault of the transformers module that was imported
                from warnings import warn

                warn(f"transformers' Auto classes do not know vlm_vision's models: {error}", stacklevel=2)
    if not _waiting and _FINDER in sys.meta_path:
        sys.meta_path.remove(_FINDER)


def install() -> None:
    """Register now with what is imported, and with the rest when it is. Calling it again does nothing."""
    if _waiting and _FINDER not in sys.meta_path:
        sys.meta_path.insert(0, _FINDER)
        _register()
