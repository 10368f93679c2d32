"""The projector in a checkpoint: by the model type of config.json, or by the name of one weight."""

from vlm_vision.checkpoints.checkpoint import OWN_MODEL, Checkpoint
from vlm_vision.checkpoints.connectors.by_model import MODELS, REFUSED
from vlm_vision.checkpoints.projectors import FORMS, Candidate, ProjectorSpec
from vlm_vision.checkpoints.towers import WeightSource


def find(checkpoint: Checkpoint, weights: WeightSource) -> ProjectorSpec:
    """The projector in a checkpoint, among all its weights.

    Raises:
        ValueError: none of a known form, or one that ours cannot express.
    """
    model_type = str(checkpoint.config.get("model_type"))
    if reason := REFUSED.get(model_type):
        raise ValueError(f"{checkpoint} is of model type {model_type!r}: {reason}")
    if model_type == OWN_MODEL:
        raise ValueError(f"{checkpoint} is a whole model: pass the .projector of VisionLanguageModel.from_pretrained")
    forms, expected = FORMS, "a whole model, such as LLaVA or Qwen2.5-VL, or a policy"
    if model_type in MODELS:
        marks, read = MODELS[model_type]
        forms, expected = dict.fromkeys(marks, read), f"a weight ending in one of {', '.join(marks)}"
    for mark, read in forms.items():
        for name in weights.shapes:
            before = name.removesuffix(mark)
            if before != name and (not before or before.endswith(".")):
                return read(Candidate(checkpoint, weights, before))
    raise ValueError(f"{checkpoint} holds no projector of a known form: expected {expected}")
