"""Settings that recipes share, as dataclasses: the `Config` of a recipe derives from those that it needs.

A docstring under a field is the help text of its flag.
"""

from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Literal, TypedDict

import projectors
from vlm_vision.data.shards.cache import ShardCache
from vlm_vision.new_models import check_language_fields
from vlm_vision.nn.fields import ViTFields, vit_config
from vlm_vision.preprocess.spec import HALF
from vlm_vision.vlm.layout import layout_from_dict

Option = bool | int | float | str | None
"""An option of a projector or an action head, which checks names and values itself."""

RENAMED = {"lr_hands": "lr_action", "eval_neighbours": "eval_neighbors", "neighbours": "neighbors"}
"""Key of version 0.0 -> key today, of every recipe: the error for an old key in a YAML file names the new one; a stopped run resumes."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """Settings of every training run."""

    out: str
    """Folder for everything that the run writes."""
    steps: int = 1000
    """Optimizer steps."""
    batch_size: int = 64
    """Samples per step, over all processes."""
    micro_batch_size: int = 64
    """Samples per forward pass of each process."""
    betas: tuple[float, float] = (0.9, 0.98)
    """Decay rates of AdamW's first and second moments."""
    weight_decay: float = 0.01
    """Weight decay of AdamW, for matrices; biases, norms, learned tokens and embeddings have none."""
    warmup_steps: int = 100
    """Steps in which the learning rate rises to its full value; it falls along a cosine afterwards."""
    max_grad_norm: float = 1.0
    """Largest norm of the gradient, which is scaled down to it; .inf for no limit."""
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    """Number type of forward and backward passes; "no" for float32. Weights and moments are float32 in any case."""
    gradient_checkpointing: bool = False
    """Recompute each layer in the backward pass: less memory, a third more time."""
    sharding: Literal["none", "fsdp2"] = "none"
    """Sharding of the model over processes: each holds a copy (none, which is DDP) or a part (fsdp2)."""
    workers: int = 0
    """Processes per training process that read data; 0 to read in the training process."""
    checkpoint_every: int = 500
    """Steps between checkpoints, from which a stopped run resumes."""
    eval_every: int = 0
    """Steps between measurements on the test data; 0 for one at the end."""
    log_every: int = 10
    """Steps between figures for the tracker."""
    peak_tflops: float = 0.0
    """Peak speed of one device in the precision of the run, in 10^12 operations per second, for model FLOPs utilization
    (Chowdhery et al. 2022, appendix B; recomputation counts) among the figures; 0 for none. An H100 has 989 in bf16."""
    tracker: str = "tensorboard"
    """Experiment tracker: "none" or any that accelerate knows. TensorBoard's files are in `out`/logs."""
    overwrite: bool = False
    """Train again where `out` holds a finished run with other settings, whose model is then replaced."""
    seed: int = 0
    """Seed of everything that is random: new weights, the order of samples, augmentation, dropout."""

    def __post_init__(self):
        self._at_least(1, "steps", "batch_size", "micro_batch_size", "checkpoint_every", "log_every")
        self._at_least(0, "warmup_steps", "eval_every", "workers", "peak_tflops")
        if self.sharding == "fsdp2" and self.mixed_precision == "fp16":
            raise ValueError("sharding fsdp2 has no gradient scaler for fp16: choose mixed_precision bf16 or no")

    def _at_least(self, least: int, *names: str) -> None:
        for name in names:
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be at least {least}")

    def resume_fields(self) -> dict[str, Any]:
        """Settings that must be equal when a stopped run resumes, as YAML and JSON write them."""
        plain = {name: value for name, value in as_plain(self).items() if not name.startswith("eval")}
        if "data" in plain:
            data = plain["data"].items()
            plain["data"] = {
                name: value
                for name, value in data
                if name not in _FREE_DATA and (value or name not in _LATER) and (name, value) != _OLD_STATISTICS
            }
        return {name: value for name, value in plain.items() if name not in _FREE}


_FREE = ("out", "overwrite", "feature_folder", "checkpoint_every", "workers", "log_every", "peak_tflops", "tracker")
"""Settings that do not change the training result; those that begin with eval do not either."""
_FREE_DATA = ("cache", "cache_gb", "memory", "check_images")
"""Settings of the data that do not change the training result."""
_OLD_STATISTICS = ("statistics", "stored")
"""Setting of robot data that runs of version 0.1.0 do not state."""
_LATER = ("state", "action", "leave_out", "tokens")
"""Settings of the data that runs of version 0.1.0 do not have, which are as before where they are empty."""


@dataclass(frozen=True, kw_only=True)
class EncoderSettings:
    """The vision encoder of a vision-language model: loaded, or new."""

    source: str = ""
    """Vision encoder to load, an argument of vlm_vision.load: a hub id, folder or file; empty for a new one."""
    new: ViTFields = field(default_factory=dict)
    """Fields of ViTConfig for an encoder with random weights, such as image_size, patch_size, embed_dim, depth, num_heads and
    mlp_dim."""
    mean: tuple[float, float, float] = HALF[0]
    """Mean of red, green and blue, in 0..1, by which a new encoder normalizes pixels: (value - mean) / std."""
    std: tuple[float, float, float] = HALF[1]
    """Standard deviation of red, green and blue for a new encoder; a smaller one makes small objects more visible."""
    image_size: int = 0
    """Side in pixels to which a loaded encoder resizes images; 0 for its own."""
    tap_layer: int | None = None
    """Block whose tokens are used, -1 for the last; empty for the one that the checkpoint's own model uses."""
    tap_norm: bool = True
    """Apply the final norm to the tokens of `tap_layer`, if that is set."""

    def __post_init__(self):
        if self.source and (self.mean, self.std) != HALF:
            raise ValueError(
                f"encoder.source {self.source} has its own normalization: remove encoder.mean and encoder.std"
            )
        if self.source and self.new:
            raise ValueError(f"encoder.source {self.source} and encoder.new are two encoders: set one of them")
        if self.new:
            vit_config(self.new)


@dataclass(frozen=True, kw_only=True)
class LanguageSettings:
    """The language model of a vision-language model: loaded, or new."""

    source: str = ""
    """Language model to load, a folder or hub id for AutoModelForCausalLM; empty for a new one."""
    gguf_file: str = ""
    """File within `source` that holds GGUF weights; empty for safetensors."""
    new: dict[str, Any] = field(default_factory=dict)
    """model_type and fields of that configuration in transformers, for a language model with random weights."""

    def __post_init__(self):
        if self.source and self.new:
            raise ValueError(f"language.source {self.source} and language.new are two language models: set one of them")
        if self.new:
            check_language_fields(self.new)


class LayoutFields(TypedDict, total=False):
    """An image layout by name, and the fields of its class in `vlm_vision.vlm.layout`."""

    name: str
    pinpoints: list[tuple[int, int]]
    max_patches: int
    multiple: int


@dataclass(frozen=True, kw_only=True)
class VlmSettings:
    """The parts of a `VisionLanguageModel`, or a saved model to start from; shared by align, vqa and vla."""

    start: str = ""
    """Folder or hub id of a saved vision-language model to start from, of this package, LLaVA, OpenVLA or Prismatic; it takes
    the place of encoder, language, projector and layout. Empty to build the model from those."""
    encoder: EncoderSettings = EncoderSettings()
    """Vision encoder."""
    language: LanguageSettings = LanguageSettings()
    """Language model."""
    projector: str = "mlp"
    """Name of a new projector, a key of projectors.PROJECTORS."""
    projector_options: dict[str, Option] = field(default_factory=dict)
    """Options of `projector`, such as {scale: 2} of pixel_shuffle; another projector starts from its own defaults."""
    projector_source: str = ""
    """Projector to load in place of a new one, an argument of vlm_vision.load_projector such as a published VLA."""
    layout: LayoutFields = field(default_factory=dict)  # type: ignore[assignment]
    """Image layout, as {name: anyres, pinpoints: [[672, 672]]} or {name: native, max_patches: 256}; empty for the encoder's
    own."""

    REPLACES: ClassVar[dict[str, tuple[str, ...]]] = {
        "start": ("encoder", "language", "projector", "projector_options", "projector_source", "layout"),
        "encoder.source": ("encoder.new", "encoder.mean", "encoder.std"),
        "encoder.new": ("encoder.source",),
        "language.source": ("language.new",),
        "language.new": ("language.source", "language.gguf_file"),
        "projector": ("projector_options", "projector_source"),
        "projector_source": ("projector", "projector_options"),
        "layout.name": ("layout",),
    }
    """Key -> keys that it takes the place of where a YAML file before it has them; see `vlm_vision.train.layers`."""

    def __post_init__(self):
        if self.start:
            parts = {
                "encoder": self.encoder != EncoderSettings(),
                "language": self.language != LanguageSettings(),
                "projector": self.projector != "mlp" or bool(self.projector_options or self.projector_source),
                "layout": bool(self.layout),
            }
            if extra := [name for name, differs in parts.items() if differs]:
                raise ValueError(
                    f"start {self.start} has its own encoder, language model, projector and layout: remove "
                    f"{' and '.join(extra)}, or remove start"
                )
        elif not self.projector_source:
            projectors.check_options(self.projector, self.projector_options)
        if self.layout:
            layout_from_dict(dict(self.layout))


@dataclass(frozen=True, kw_only=True)
class ConversationData:
    """Sources of conversations, as `vlm_vision.data.conversations.read.read_conversations` takes them."""

    train: str
    """Conversations to train on: easy_vqa, a .json or .jsonl file in LLaVA's form, .tar shards, a folder of a data set, or
    hf:owner/name."""
    test: str = ""
    """Conversations to measure on, in the same forms; empty for none."""
    images: str = ""
    """Folder that image paths are relative to; empty for the folder of the JSON file."""
    train_split: str = "train"
    """Split of a data set to train on."""
    test_split: str = "test"
    """Split of a data set to measure on."""
    tokens: str = ""
    """Token store with the patch tokens of all images, written by `vlm-vision tokens` with the encoder of the run, which is then
    not loaded for training; empty to encode the images."""
    leave_out: float = 0.0
    """Largest share of bad records that may be left out: with missing or broken images, of no known form, or too long for
    `max_length`. 0 for none, so that the first one stops the run before it trains."""
    check_images: Literal["headers", "decode"] = "headers"
    """Check of images before training: headers, or decode each in full, which finds damage behind the header."""

    def __post_init__(self):
        if not 0 <= self.leave_out <= 1:
            raise ValueError(f"data.leave_out is {self.leave_out}: expected a share from 0 to 1")


@dataclass(frozen=True, kw_only=True)
class ConversationSettings:
    """Settings for reading conversations, shared by align and vqa."""

    data: ConversationData
    """Conversations."""
    max_length: int = 2048
    """Most tokens of a conversation, image tokens included."""
    pack_length: int = 0
    """Tokens per row into which several conversations are packed; 0 for one conversation per row."""
    cache_features: bool = True
    """Keep the patch tokens of a frozen encoder in a token store on disk; possible where every image is one canvas."""
    feature_folder: str = ""
    """Folder of that token store, which runs may share; empty for `out`/features."""
    feature_dtype: Literal["float16", "float32"] = "float16"
    """Number type of that token store."""
    eval_limit: int = 256
    """Test conversations per measurement, the first ones; 0 for all."""
    eval_batch_size: int = 128
    """Test conversations per forward pass."""

    def __post_init__(self):
        for name, least in (("eval_batch_size", 1), ("pack_length", 0), ("eval_limit", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be at least {least}")


@dataclass(frozen=True, kw_only=True)
class ImageData:
    """Sources of images, as `vlm_vision.data.images.samples.read_samples` takes them."""

    train: str
    """Images to train on: a folder, a .csv or .jsonl file, .tar shards on disk or by URL, easy_vqa, or hf:owner/name."""
    test: str = ""
    """Images to measure on, in the same forms; empty for none."""
    images: str = ""
    """Folder that image paths are relative to; empty for the folder of the table."""
    train_split: str = "train"
    """Split of a data set, or folder inside the source, to train on."""
    test_split: str = "test"
    """Split of a data set, or folder inside the source, to measure on."""
    classes: int = 0
    """Number of classes of the labels in shards by URL; 0 to read no labels from them."""
    shuffle_shards: int | None = None
    """Shards that are shuffled together; 0 for all; empty for 16 of shards by URL, and for all shards on disk."""
    cache: str = ShardCache.folder
    """Folder for downloaded shards, on a disk of each machine."""
    cache_gb: float = ShardCache.gb
    """Size of the shard cache in 10^9 bytes; best twice `shuffle_shards` shards, so that the next ones arrive in time."""

    def __post_init__(self):
        if self.classes < 0 or (self.shuffle_shards or 0) < 0:
            raise ValueError(
                f"data.classes is {self.classes}, data.shuffle_shards {self.shuffle_shards}: expected 0 or more"
            )
        ShardCache(self.cache, self.cache_gb)


def check_frozen(tokens: str, needed: dict[str, bool]) -> None:
    """Raise ValueError for settings that stored tokens exclude.

    Args:
        tokens: the token store; empty for none.
        needed: what the run must have, as "train_vision frozen" -> whether it has it.
    """
    if tokens and (wrong := [setting for setting, holds in needed.items() if not holds]):
        raise ValueError(
            f"data.tokens holds what a frozen encoder gives for whole images, without augmentation: set {' and '.join(wrong)}, or "
            "leave data.tokens out"
        )


def as_plain(settings: Any) -> dict[str, Any]:
    """A dataclass of settings as YAML and JSON write it."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(settings).items()}
