"""Vision-language-action models: action heads on any `VisionLanguageModel`.

Order, low to high: prefix; heads token_head, parallel_head, expert and flow_head; heads; crop, model (prompt, images and
state to a head, saving, loading), runner (one forward pass, plain or as CUDA graphs), openvla, policy.
"""

from vlm_vision.vla.model import VisionLanguageActionModel
from vlm_vision.vla.policy import VLAPolicy, load_policy

__all__ = ["VLAPolicy", "VisionLanguageActionModel", "load_policy"]
