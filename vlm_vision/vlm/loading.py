"""Loading of a `VisionLanguageModel`: strict, with its processor, or from the parts of a foreign checkpoint."""

from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import nn
from transformers import AutoProcessor, PreTrainedConfig

import projectors
from vlm_vision.checkpoints.checkpoint import Checkpoint
from vlm_vision.checkpoints.hub import hub_id
from vlm_vision.encoder import Encoder
from vlm_vision.fused import FusedEncoder
from vlm_vision.vlm.config import STOCK_TYPES, VisionLanguageConfig
from vlm_vision.vlm.formats.common import Parts
from vlm_vision.vlm.formats.read import read_parts
from vlm_vision.vlm.layout import Layout


class LoadingMixin:
    """`from_pretrained` and `from_parts` of a `VisionLanguageModel`."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, *args: Any, **kwargs: Any) -> Any:
        """As in transformers, but strict: a missing or unused weight is an error, and the processor comes along.

        A public LLaVA, LLaVA-NeXT, OpenVLA or Prismatic checkpoint becomes a model of this class; it takes dtype,
        device and revision alone.

        Raises:
            ValueError: no saved model of a known kind, weights that do not fit the configuration, or a processor saved for other preprocessing. With
                ignore_mismatched_sizes the language model's may have other sizes, and are then initialized again.
        """
        kind = _model_type(pretrained_model_name_or_path, kwargs)
        if kind in STOCK_TYPES:
            foreign = cls.from_parts(read_parts(pretrained_model_name_or_path, model_type=kind, **kwargs))
            foreign.hub_id = hub_id(pretrained_model_name_or_path)
            return foreign
        if kind != VisionLanguageConfig.model_type:
            raise ValueError(
                f"{pretrained_model_name_or_path} holds a {kind} model, expected one saved by VisionLanguageModel, LLaVA or "
                "Prismatic"
            )
        check_saved(Path(pretrained_model_name_or_path))
        wants_info, forgiving = kwargs.pop("output_loading_info", False), kwargs.pop("ignore_mismatched_sizes", False)
        try:
            loaded: Any = super().from_pretrained(  # type: ignore[misc]
                pretrained_model_name_or_path, *args, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs
            )
        except SafetensorError as error:
            raise ValueError(
                f"{pretrained_model_name_or_path} has a damaged safetensors file ({error}): download it again"
            ) from None
        model, info = loaded
        model.hub_id = hub_id(pretrained_model_name_or_path)
        for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
            faults = sorted(map(str, info.get(kind) or ()))
            if kind == "mismatched_keys" and forgiving:
                faults = [fault for fault in faults if "language_model." not in fault]
            if names := ", ".join(faults[:5]):
                raise ValueError(
                    f"{pretrained_model_name_or_path} has {kind.replace('_', ' ')}: {names}; save the model again"
                )
        check_finite(model, pretrained_model_name_or_path)
        folder = Path(pretrained_model_name_or_path)
        if not folder.is_dir() or (folder / "tokenizer_config.json").is_file():
            origin = {name: kwargs[name] for name in ("revision", "token", "cache_dir", "subfolder") if name in kwargs}
            try:
                model.processor = AutoProcessor.from_pretrained(pretrained_model_name_or_path, **origin)
            except Exception as error:  # each file fails in its own way; tokenizers raise plain Exception
                raise ValueError(
                    f"the processor's files in {folder} cannot be read ({error}): download them again"
                ) from error
            if model._processor.image_processor.fingerprint != model.encoder.preprocess.fingerprint:
                raise ValueError(
                    f"{pretrained_model_name_or_path}: the processor's preprocessing {model._processor.image_processor.fingerprint} "
                    f"differs from the encoder's, {model.encoder.preprocess.fingerprint}: restore the processor's files"
                )
        return (model, info) if wants_info else model

    @classmethod
    def from_parts(cls, parts: Parts) -> Any:
        """The parts of a foreign checkpoint as one model; without a tokenizer its processor is None."""
        encoder, projector, llm, layout = parts.encoder, parts.projector, parts.language_model, parts.layout
        if parts.tokenizer is not None:
            made: Any = cls
            model = made.attach(encoder, llm, projector=projector, tokenizer=parts.tokenizer, layout=layout)
        else:
            config = describe(encoder, projectors.describe(projector), layout, llm, parts.image_token_id)
            model = cls._assemble(config, encoder, projector, llm)
            model.generation_config = llm.generation_config
        if parts.newline is not None and model.image_newline is not None:
            model.image_newline.data = parts.newline
        return model.eval()

    @classmethod
    def _assemble(cls, config: VisionLanguageConfig, encoder: Encoder | FusedEncoder, projector: Any, llm: Any) -> Any:
        """The parts as they are, no weight changed."""
        for module in (*encoder.modules(), *projector.modules(), *llm.modules()):
            module._is_hf_initialized = True  # type: ignore[assignment]  # keeps post_init from touching weights
        made: Any = cls
        return made(config, encoder=encoder, projector=projector, language_model=llm)


def check_saved(folder: Path) -> None:
    """Raise ValueError for a saved folder with an adapter, or with weights that are whole numbers, which would be cast."""
    if not (folder / "config.json").is_file():
        return
    checkpoint = Checkpoint(folder)
    checkpoint.check_no_adapter()
    if "quantization_config" in checkpoint.config or not any(folder.glob("model*.safetensors*")):
        return
    for name, dtype in checkpoint.weights.dtypes.items():
        if dtype is not None and not dtype.is_floating_point:
            raise ValueError(f"{folder}: {name} holds {dtype}, expected floating point numbers: save the model again")


def check_finite(model: nn.Module, source: object) -> None:
    """Raise ValueError for a model with weights that are not finite."""
    for name, weight in model.named_parameters():
        if not weight.is_meta and weight.is_floating_point() and not weight.isfinite().all():
            raise ValueError(f"{source}: {name} holds values that are not finite: load another checkpoint")


def describe(
    encoder: Encoder | FusedEncoder,
    projector: dict[str, Any],
    layout: Layout,
    llm: Any,
    image_token_id: int,
    **more: Any,
) -> VisionLanguageConfig:
    """The configuration of a model with these parts."""
    return VisionLanguageConfig(
        encoder_config=encoder.to_dict(),
        projector_config=projector,
        layout_config=layout.to_dict(),
        text_config=llm.config,
        image_token_id=image_token_id,
        dtype=llm.dtype,
        attn_implementation=llm.config._attn_implementation,
        **more,
    )


def _model_type(source: str | Path, options: dict[str, Any]) -> str | None:
    """model_type of a checkpoint, from config.json. Raises ValueError if there is none that can be read."""
    folder = Path(source)
    if folder.is_dir() and not options.get("subfolder") and not (folder / "config.json").is_file():
        raise ValueError(f"{folder} has no config.json: pass the folder that VisionLanguageModel.save_pretrained wrote")
    if not folder.exists() and str(source).count("/") != 1:
        raise ValueError(f"there is no folder {source}, and it is no hub id of the form owner/name")
    origin = {name: options[name] for name in ("revision", "token", "cache_dir", "subfolder") if name in options}
    try:
        described, _ = PreTrainedConfig.get_config_dict(source, **origin)
    except OSError as error:  # offline, unknown, gated
        reason = " ".join(str(error).split())
        raise ValueError(f"config.json of {source} cannot be read ({reason})") from error
    return described.get("model_type")
