"""The classes of this model, from the package vlm-vision."""

try:
    from vlm_vision.vlm.config import VisionLanguageConfig
    from vlm_vision.vlm.image_processor import VisionLanguageImageProcessor
    from vlm_vision.vlm.model import VisionLanguageModel
    from vlm_vision.vlm.processor import VisionLanguageProcessor
except ImportError as error:
    raise ImportError(f"this model needs the package vlm-vision ({error}): pip install vlm-vision") from error
