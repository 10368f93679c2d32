"""What `import vlm_vision` offers, for editors and type checkers; `__init__.py` imports each name when it is asked for."""

from vlm_vision import presets as presets
from vlm_vision.encoder import Encoder as Encoder
from vlm_vision.fused import FusedEncoder as FusedEncoder
from vlm_vision.load_encoder import load as load
from vlm_vision.load_encoder import load_projector as load_projector
from vlm_vision.mae import load_mae as load_mae
from vlm_vision.nn.config import ViTConfig as ViTConfig
from vlm_vision.nn.output import Tap as Tap
from vlm_vision.nn.output import VisionOutput as VisionOutput
from vlm_vision.nn.text import TextConfig as TextConfig
from vlm_vision.nn.text import TextOutput as TextOutput
from vlm_vision.nn.text import TextTransformer as TextTransformer
from vlm_vision.nn.vit import VisionTransformer as VisionTransformer
from vlm_vision.page.look import look as look
from vlm_vision.pair import Pair as Pair
from vlm_vision.pair import PairOutput as PairOutput
from vlm_vision.pair import TextEncoder as TextEncoder
from vlm_vision.pair import load_pair as load_pair
from vlm_vision.pair import load_text as load_text
from vlm_vision.preprocess.spec import Preprocess as Preprocess
from vlm_vision.preprocess.tokenizer import TextTokenizer as TextTokenizer
from vlm_vision.preprocess.tokenizer import TokenizerRules as TokenizerRules
from vlm_vision.tokens.store import TokenStore as TokenStore
from vlm_vision.vla.policy import load_policy as load_policy
from vlm_vision.vlm.formats.export import export as export
from vlm_vision.vlm.layout import AnyRes as AnyRes
from vlm_vision.vlm.layout import Native as Native
from vlm_vision.vlm.layout import Whole as Whole
from vlm_vision.vlm.model import VisionLanguageModel as VisionLanguageModel

__version__: str

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
    "TokenStore",
    "TokenizerRules",
    "ViTConfig",
    "VisionLanguageModel",
    "VisionOutput",
    "VisionTransformer",
    "Whole",
    "export",
    "load",
    "load_mae",
    "load_pair",
    "load_policy",
    "load_projector",
    "load_text",
    "look",
    "presets",
]
