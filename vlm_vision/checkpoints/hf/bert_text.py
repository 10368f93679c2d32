"""Text towers that are a BERT or a RoBERTa: AltCLIP (Chen et al. 2022, arXiv:2211.06679) and Chinese CLIP (Yang et al. 2022,
arXiv:2211.01335).

They are transformers' own modules with weights that are read as strictly as ours. A pooler of a file that the model does not
have is left out, as by transformers.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vlm_vision.checkpoints.keys import Key, key
from vlm_vision.nn.text import TextOutput, check_ids

Json = dict[str, Any]

POOLER = "pooler.dense.weight"


@dataclass(frozen=True, kw_only=True)
class BertKind:
    """One of the two families."""

    name: str
    """First part of the names of transformers' classes."""
    defaults: Mapping[str, Any]
    landmark: str
    """Name of the token embedding."""
    projection_dim: int
    """Width of the features of a whole model whose config.json does not state it."""
    roberta: bool
    """Positions count from the padding's id + 1, and skip padding."""


_SHARED: Json = dict(hidden_act="gelu", bos_token_id=0, hidden_dropout_prob=0.1)
ALTCLIP = BertKind(
    name="AltCLIP",
    landmark="roberta.embeddings.word_embeddings.weight",
    projection_dim=768,
    roberta=True,
    defaults=_SHARED
    | dict(
        vocab_size=250002,
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        max_position_embeddings=514,
        layer_norm_eps=1e-5,
        pad_token_id=1,
        eos_token_id=2,
        type_vocab_size=1,
        project_dim=768,
        attention_probs_dropout_prob=0.0,
    ),
)
CHINESE_CLIP = BertKind(
    name="ChineseCLIP",
    landmark="embeddings.word_embeddings.weight",
    projection_dim=512,
    roberta=False,
    defaults=_SHARED
    | dict(
        vocab_size=30522,
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
        max_position_embeddings=512,
        layer_norm_eps=1e-12,
        pad_token_id=0,
        type_vocab_size=2,
        attention_probs_dropout_prob=0.1,
    ),
)


@dataclass(frozen=True, kw_only=True)
class BertTextConfig:
    """Everything that decides the architecture: the fields of transformers' configuration, and what is around the tower."""

    kind: BertKind
    fields: Mapping[str, Any]
    pooler: bool
    """Features are read through a dense layer and tanh: Chinese CLIP's text tower alone."""
    proj_dim: int
    """Width of the features after a linear map; 0 for no map."""

    @property
    def vocab_size(self) -> int:
        return self.fields["vocab_size"]

    @property
    def context_length(self) -> int:
        """The most tokens of a text."""
        rows = self.fields["max_position_embeddings"]
        return rows - self.pad_id - 1 if self.kind.roberta else rows

    @property
    def embed_dim(self) -> int:
        return self.fields["hidden_size"]

    @property
    def depth(self) -> int:
        return self.fields["num_hidden_layers"]

    @property
    def pad_id(self) -> int:
        return self.fields["pad_token_id"]

    @property
    def features_dim(self) -> int:
        """Width of the features."""
        return self.proj_dim or (self.fields["project_dim"] if self.kind is ALTCLIP else self.embed_dim)


class BertText(nn.Module):
    """Text transformer of transformers, called as `vlm_vision.nn.text.TextTransformer`."""

    def __init__(self, config: BertTextConfig):
        super().__init__()
        import transformers

        self.config, kind = config, config.kind
        try:
            theirs = getattr(transformers, f"{kind.name}TextConfig")(**config.fields)
        except Exception as error:  # its checks raise their own kinds
            reason = " ".join(str(error).split())
            raise ValueError(
                f"transformers cannot make the text tower ({reason}): download config.json again"
            ) from None
        options = {} if kind is ALTCLIP else {"add_pooling_layer": config.pooler}
        self.tower = getattr(transformers, f"{kind.name}TextModel")(theirs, **options)
        for module in self.tower.modules():
            for name in ("position_ids", "token_type_ids"):  # counters, which forward passes instead
                if name in module._buffers:
                    delattr(module, name)
        self.head = nn.Linear(_width(config), config.proj_dim, bias=False) if config.proj_dim else None

    @property
    def gradient_checkpointing(self) -> bool:
        return self.tower.is_gradient_checkpointing

    @gradient_checkpointing.setter
    def gradient_checkpointing(self, on: bool) -> None:
        if on:
            self.tower.gradient_checkpointing_enable()
        else:
            self.tower.gradient_checkpointing_disable()

    def forward(self, ids: Tensor, *, tokens: bool = True) -> TextOutput:
        """Read a batch of texts (B, L), whose padding is left out; arguments and errors as `TextTransformer.forward`."""
        config = self.config
        check_ids(ids, config.context_length)
        seen = (ids != config.pad_id).long()
        if config.kind.roberta:
            positions = seen.cumsum(dim=1) * seen + config.pad_id
        else:
            positions = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        out = self.tower(
            input_ids=ids, attention_mask=seen, position_ids=positions, token_type_ids=torch.zeros_like(ids)
        )
        x = out.last_hidden_state
        features = out.pooler_output if config.pooler else x[:, 0]
        return TextOutput(x if tokens else x[:, :0], features if self.head is None else self.head(features))


def reader(kind: BertKind) -> Callable[[Json, Collection[str]], BertTextConfig]:
    """(fields with defaults, stored names without prefix) -> ours"""

    def read(fields: Json, names: Collection[str]) -> BertTextConfig:
        projected = "text_projection.weight" in names
        around = ("model_type", "projection_dim", "architectures", "dtype", "torch_dtype", "transformers_version")
        inner = {name: value for name, value in fields.items() if name not in around}
        return BertTextConfig(
            kind=kind,
            fields=inner,
            pooler=not projected and POOLER in names,
            proj_dim=fields["projection_dim"] if projected else 0,
        )

    return read


def keys(config: BertTextConfig) -> list[Key]:
    """Every weight by transformers' name, in the spelling of public files."""
    with torch.device("meta"):
        names = list(BertText(config).state_dict())
    return [
        key(
            name,
            "text_projection.weight"
            if name == "head.weight"
            else name.removeprefix("tower.").replace("encoder.layers.", "encoder.layer."),
        )
        for name in names
    ]


SPELLINGS = ((r"encoder\.layers\.", "encoder.layer."),)
"""AltCLIP's blocks have another name in transformers' memory than in its files."""


def is_ignored(name: str) -> bool:
    """Counters of old files, and the pooler that RoBERTa's files have and AltCLIP does not use."""
    return name.endswith(("position_ids", "token_type_ids")) or name.startswith("roberta.pooler.")


def _width(config: BertTextConfig) -> int:
    return config.fields["project_dim"] if config.kind is ALTCLIP else config.embed_dim
