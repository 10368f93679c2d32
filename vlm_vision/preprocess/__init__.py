"""From images to pixels: reading, resizing, cropping and scaling as each reference does it; and text tokenizers."""

from vlm_vision.preprocess.spec import Preprocess

__all__ = ["Preprocess"]
