"""Save both towers of a CLIP or SigLIP in the layout of transformers, whole or not at all."""

from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from vlm_vision.checkpoints.hf import text as text_hf
from vlm_vision.checkpoints.hf.bert_text import BertText
from vlm_vision.checkpoints.hf.card import Card, write_card
from vlm_vision.checkpoints.manifest import write_manifest
from vlm_vision.checkpoints.save import SIDECAR, hf_files
from vlm_vision.files import whole, write_json
from vlm_vision.nn.config import ViTConfig
from vlm_vision.nn.text import TextTransformer
from vlm_vision.nn.vit import VisionTransformer
from vlm_vision.preprocess.spec import Preprocess
from vlm_vision.preprocess.tokenizer import TextTokenizer

KINDS = {"clip_vision_model": "clip", "siglip_vision_model": "siglip", "siglip2_vision_model": "siglip2"}
"""Family of the vision tower -> model_type of the pair."""
ARCHITECTURES = {"clip": "CLIPModel", "siglip": "SiglipModel", "siglip2": "Siglip2Model"}


def save_pair(
    folder: Path,
    *,
    image: VisionTransformer,
    family: str,
    preprocess: Preprocess,
    sidecar: dict[str, Any],
    text: TextTransformer | BertText,
    logit_scale: Tensor,
    logit_bias: Tensor | None,
    tokenizer: TextTokenizer | None,
    card: Card,
) -> None:
    """See `Pair.save_pretrained`."""
    kind = KINDS.get(family)
    if kind is None:
        raise ValueError(f"a pair with a {family} cannot be saved: expected a vision tower of {', '.join(KINDS)}")
    if isinstance(text, BertText):
        raise ValueError(
            f"a pair with the text tower of {text.config.kind.name} cannot be saved: write its tuned image tower into the folder "
            "by pair.image.save_pretrained(out, into=folder)"
        )
    if (kind == "clip") != (logit_bias is None):
        raise ValueError(
            f"a {kind} pair {'has no' if kind == 'clip' else 'needs a'} logit_bias: {'remove' if kind == 'clip' else 'set'} it"
        )
    _check_widths(image.config, text)
    tensors, files, written = hf_files(image, image.state_dict(), family, preprocess)
    described = files["config.json"]
    vision = {name: value for name, value in described.items() if name not in ("architectures", "dtype")}
    text_tensors, text_config = text_hf.write(kind, text.config, text.state_dict())
    config: dict[str, Any] = {
        "model_type": kind,
        "architectures": [ARCHITECTURES[kind]],
        "dtype": described["dtype"],
        "vision_config": vision,
        "text_config": text_config,
    }
    scalars = {"logit_scale": logit_scale.detach().reshape(())}
    if kind == "clip":
        config["projection_dim"] = text.config.proj_dim
    else:
        assert logit_bias is not None
        scalars = {"logit_scale": logit_scale.detach().reshape(1), "logit_bias": logit_bias.detach().reshape(1)}
    if written != preprocess:
        sidecar = sidecar | {"preprocess": preprocess.to_dict()}
    with whole(folder) as staging:
        save_file(
            {name: value.contiguous() for name, value in (tensors | text_tensors | scalars).items()},
            staging / "model.safetensors",
            metadata={"format": "pt"},
        )
        for name, content in (files | {"config.json": config, SIDECAR: sidecar}).items():
            write_json(staging / name, content)
        if tokenizer is not None:
            tokenizer.save_pretrained(staging)
        write_card(staging, card)
        write_manifest(staging)


def _check_widths(image: ViTConfig, text: TextTransformer) -> None:
    width = image.pool_dim or image.embed_dim
    if width != text.config.features_dim:
        raise ValueError(
            f"image features have width {width} and text features {text.config.features_dim}: expected equal widths"
        )
