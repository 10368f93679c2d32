"""The vision half of vision-language and vision-language-action models, as one plugin."""

from importlib import import_module
from typing import TYPE_CHECKING

from vlm_vision import auto
from vlm_vision.encoder import Encoder
from vlm_vision.fused import FusedEncoder
from vlm_vision.load import load, load_projector
from vlm_vision.nn.config import Tap, VisionOutput, ViTConfig
from vlm_vision.nn.text import TextConfig, TextOutput, TextTransformer
from vlm_vision.nn.vit import VisionTransformer
from vlm_vision.pair import Pair, PairOutput, TextEncoder, load_pair, load_text
from vlm_vision.preprocess.spec import Preprocess
from vlm_vision.preprocess.tokenizer import TextTokenizer, TokenizerRules

if TYPE_CHECKING:
    from vlm_vision.vlm.formats.export import export
    from vlm_vision.vlm.layout import AnyRes, Native, Whole
    from vlm_vision.vlm.model import VisionLanguageModel

__version__ = "0.1.0"
__all__ = [
    "AnyRes",
    "Encoder",
    "FusedEncoder",
    "Native",
    "Pair",
    "PairOutput",
    "Preprocess",
    "Tap",
    "TextConfig",
    "TextEncoder",
    "TextOutput",
    "TextTokenizer",
    "TextTransformer",
    "TokenizerRules",
    "ViTConfig",
    "VisionLanguageModel",
    "VisionOutput",
    "VisionTransformer",
    "Whole",
    "export",
    "load",
    "load_pair",
    "load_projector",
    "load_text",
]

_LAZY = {  # these import transformers
    "VisionLanguageModel": "vlm_vision.vlm.model",
    "export": "vlm_vision.vlm.formats.export",
    "AnyRes": "vlm_vision.vlm.layout",
    "Native": "vlm_vision.vlm.layout",
    "Whole": "vlm_vision.vlm.layout",
}


def __getattr__(name: str):
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


auto.install()
