"""Common parts of the layouts of LLaVA and Prismatic: a tower at one size, a language model inside a larger file."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, GenerationConfig
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_utils import PreTrainedModel

import projectors
from vlm_vision.checkpoints.towers import WeightSource
from vlm_vision.encoder import Encoder
from vlm_vision.fused import FusedEncoder
from vlm_vision.nn.config import ViTConfig
from vlm_vision.nn.vit import VisionTransformer
from vlm_vision.preprocess.spec import Preprocess
from vlm_vision.vlm.layout import Layout

Json = dict[str, Any]
State = dict[str, Tensor]

NON_NUMERIC_FIELDS = (
    "position_resize",
    "drop_path",
    "drop_path_ramp",
    "patch_drop",
    "remainder",
    "layer_scale",
    "class_input",
)
"""Fields of `ViTConfig` that change no output of a tower without classes at its native size in evaluation; layer_scale is
an initial value."""


@dataclass(frozen=True, kw_only=True)
class Folder:
    """A model in a foreign layout, before it is written."""

    tensors: State
    """Weights by their names on disk."""
    config: Json
    """Content of config.json."""
    files: dict[str, Json]
    """Other JSON files by name."""
    tokenizer: Any


@dataclass(frozen=True, kw_only=True)
class Parts:
    """A model from a foreign layout: the parts that `VisionLanguageModel.from_parts` joins."""

    encoder: Encoder | FusedEncoder
    projector: projectors.Projector
    language_model: PreTrainedModel
    layout: Layout
    tokenizer: Any
    """Tokenizer; None if the folder has none."""
    image_token_id: int
    """Id of an image token in `input_ids`, for a model without a tokenizer."""
    newline: Tensor | None = None
    """Newline token (D,) after each row of tiles, for a layout that has one."""


def canvas(spec: Preprocess, what: str) -> int:
    """Side in pixels of the square that every image becomes. Raises ValueError if there is none."""
    size = spec.output_size
    if size is None or size[0] != size[1]:
        sizes = "images of any size" if size is None else f"images of {size[0]}x{size[1]} pixels"
        raise ValueError(
            f"{what} takes square images of one size, but this encoder's preprocessing makes {sizes}: load the "
            "encoder with image_size=..."
        )
    return size[0]


def tower_at(encoder: Encoder, side: int, *, pool: bool) -> tuple[ViTConfig, State]:
    """Architecture and weights of a tower whose native size is side x side, its position table resized by its own rule.

    Args:
        pool: keep attention pooling. All else that image tokens do not come from is left out: projection, classes and
            mask token.
    """
    rows, columns = encoder.grid(side, side)
    config, state = encoder.config, dict(encoder.model.state_dict())
    if (rows, columns) != (side // config.patch_size,) * 2:
        raise ValueError(
            f'remainder="pad" makes {rows}x{columns} patches of {side} pixels, which no foreign layout supports: set '
            "image_size to a multiple of the patch size"
        )
    if encoder.model.position is not None:
        with torch.no_grad():
            state["position.table"] = torch.cat(encoder.model.position((rows, columns)), dim=1)
    attention_pool = config.pool == "map" and not pool
    config = replace(
        config,
        image_size=(side, side),
        mask_token=False,
        num_classes=0,
        pool="none" if attention_pool else config.pool,
        pool_head="none",
        pool_dim=0,
    )
    with torch.device("meta"):
        kept = VisionTransformer(config).state_dict()
    if lacking := sorted(kept.keys() - state.keys()):
        raise ValueError(f"the tower lacks {lacking[0]}: export a model without packed weights and without adapters")
    return config, {name: state[name].detach() for name in kept}


def check_same(ours: ViTConfig, theirs: ViTConfig, what: str) -> None:
    """Raise ValueError if the written configuration would be read as another architecture."""
    fields = {name: getattr(ours, name) for name in NON_NUMERIC_FIELDS}
    theirs = replace(theirs, **fields)
    differ = [
        f"{name} {value!r} would be read as {getattr(theirs, name)!r}"
        for name, value in vars(ours).items()
        if value != getattr(theirs, name)
    ]
    if differ:
        raise ValueError(f"{what} cannot express this tower: {', '.join(differ)}")


def language_tensors(llm: PreTrainedModel) -> State:
    """The language model's weights by their own names; a head that is the word embeddings is left out."""
    state = {name: value.detach() for name, value in llm.state_dict().items()}
    if llm.config.tie_word_embeddings:
        head = llm.get_output_embeddings()
        tied = {f"{name}.weight" for name, module in llm.named_modules() if module is head}
        return {name: value for name, value in state.items() if name not in tied}
    return state


def load_language_model(
    weights: WeightSource, config: PreTrainedConfig, source: Path, dtype: torch.dtype, device: torch.device
) -> PreTrainedModel:
    """The language model of a larger checkpoint: `language_model.*`, or `model.language_model.*` and `lm_head.*`.

    Only its bytes are read, each weight widened or rounded to dtype once; what is no weight (rotary frequencies) is
    computed in full precision.

    Raises:
        ValueError: a language model that transformers does not know, a weight that is missing, unused or of another
            shape, a damaged file.
    """
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ValueError(f"{source} has the language model {config.model_type!r}, which is not a causal language model")
    kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    own = {"model.language_model.": f"{kind.base_model_prefix}.", "language_model.": "", "lm_head.": "lm_head."}
    state = {}
    for name in weights.shapes:
        for prefix, ours in own.items():
            if name.startswith(prefix):
                state[ours + name.removeprefix(prefix)] = weights.get(name)
                break
    try:
        model, info = kind.from_pretrained(
            None, config=config, state_dict=state, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True
        )
    except (SafetensorError, RuntimeError) as error:
        raise ValueError(
            f"the language model in {source} cannot be read ({error}): download the folder again"
        ) from None
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info.get(problem):
            names = ", ".join(map(str, sorted(info[problem], key=str)[:5]))
            raise ValueError(
                f"the language model in {source} has {problem.replace('_', ' ')}: {names}; its configuration is for "
                "another model, or the folder is incomplete: download it again"
            )
    if (source / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(source)
    return model.to(device)


def has_tokenizer(path: Path) -> bool:
    """Whether a folder has a tokenizer's files."""
    return (path / "tokenizer_config.json").is_file()
