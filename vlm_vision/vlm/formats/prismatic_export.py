"""Export of a `VisionLanguageModel` to a folder in Prismatic's layout, with its verification.

The format has no place for an image in the prompt: its reader takes one image for each prompt and puts the patches right
after the first token. A model exported from here gives the same numbers there for a prompt that begins with `<image>`.

The reader's own configuration class derives timm's names, activations and image sides from vision_backbone_id; the file
states them all the same. A tower of another shape than the named one has its arguments under `timm_model_args`, one key
more than the public folders have, and loads only where that, `timm_override_act_layers` and `image_sizes` are read.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import projectors
from vlm_vision.checkpoints.openvla import reader as towers
from vlm_vision.checkpoints.openvla.preprocess import from_openvla
from vlm_vision.checkpoints.timm import layout as timm_layout
from vlm_vision.checkpoints.timm import reader as timm
from vlm_vision.checkpoints.timm import writer as timm_write
from vlm_vision.checkpoints.towers import Hints
from vlm_vision.encoder import Encoder
from vlm_vision.fused import FusedEncoder
from vlm_vision.nn.config import ViTConfig
from vlm_vision.preprocess.spec import Preprocess
from vlm_vision.vlm.formats.common import (
    Folder,
    Json,
    State,
    canvas,
    check_same,
    language_tensors,
    tower_at,
)
from vlm_vision.vlm.formats.prismatic import read_prismatic
from vlm_vision.vlm.layout import Whole
from vlm_vision.vlm.model import VisionLanguageModel
from vlm_vision.vlm.processor import IMAGE_TOKEN

BACKBONES: dict[tuple[str, ...], tuple[str, ...]] = {
    ("dinov2_with_registers", "siglip_vision_model"): ("dinosiglip-vit-so-224px", "dinosiglip-vit-so-384px"),
    ("dinov2_with_registers", "clip_vision_model"): ("dinoclip-vit-l-336px",),
    ("dinov2_with_registers",): ("dinov2-vit-l",),
    ("siglip_vision_model",): (
        "siglip-vit-so400m",
        "siglip-vit-so400m-384px",
        "siglip-vit-b16-224px",
        "siglip-vit-b16-256px",
        "siglip-vit-b16-384px",
    ),
    ("clip_vision_model",): ("clip-vit-l", "clip-vit-l-336px"),
}
"""Families of the towers in channel order -> values of vision_backbone_id to choose from."""


SHAPES = {
    "vit_large_patch14_reg4_dinov2": (1024, 24, 16, 4096, 14, 4),
    "vit_so400m_patch14_siglip": (1152, 27, 16, 4304, 14, 0),
    "vit_base_patch16_siglip": (768, 12, 12, 3072, 16, 0),
    "vit_large_patch14_clip_quickgelu": (1024, 24, 16, 4096, 14, 0),
}
"""Beginning of timm's name -> (width, blocks, heads, MLP width, patch side, registers)."""


LANGUAGE_MODELS = {
    "llama": ("llama2-7b-pure", "meta-llama/Llama-2-7b-hf"),
    "mistral": ("mistral-v0.1-7b-pure", "mistralai/Mistral-7B-v0.1"),
    "phi": ("phi-2-3b", "microsoft/phi-2"),
}
"""model_type of the language model -> (llm_backbone_id, hf_llm_id); text_config states the differences."""


def to_folder(vlm: VisionLanguageModel) -> Folder:
    """The model in Prismatic's layout; each tower at the size of its preprocessing.

    Raises:
        ValueError: what the format cannot express, and what to do about it.
    """
    encoder, llm = vlm.encoder, vlm.language_model
    encoders: list[Any] = list(encoder.towers) if isinstance(encoder, FusedEncoder) else [encoder]
    sides = _check(vlm, encoders)
    name, ids = _backbone([one.origin.family for one in encoders], [one.config for one in encoders], sides)
    tensors: State = {}
    arguments, activations = [], []
    for place, one, side, architecture in zip(towers.HF_NAMES, encoders, sides, ids, strict=False):
        state, given, activation = _tower(one, side, architecture)
        tensors |= {f"vision_backbone.{place}.{key}": value for key, value in state.items()}
        arguments.append(given)
        activations.append(activation)
    tensors |= {f"projector.{key}": value for key, value in vlm.projector.state_dict().items()}
    tensors |= {f"language_model.{key}": value for key, value in language_tensors(llm).items()}
    assert vlm.processor is not None
    strategy, preprocessor = _preprocessor([one.preprocess for one in encoders], sides)
    llm_id, hf_id = LANGUAGE_MODELS[llm.config.model_type]
    config: Json = {
        "architectures": ["PrismaticForConditionalGeneration"],
        "model_type": "prismatic",
        "arch_specifier": "no-align+fused-gelu-mlp" if len(encoders) > 1 else "no-align+gelu-mlp",
        "vision_backbone_id": name,
        "llm_backbone_id": llm_id,
        "hf_llm_id": hf_id,
        "timm_model_ids": ids,
        "timm_override_act_layers": activations,
        "image_sizes": sides,
        "image_resize_strategy": strategy,
        "use_fused_vision_backbone": len(encoders) > 1,
        "llm_max_length": getattr(llm.config, "max_position_embeddings", 2048),
        "pad_token_id": vlm.processor.tokenizer.pad_token_id,
        "pad_to_multiple_of": 1 if llm.config.vocab_size % 64 else 64,
        "output_projector_states": False,
        "text_config": llm.config.to_diff_dict(),
        "torch_dtype": str(vlm.dtype).removeprefix("torch."),
    }
    if any(arguments):
        config["timm_model_args"] = arguments
    files = {"preprocessor_config.json": preprocessor}
    return Folder(tensors=tensors, config=config, files=files, tokenizer=vlm.processor.tokenizer)


def _check(vlm: VisionLanguageModel, encoders: Sequence[Encoder]) -> list[int]:
    """Sides of the towers' images. Raises ValueError for a model that the format cannot express."""
    if type(vlm.layout) is not Whole:
        raise ValueError(
            f"Prismatic has one canvas per image, but this model has the layout {vlm.layout.name!r}: attach the encoder with "
            "Whole()"
        )
    families = tuple(one.origin.family for one in encoders)
    if families not in BACKBONES:
        known = "; ".join(" + ".join(names) for names in BACKBONES)
        raise ValueError(
            f"Prismatic does not have the towers {' + '.join(families)} in this channel order: expected {known}"
        )
    for one in encoders:
        if one.config.mlp == "swiglu":
            raise ValueError(
                f"no backbone of Prismatic has SwiGLU blocks, but this {one.origin.family} has: choose another tower"
            )
        if one.tap.norm or one.tap.more or one.tap.block(one.config.depth) != one.config.depth - 2:
            raise ValueError(
                f"Prismatic reads every tower after its second to last block without norm, but {one.origin.family} is tapped "
                f"at {one.tap}: attach the encoder with tap=vv.Tap(-2, norm=False)"
            )
    fits = projectors.describe(vlm.projector)
    expected = "fused_mlp" if len(encoders) > 1 else "mlp"
    plain = {"name": expected, "in_dim": fits["in_dim"], "out_dim": fits["out_dim"]}
    with torch.device("meta"):
        plain = projectors.describe(projectors.build(**plain))
    if fits != plain:
        raise ValueError(
            f"Prismatic's projector for {len(encoders)} tower{'s' * (len(encoders) > 1)} is {expected!r}, but this one is {fits}: "
            f"attach the encoder with projector={expected!r}"
        )
    if vlm.language_model.config.model_type not in LANGUAGE_MODELS:
        raise ValueError(
            f"Prismatic has no language model {vlm.language_model.config.model_type}: "
            f"expected one of {', '.join(LANGUAGE_MODELS)}"
        )
    sides = [canvas(one.preprocess, "Prismatic") for one in encoders]
    if len(set(sides)) > 1:
        raise ValueError(
            f"Prismatic stacks the images of its towers, but these have sides of {sides} pixels: load them with one "
            "image_size=..."
        )
    return sides


def _backbone(families: Sequence[str], configs: Sequence[ViTConfig], sides: Sequence[int]) -> tuple[str, list[str]]:
    """(vision_backbone_id, timm's names): of the published shape and size, else the nearest in size."""

    def distance(name: str) -> tuple[int, int]:
        published = [(architecture, side) for _, architecture, side in towers.BACKBONES[name]]
        alike = sum(_shape(config) == _named(one) for config, (one, _) in zip(configs, published, strict=True))
        return -alike, abs(published[0][1] - sides[0])

    name = min(BACKBONES[tuple(families)], key=distance)
    return name, [architecture for _, architecture, _ in towers.BACKBONES[name]]


def _shape(config: ViTConfig) -> tuple[int, ...]:
    return config.embed_dim, config.depth, config.num_heads, config.mlp_dim, config.patch_size, config.num_registers


def _named(architecture: str) -> tuple[int, ...]:
    return next(shape for name, shape in SHAPES.items() if architecture.startswith(name))


def _tower(encoder: Encoder, side: int, architecture: str) -> tuple[State, Json, str | None]:
    """(weights, arguments in addition to timm's name, activation if it differs from the name's)."""
    family = encoder.origin.family
    config, state = tower_at(encoder, side, pool=True)
    config, state = timm_write.to_timm_state(family, config, state)
    tensors = {
        name.replace("ls1.gamma", "ls1.scale_factor").replace("ls2.gamma", "ls2.scale_factor"): value
        for name, value in timm_write.tensors(family, config, state).items()
    }
    found = timm_layout.fields({name: tuple(value.shape) for name, value in tensors.items()}, image_size=(side, side))
    arguments: Json = {}
    if _shape(config) != _named(architecture):
        described = timm_write.describe(family, config)["model_args"]
        arguments = {name: described[name] for name in ("patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio")}
        arguments |= {"reg_tokens": config.num_registers} if config.num_registers else {}
    told: Json = {"img_size": side} | arguments
    named = timm.config_of(architecture, found, told, Hints())
    activation = None if named.mlp == config.mlp else config.mlp
    read = timm.config_of(architecture, found, told | {"act_layer": activation}, Hints())
    check_same(replace(config, pool="none"), replace(read, pool="none"), "Prismatic's layout")
    return tensors, arguments, activation


def _preprocessor(specs: Sequence[Preprocess], sides: Sequence[int]) -> tuple[str, Json]:
    """(image_resize_strategy, content of preprocessor_config.json)."""
    config: Json = {
        "image_processor_type": "PrismaticImageProcessor",
        "processor_class": "PrismaticProcessor",
        "use_fused_vision_backbone": len(specs) > 1,
        "input_sizes": [[3, side, side] for side in sides],
        "interpolations": [spec.resample for spec in specs],
        "means": [list(spec.mean) for spec in specs],
        "stds": [list(spec.std) for spec in specs],
    }
    for strategy in ("resize-naive", "letterbox", "resize-crop"):
        if from_openvla({}, config | {"image_resize_strategy": strategy}) == list(specs):
            return strategy, config | {"image_resize_strategy": strategy}
    if any(spec.camera is not None or spec.before for spec in specs):
        raise ValueError(
            "Prismatic's folder cannot store the preparation of a camera's image (with_evaluation): remove it with "
            'encoder.preprocess = encoder.preprocess.with_evaluation("none", crop=False) and set it again after loading'
        )
    settings = ", ".join(f"resize={spec.resize!r} to {spec.resize_to}, crop={spec.crop}" for spec in specs)
    raise ValueError(
        f"Prismatic prepares the images of all towers equally: resize='squash' without a crop, letterbox with the mean of the "
        f"last tower, or shortest_edge with a crop of that size and half_even rounding; these have {settings}. Set the towers' "
        "preprocess to replace(preprocess, resize='squash', resize_to=(side, side), crop=None) before training"
    )


@torch.no_grad()
def verify(vlm: VisionLanguageModel, folder: Path) -> None:
    """Load `folder` with `read_prismatic` and compare pixels and logits with the model's.

    Raises:
        ValueError: weights missing or left over, other pixel values or logits.
    """
    again = VisionLanguageModel.from_parts(read_prismatic(folder, dtype=vlm.dtype, device=vlm.device))
    assert vlm.processor is not None and again.processor is not None
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8))
    batch = vlm.processor(text=f"{IMAGE_TOKEN}What is in the image?", images=[noise])
    pixels = again.processor.image_processor.preprocess(noise)["pixel_values"]
    if not torch.allclose(pixels, batch["pixel_values"], atol=1e-5):
        raise ValueError("the written preprocessing makes other pixel values than the model's")
    training = vlm.training
    logits = vlm.eval()(**batch.to(vlm.device)).logits
    gap = float((logits - again(**batch.to(vlm.device)).logits).abs().max() / logits.abs().max())
    vlm.train(training)
    if not gap <= (1e-4 if vlm.dtype in (torch.float32, torch.float64) else 5e-2):
        raise ValueError(f"after reading the folder, the logits differ by {gap:.1e} of their scale from this model's")
