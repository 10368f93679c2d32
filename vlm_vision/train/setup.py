"""What every recipe needs before its loop: typed settings, data, the model, cached features, the processes."""

import logging
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
import yaml
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from accelerate.utils import (
    DistributedDataParallelKwargs,
    InitProcessGroupKwargs,
    ProjectConfiguration,
    set_seed,
)
from jsonargparse import ArgumentParser

import projectors
from vlm_vision.config import Tap
from vlm_vision.data.conversations import Conversation
from vlm_vision.data.features import FeatureCache
from vlm_vision.data.read import read_conversations
from vlm_vision.load import load
from vlm_vision.new_models import new_encoder, new_language_model, word_tokenizer
from vlm_vision.train.packing import check_packing
from vlm_vision.vlm.layout import layout_from_dict
from vlm_vision.vlm.model import VisionLanguageModel

LONGEST_WAIT = timedelta(hours=6)
"""Of a process for another one, which may encode all pictures or load a large model meanwhile."""


@dataclass(frozen=True, kw_only=True)
class Data:
    """Where conversations come from; sources as `vlm_vision.data.read.read_conversations` takes them."""

    train: str
    """easy_vqa, a .json or .jsonl file in LLaVA's form, .tar shards, a folder of a data set, or hf:owner/name."""
    test: str = ""
    """The same, to be measured on; empty for none."""
    images: str = ""
    """Folder that picture paths start from; empty for that of the JSON file."""
    train_split: str = "train"
    test_split: str = "test"


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """Who sees."""

    source: str = ""
    """Argument of vlm_vision.load; empty to start from `new`."""
    new: dict[str, Any] = field(default_factory=dict)
    """Fields of ViTConfig for an encoder with random weights."""
    image_size: int = 0
    """Side in pixels of what the encoder sees; 0 for its own."""
    tap_layer: int = -1
    """Block whose tokens are used."""
    tap_norm: bool = True
    """Whether the final norm is applied to them."""


@dataclass(frozen=True, kw_only=True)
class Language:
    """Who answers."""

    source: str = ""
    """Folder or hub id for AutoModelForCausalLM; empty to start from `new`."""
    gguf_file: str = ""
    """File within `source`, for GGUF weights."""
    new: dict[str, Any] = field(default_factory=dict)
    """model_type and fields of a transformers configuration, for a model with random weights."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is chosen for a run, whatever it trains."""

    out: str
    """Folder for everything the run writes."""
    data: Data
    start: str = ""
    """Folder of a saved VisionLanguageModel to begin from, in place of encoder, language, projector and layout."""
    encoder: Encoder = Encoder()
    language: Language = Language()
    projector: str = "mlp"
    """A name of projectors.build."""
    projector_options: dict[str, Any] = field(default_factory=dict)
    """Its options."""
    layout: dict[str, Any] = field(default_factory=dict)
    """name: whole, anyres or native, and its fields; empty for the encoder's own."""
    steps: int = 1000
    """Optimiser steps."""
    batch_size: int = 64
    """Conversations per step, over all processes."""
    micro_batch_size: int = 64
    """Conversations per forward pass of each process."""
    max_length: int = 2048
    """Tokens per conversation, image tokens included."""
    pack_length: int = 0
    """Tokens per row in which several conversations stand; 0 for one conversation in each row."""
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.01
    warmup_steps: int = 100
    max_grad_norm: float = 1.0
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    gradient_checkpointing: bool = False
    """Compute each layer again in the backward pass: less memory, a third more time."""
    sharding: Literal["none", "fsdp2"] = "none"
    """How several processes share the model: each has a copy (DDP), or its part (FSDP2)."""
    workers: int = 0
    """Processes that read pictures."""
    cache_features: bool = True
    """Keep the patch tokens of a frozen encoder on disk, where every picture is one canvas."""
    feature_folder: str = ""
    """Where; empty for `out`/features. Runs may share it."""
    feature_dtype: Literal["float16", "float32"] = "float16"
    """In which numbers."""
    checkpoint_every: int = 500
    """Steps between checkpoints."""
    eval_every: int = 0
    """Steps between looks at the test conversations; 0 for only at the end."""
    eval_limit: int = 256
    """Test conversations to look at, the first ones; 0 for all."""
    eval_batch_size: int = 128
    log_every: int = 10
    """Steps between figures for the tracker."""
    tracker: str = "tensorboard"
    """Who keeps the figures: none, or one that accelerate knows. TensorBoard's files are in `out`/logs."""
    seed: int = 0

    def __post_init__(self):
        self._at_least(1, "steps", "batch_size", "micro_batch_size", "checkpoint_every", "eval_batch_size", "log_every")
        self._at_least(0, "warmup_steps", "pack_length", "eval_every", "eval_limit", "workers")
        if self.sharding == "fsdp2" and self.mixed_precision == "fp16":
            raise ValueError("sharding fsdp2 has no gradient scaler for fp16: choose mixed_precision bf16 or no")
        if self.start and (self.encoder != Encoder() or self.language != Language() or self.layout):
            raise ValueError(
                f"start {self.start} brings its own encoder, language model and layout: leave encoder, language and layout out"
            )

    def _at_least(self, least: int, *names: str) -> None:
        for name in names:
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be at least {least}")

    def decisive(self) -> dict[str, Any]:
        """What must stay the same for a stopped run to go on, as YAML and JSON write it."""
        return {
            name: value for name, value in as_plain(self).items() if name not in _FREE and not name.startswith("eval")
        }


_FREE = ("out", "feature_folder", "checkpoint_every", "workers", "log_every", "tracker")
"""Settings that do not change what is learned; those that begin with eval do not either."""

S = TypeVar("S", bound=Settings)


def as_plain(settings: Settings) -> dict[str, Any]:
    """The settings as YAML and JSON write them."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(settings).items()}


def parsed(kind: type[S], name: str, about: str | None, arguments: list[str] | None = None) -> S:
    """Typed settings from --config FILE.yaml and --key value."""
    parser = ArgumentParser(prog=f"python -m {name}", description=about)
    parser.add_argument("--config", action="config", help="YAML file; later arguments override it")
    parser.add_class_arguments(kind, as_positional=False)
    settings = parser.instantiate(parser.parse_args(arguments))
    return kind(**{name: value for name, value in settings.items() if name != "config"})


def run(name: str, job: Callable[[], object]) -> None:
    """Do the job of a script; what the user can put right is said in one sentence, with exit code 2."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        job()
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"{name}: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)


def begin(settings: Settings) -> Accelerator:
    """The processes, the seed and the run's folder.

    Raises:
        ValueError: a tracker that is not known or not installed, or a precision that this machine does not have.
    """
    if settings.tracker != "none" and settings.tracker not in LOGGER_TYPE_TO_CLASS:
        raise ValueError(f"tracker is {settings.tracker!r}: expected none or one of {', '.join(LOGGER_TYPE_TO_CLASS)}")
    if settings.tracker != "none" and settings.tracker not in map(str, get_available_trackers()):
        raise ValueError(
            f"tracker {settings.tracker} is not installed: pip install {settings.tracker}, or set tracker: none"
        )
    out = Path(settings.out)
    AcceleratorState._reset_state()  # a run before this one in the same process may have had another precision
    accelerator = Accelerator(
        mixed_precision=settings.mixed_precision,
        log_with=None if settings.tracker == "none" else settings.tracker,
        project_config=ProjectConfiguration(project_dir=str(out), logging_dir=str(out / "logs")),
        kwargs_handlers=[
            DistributedDataParallelKwargs(find_unused_parameters=True),  # an expert may have had nothing to do
            InitProcessGroupKwargs(timeout=LONGEST_WAIT),
        ],
    )
    if settings.mixed_precision == "fp16" and accelerator.scaler is None:
        raise ValueError(f"mixed_precision fp16 is not for {accelerator.device.type}: choose bf16 or no")
    if not accelerator.is_main_process:
        logging.getLogger().setLevel(logging.WARNING)
    set_seed(settings.seed)
    out.mkdir(parents=True, exist_ok=True)
    return accelerator


def write_config(settings: Settings) -> None:
    """config.yaml in the run's folder, from which the run can be started again."""
    (Path(settings.out) / "config.yaml").write_text(yaml.safe_dump(as_plain(settings), sort_keys=False))


def read_data(data: Data) -> tuple[Sequence[Conversation], Sequence[Conversation]]:
    """Conversations to train on and to be measured on; the latter may be none."""
    train = read_conversations(data.train, images=data.images, split=data.train_split)
    test = read_conversations(data.test, images=data.images, split=data.test_split) if data.test else []
    return train, test


def build_model(settings: Settings, train: Sequence[Conversation]) -> VisionLanguageModel:
    """Encoder, projector and language model, each loaded or made new; or the saved model that `start` names.

    Args:
        train: a new language model knows the words of these.

    Raises:
        ValueError: as the loaders; a language model that cannot train on packed rows where they are asked for.
    """
    if settings.start:
        if not Path(settings.start, "config.json").is_file():
            raise ValueError(f"start {settings.start} has no config.json: give the folder that save_pretrained wrote")
        model = VisionLanguageModel.from_pretrained(settings.start, dtype=torch.float32)
    else:
        model = _joined(settings, train)
    if settings.pack_length:
        check_packing(model)
    if settings.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model


def _joined(settings: Settings, train: Sequence[Conversation]) -> VisionLanguageModel:
    tap = Tap(settings.encoder.tap_layer, settings.encoder.tap_norm)
    if settings.encoder.source:
        encoder = load(settings.encoder.source, tap=tap, image_size=settings.encoder.image_size or None)
    else:
        encoder = new_encoder(settings.encoder.new, tap=tap)
    if settings.language.source:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        options = {"gguf_file": settings.language.gguf_file} if settings.language.gguf_file else {}
        llm = AutoModelForCausalLM.from_pretrained(settings.language.source, dtype=torch.float32, **options)
        tokenizer = AutoTokenizer.from_pretrained(settings.language.source, **options)
    else:
        tokenizer = word_tokenizer(text for one in train for turn in one.turns for text in turn)
        llm = new_language_model(settings.language.new, tokenizer)
    layout = layout_from_dict(settings.layout) if settings.layout else None
    projector: str | projectors.Projector = settings.projector
    if settings.projector_options:
        words: Any = llm.get_input_embeddings()
        widths = {"in_dim": encoder.embed_dim, "out_dim": words.weight.shape[1]}
        projector = projectors.build(settings.projector, **widths, **settings.projector_options)
    return VisionLanguageModel.attach(encoder, llm, projector=projector, tokenizer=tokenizer, layout=layout)


def feature_cache(
    settings: Settings,
    accelerator: Accelerator,
    model: VisionLanguageModel,
    conversations: Iterable[Conversation],
) -> FeatureCache | None:
    """Patch tokens of all pictures on disk; None where they are not to be kept, may change, or fit no cache."""
    assert model.processor is not None
    trains = any(weight.requires_grad for weight in model.encoder.parameters())
    if not settings.cache_features or trains or model.processor.image_processor.canvas_size is None:
        return None
    pictures = [picture for one in conversations for picture in one.images]
    if not pictures:
        return None
    model.encoder.to(accelerator.device)
    folder = settings.feature_folder or Path(settings.out) / "features"
    with accelerator.main_process_first():
        return FeatureCache.build(folder, model.encoder, pictures, dtype=settings.feature_dtype)
