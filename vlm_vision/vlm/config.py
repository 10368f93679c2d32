"""Configuration of a `VisionLanguageModel`, as transformers saves and loads it."""

import json
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from vlm_vision.vlm.remote_code import RemoteCodeMixin

STOCK_TYPES = ("llava", "llava_next", "openvla", "prismatic")
"""model_type of the public checkpoints that `VisionLanguageModel.from_pretrained` reads in addition to its own."""


class VisionLanguageConfig(RemoteCodeMixin, PreTrainedConfig):
    """Encoder, projector and language model of one `VisionLanguageModel`.

    Args:
        encoder_config: `Encoder.to_dict()` or `FusedEncoder.to_dict()`.
        projector_config: name, in_dim, out_dim and options, the arguments of `projectors.build`.
        text_config: configuration of the language model.
        layout_config: `Layout.to_dict()`, how an image becomes canvases and their tokens a sequence.
        image_token_id: token that stands, once for each image token, where an image goes.
        encoder_in_fp32: keep encoder and projector in float32 though the language model is in half precision.
        deepstack: the language model reads the encoder's deep features, see `vlm_vision.vlm.deepstack`.
    """

    model_type = "vlm_vision"
    sub_configs = {"text_config": AutoConfig}  # pyright: ignore[reportAssignmentType]
    has_no_defaults_at_init = True

    def __init__(
        self,
        encoder_config: dict[str, Any] | None = None,
        projector_config: dict[str, Any] | None = None,
        text_config: dict[str, Any] | PreTrainedConfig | None = None,
        layout_config: dict[str, Any] | None = None,
        image_token_id: int | None = None,
        encoder_in_fp32: bool = False,
        deepstack: bool = False,
        **kwargs,
    ):
        if isinstance(text_config, dict):
            text_config = AutoConfig.for_model(**text_config)
        if _quant_method(text_config) == "gguf":  # transformers says so of unpacked weights too; ours always are
            del text_config.quantization_config  # type: ignore[union-attr]
        self.encoder_config: dict[str, Any] = as_json(encoder_config or {})
        self.projector_config: dict[str, Any] = as_json(projector_config or {})
        self.text_config = text_config
        self.layout_config: dict[str, Any] = as_json(layout_config or {"name": "whole"})
        self.image_token_id = image_token_id
        self.encoder_in_fp32 = encoder_in_fp32
        self.deepstack = deepstack
        if text_config is not None:
            kwargs.setdefault("tie_word_embeddings", getattr(text_config, "tie_word_embeddings", False))
        super().__init__(**kwargs)


def _quant_method(config: PreTrainedConfig | None) -> str | None:
    """Name of the quantization that a configuration speaks of."""
    given = getattr(config, "quantization_config", None)
    return given.get("quant_method") if isinstance(given, dict) else getattr(given, "quant_method", None)


def as_json(state: dict[str, Any]) -> dict[str, Any]:
    """The same with lists for tuples, as it comes back from a file."""
    return json.loads(json.dumps(state))


AutoConfig.register(VisionLanguageConfig.model_type, VisionLanguageConfig)
