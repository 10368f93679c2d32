"""Export of a `VisionLanguageModel` to a folder for LLaVA or LLaVA-NeXT of transformers, with its verification."""

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jinja2 import TemplateError
from PIL import Image
from transformers import (
    AutoConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextProcessor,
    LlavaProcessor,
)

import projectors
from vlm_vision.checkpoints import keys
from vlm_vision.checkpoints.connectors.candidate import ACTIVATION_NAMES
from vlm_vision.checkpoints.hf.reader import FAMILIES
from vlm_vision.checkpoints.hf.write_preprocess import to_hf
from vlm_vision.encoder import Encoder
from vlm_vision.fused import FusedEncoder
from vlm_vision.vlm.formats.common import Folder, Json, State, canvas, check_same, language_tensors, tower_at
from vlm_vision.vlm.formats.llava import FLATTEN
from vlm_vision.vlm.layout import AnyRes, Whole
from vlm_vision.vlm.model import VisionLanguageModel
from vlm_vision.vlm.processor import IMAGE_TOKEN, VisionLanguageProcessor

IMAGE_PROCESSORS = {"clip_vision_model": "CLIPImageProcessor", "siglip_vision_model": "SiglipImageProcessor"}
"""Families of towers that the format takes -> image processor."""

_NEUTRAL: dict[str, Any] = {"final_logit_softcapping": None, "logit_scale": 1, "logits_scaling": 1}
"""Fields of language models that change logits after the head, which LLaVA's class ignores -> value without effect."""


@dataclass(frozen=True)
class _Classes:
    """Classes of transformers."""

    config: Any
    model: Any
    processor: Any


_LLAVA = _Classes(LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor)
_NEXT = _Classes(LlavaNextConfig, LlavaNextForConditionalGeneration, LlavaNextProcessor)


def to_folder(vlm: VisionLanguageModel) -> Folder:
    """The model in LLaVA's layout, with the layout AnyRes of images in LLaVA-NeXT's.

    The tower is written at the size of its preprocessing, its position table resized by its own rule, so that the numbers
    are the same whichever reference that rule is of.

    Raises:
        ValueError: what the format cannot express, and what to do about it.
    """
    encoder, projector = _check(vlm)
    llm, side = vlm.language_model, canvas(encoder.preprocess, "LLaVA")
    vision_config, tensors = _tower(encoder, side)
    depth, clip = encoder.config.depth, encoder.config.class_token
    names = _NEXT if type(vlm.layout) is AnyRes else _LLAVA
    config = names.config(
        vision_config=vision_config,
        text_config=copy.deepcopy(llm.config),  # LlavaConfig changes it
        image_token_index=vlm.config.image_token_id,
        image_seq_length=encoder.num_patch_tokens(side, side),
        projector_hidden_act=ACTIVATION_NAMES[projector.activation],
        multimodal_projector_bias=projector.bias,
        vision_feature_layer=encoder.tap.block(depth) - depth,
        vision_feature_select_strategy="default" if clip else "full",
        tie_word_embeddings=llm.config.tie_word_embeddings,
        architectures=[names.model.__name__],
        dtype=vlm.dtype,
    )
    for name, value in projector.state_dict().items():
        tensors[f"multi_modal_projector.{name.replace('fc', 'linear_')}"] = value
    other = "" if llm.base_model_prefix == "model" else f"{llm.base_model_prefix}."  # transformers knows "model." only
    tensors |= {f"language_model.{name.removeprefix(other)}": value for name, value in language_tensors(llm).items()}
    if isinstance(vlm.layout, AnyRes):
        assert vlm.image_newline is not None
        tensors["image_newline"] = vlm.image_newline.detach()
        config.image_grid_pinpoints = [list(size) for size in vlm.layout.pinpoints]
        image_processor = _tiling(encoder, side) | {"image_grid_pinpoints": config.image_grid_pinpoints}
    else:
        image_processor = _image_processor(encoder)
    processor = {
        "processor_class": names.processor.__name__,
        "image_token": IMAGE_TOKEN,
        "patch_size": encoder.config.patch_size,
        "vision_feature_select_strategy": config.vision_feature_select_strategy,
        "num_additional_image_tokens": int(clip),
    }
    assert vlm.processor is not None
    tokenizer = copy.deepcopy(vlm.processor.tokenizer)
    tokenizer.chat_template = _chat_template(vlm.processor)
    tokenizer.init_kwargs |= {  # what is saved; LLaVA's class takes no token types
        "padding_side": "left",
        "model_input_names": ["input_ids", "attention_mask"],
    }
    files = {
        "preprocessor_config.json": image_processor | {"processor_class": names.processor.__name__},
        "processor_config.json": processor,
    }
    return Folder(tensors=tensors, config=config.to_diff_dict(), files=files, tokenizer=tokenizer)


def _check(vlm: VisionLanguageModel) -> tuple[Encoder, projectors.MlpProjector]:
    """Tower and projector. Raises ValueError for parts that the format cannot express."""
    encoder, projector = vlm.encoder, vlm.projector
    if isinstance(encoder, FusedEncoder):
        raise ValueError('LLaVA has one tower, but this model has several: export it as "prismatic"')
    if encoder.origin.family not in IMAGE_PROCESSORS:
        raise ValueError(
            f"LLaVA takes CLIP and SigLIP towers of one size, not {encoder.origin.family}: attach another encoder, or keep "
            "the model in this library's format by save_pretrained"
        )
    if not isinstance(projector, projectors.MlpProjector) or projector.depth != 2:
        raise ValueError(
            f"LLaVA's projector has two linear layers, but this one is {projectors.describe(projector)}: attach the encoder with "
            'projector="mlp"'
        )
    if encoder.tap.more:
        raise ValueError(
            f"LLaVA's folder is for tokens of one block, but this encoder is tapped at {encoder.tap}: tap one"
        )
    if encoder.tap.norm:
        raise ValueError(
            "LLaVA reads its tower before the final norm, but this encoder is tapped after it: attach it with "
            "tap=vv.Tap(-2, norm=False)"
        )
    if type(vlm.layout) not in (Whole, AnyRes):
        raise ValueError(
            f"LLaVA has no layout {vlm.layout.name!r}: attach the encoder with Whole(), or AnyRes for LLaVA-NeXT"
        )
    _check_head(vlm.language_model)
    return encoder, projector


def _tower(encoder: Encoder, side: int) -> tuple[Any, State]:
    """transformers' configuration of the tower, and its weights by their names on disk."""
    family = FAMILIES[encoder.origin.family]
    config, state = tower_at(encoder, side, pool=False)
    tensors = keys.write(family.keys(config), state)
    described = family.write_config(config)
    check_same(config, family.read_config(family.defaults | described, frozenset(tensors)), "LLaVA's vision_config")
    made = AutoConfig.for_model(encoder.origin.family, **described)
    return made, {f"vision_tower.vision_model.{name}": value for name, value in tensors.items()}


def _image_processor(encoder: Encoder) -> Json:
    """For images that take one canvas."""
    try:
        return to_hf(encoder.preprocess, image_processor_type=IMAGE_PROCESSORS[encoder.origin.family])
    except ValueError as error:
        raise ValueError(
            f"{error}. For LLaVA set encoder.preprocess to resize='squash', or 'shortest_edge' with a crop, before training"
        ) from None


def _tiling(encoder: Encoder, side: int) -> Json:
    """For images and tiles squashed to the canvas, as the layout AnyRes does whatever the encoder's own resize is."""
    squash: Json = dict(resize="squash", resize_to=(side, side), crop=None, crop_rounding="floor", fill=(0, 0, 0))
    described = to_hf(replace(encoder.preprocess, **squash), image_processor_type="CLIPImageProcessor")
    return described | {
        "image_processor_type": "LlavaNextImageProcessor",
        "size": {"shortest_edge": side},
        "do_center_crop": True,
        "crop_size": {"height": side, "width": side},
        "do_pad": True,
    }


def _chat_template(processor: VisionLanguageProcessor) -> str:
    """The processor's template, behind `FLATTEN` if by itself it does not show a list of parts as the processor does."""
    chat: list[Json] = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "text"}]}]
    own, shown = str(processor.chat_template), processor.apply_chat_template(chat)
    try:
        alike = processor.tokenizer.apply_chat_template(chat, chat_template=own, tokenize=False) == shown
    except (TypeError, TemplateError):  # of templates that add strings to the content
        alike = False
    return own if alike else FLATTEN + own


def _check_head(llm: Any) -> None:
    """Raise ValueError if LLaVA's class, whose head is one matrix, would leave out a part of the language model's."""
    head, name = llm.get_output_embeddings(), type(llm).__name__
    if getattr(head, "bias", None) is not None:
        raise ValueError(
            f"the head of {name} has a bias, but that of LLaVA's class has none: use another language model"
        )
    for field, neutral in _NEUTRAL.items():
        value = getattr(llm.config, field, None)
        if value is not None and value != neutral:
            raise ValueError(
                f"{name} changes its logits after the head ({field}={value}), which LLaVA's class does not do: use another "
                "language model"
            )
    if getattr(llm, "lm_head", None) is not head:
        raise ValueError(f"the head of {name} is not called lm_head as in LLaVA: use another language model")
    if llm.config.tie_word_embeddings and not hasattr(llm.base_model, "embed_tokens"):
        raise ValueError(
            f"the head of {name} is its word embeddings, which LLaVA's class expects in embed_tokens, but they have another "
            "name: use another language model"
        )


@torch.no_grad()
def verify(vlm: VisionLanguageModel, folder: Path) -> None:
    """Load `folder` in unmodified transformers and compare with the model, on an image and prompt by either processor.

    Raises:
        ValueError: weights missing or left over, other input_ids, pixel_values or logits.
    """
    names = _NEXT if type(vlm.layout) is AnyRes else _LLAVA
    try:
        processor = names.processor.from_pretrained(folder)
        theirs, info = names.model.from_pretrained(folder, dtype="auto", output_loading_info=True)
    except Exception as error:  # each language model fails in its own way
        raise ValueError(
            f"transformers cannot load {type(vlm.language_model).__name__} inside LLaVA ({type(error).__name__}: {error}): use another language model"
        ) from error
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info[kind]:
            raise ValueError(
                f"in LLaVA's layout {type(vlm.language_model).__name__} has {kind.replace('_', ' ')}: {sorted(info[kind])[:5]}; use another language model"
            )
    assert vlm.processor is not None
    side = canvas(vlm.encoder.preprocess, "LLaVA")  # type: ignore[arg-type]
    noise = np.random.default_rng(0).integers(0, 256, (side + side // 2, side + side // 4, 3), dtype=np.uint8)
    given: Json = dict(text=f"{IMAGE_TOKEN} What is in the image?", images=[Image.fromarray(noise)])
    ours, other = vlm.processor(**given), processor(**given, return_tensors="pt")
    if not torch.equal(ours["input_ids"], other["input_ids"]):
        raise ValueError(
            f"the processor of transformers makes other input_ids ({other['input_ids'].shape[1]}) than this model's "
            f"({ours['input_ids'].shape[1]}): use another tokenizer"
        )
    pixels = other["pixel_values"].flatten(0, -4)  # LLaVA-NeXT has (1, tiles + 1, C, H, W)
    alike = ours["pixel_values"].shape == pixels.shape
    gap = float((ours["pixel_values"] - pixels).abs().max()) if alike else float("inf")
    if gap > 1e-5:
        raise ValueError(
            f"the processor of transformers makes pixel_values that differ by up to {gap:.1e} from this model's"
        )
    # The same pixels in both: a language model may amplify the last bit of a pixel to more than the tolerance.
    ours["pixel_values"] = pixels
    gap = _logit_gap(vlm, theirs, ours, other)
    if vlm.dtype == torch.float32 and not gap <= 1e-4:  # rounding, amplified, or other weights: float64 tells
        gap = _logit_gap(vlm.double(), theirs.double(), ours, other)
        vlm.float()  # every float32 number comes back to the bit
    if not gap <= (1e-4 if vlm.dtype in (torch.float32, torch.float64) else 5e-2):
        raise ValueError(
            f"in transformers the logits differ by {gap:.1e} of their scale from this model's: use another language model, or save "
            "with save_pretrained"
        )


def _logit_gap(vlm: VisionLanguageModel, theirs: Any, ours: Any, other: Any) -> float:
    """Largest difference of the logits of both models, as a share of the largest logit."""
    training = vlm.training
    pixels = {"pixel_values": other["pixel_values"].to(vlm.device, vlm.dtype)}
    logits = vlm.eval()(**ours.to(vlm.device)).logits
    again = theirs.to(vlm.device)(**dict(other.to(vlm.device)) | pixels).logits
    vlm.train(training)
    return float((logits - again).abs().max() / logits.abs().max())
