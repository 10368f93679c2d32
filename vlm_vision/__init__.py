"""Vision encoders for vision-language and vision-language-action models."""

from vlm_vision import auto

__version__ = "0.1.0"

_NAMES = {
    "vlm_vision.encoder": ["Encoder"],
    "vlm_vision.fused": ["FusedEncoder"],
    "vlm_vision.load_encoder": ["load", "load_projector"],
    "vlm_vision.mae": ["load_mae"],
    "vlm_vision.nn.config": ["ViTConfig"],
    "vlm_vision.nn.output": ["Tap", "VisionOutput"],
    "vlm_vision.nn.text": ["TextConfig", "TextOutput", "TextTransformer"],
    "vlm_vision.nn.vit": ["VisionTransformer"],
    "vlm_vision.page.look": ["look"],
    "vlm_vision.pair": ["Pair", "PairOutput", "TextEncoder", "load_pair", "load_text"],
    "vlm_vision.preprocess.spec": ["Preprocess"],
    "vlm_vision.preprocess.tokenizer": ["TextTokenizer", "TokenizerRules"],
    "vlm_vision.tokens.store": ["TokenStore"],
    "vlm_vision.vla.policy": ["load_policy"],
    "vlm_vision.vlm.formats.export": ["export"],
    "vlm_vision.vlm.layout": ["AnyRes", "Native", "Whole"],
    "vlm_vision.vlm.model": ["VisionLanguageModel"],
}
"""Module -> public names that it defines. A module is imported when one of its names is asked for; `__init__.pyi` tells editors
the same. No name is that of a module of this folder: importing the module would put it in the name's place."""
_MODULE_OF = {name: module for module, names in _NAMES.items() for name in names}

__all__ = sorted([*_MODULE_OF, "presets"])  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str):
    from importlib import import_module

    if name == "presets":
        return import_module("vlm_vision.presets")
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_MODULE_OF[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


auto.install()
