"""`vlm_vision.load_text` and `vlm_vision.load_pair`: the text tower of CLIP, SigLIP and their kin, and both towers."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vlm_vision.checkpoints import sniff
from vlm_vision.checkpoints.big_vision import text as text_big_vision
from vlm_vision.checkpoints.checkpoint import Checkpoint
from vlm_vision.checkpoints.hf import text as text_hf
from vlm_vision.checkpoints.hf.bert_text import BertText, BertTextConfig
from vlm_vision.checkpoints.hf.card import IMAGE, Card, about_encoder, about_preprocess, count
from vlm_vision.checkpoints.hub import packaged_source
from vlm_vision.checkpoints.open_clip import reader as open_clip
from vlm_vision.checkpoints.open_clip import text as text_open_clip
from vlm_vision.checkpoints.save_pair import save_pair
from vlm_vision.checkpoints.text_towers import TextTower, build
from vlm_vision.encoder import Encoder
from vlm_vision.load_encoder import known_device, known_dtype, load
from vlm_vision.nn.output import Tap, VisionOutput
from vlm_vision.nn.text import TextConfig, TextOutput, TextTransformer
from vlm_vision.preprocess.spec import ImageInput
from vlm_vision.preprocess.tokenizer import TextTokenizer

log = logging.getLogger(__name__)

Pixels = Tensor | Sequence[Tensor]


class TextEncoder(nn.Module):
    """A text tower and its tokenizer. `vlm_vision.load_text` makes one; `text(text.tokenizer(texts))` uses it.

    Args:
        model: the transformer.
        tokenizer: what turns texts into its ids, or a function that makes it at first use.
    """

    def __init__(self, model: TextTransformer | BertText, tokenizer: TextTokenizer | Callable[[], TextTokenizer]):
        super().__init__()
        self.model, self._tokenizer = model, tokenizer

    @property
    def config(self) -> TextConfig | BertTextConfig:
        return self.model.config

    @property
    def tokenizer(self) -> TextTokenizer:
        """Raises ValueError if the checkpoint has none and none was passed."""
        if not isinstance(self._tokenizer, TextTokenizer):
            self._tokenizer = self._tokenizer()
        return self._tokenizer

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def forward(self, ids: Tensor, *, tokens: bool = True) -> TextOutput:
        """Encode ids (B, L); arguments and errors as `TextTransformer.forward`."""
        return self.model(ids, tokens=tokens)

    def encode(self, texts: str | Sequence[str]) -> Tensor:
        """Features (B, E) of one text or several, not normalized. Raises ValueError without a tokenizer."""
        return self(self.tokenizer(texts).to(self.device), tokens=False).features


@dataclass
class PairOutput:
    """Output of a pair for I images and T texts."""

    image_embeds: Tensor
    """(I, E), of length one."""
    text_embeds: Tensor
    """(T, E), of length one."""
    logits_per_image: Tensor
    """(I, T): exp(logit_scale) * image_embeds @ text_embeds.T + logit_bias"""


class Pair(nn.Module):
    """Both towers of a CLIP (Radford et al. 2021, arXiv:2103.00020) or SigLIP (Zhai et al. 2023, arXiv:2303.15343).

    Args:
        image: the vision tower; its `pooled` are the features.
        text: the text tower.
        logit_scale: logarithm of the scale of the logits, a scalar.
        logit_bias: what is added to them, a scalar: a SigLIP has it, a CLIP does not.
        epsilon: added to a feature's length before it is divided by it; big_vision has 1e-8.
    """

    def __init__(
        self,
        image: Encoder,
        text: TextEncoder,
        *,
        logit_scale: Tensor,
        logit_bias: Tensor | None = None,
        epsilon: float = 0.0,
    ):
        super().__init__()
        self.image, self.text, self.epsilon = image, text, epsilon
        self.logit_scale = nn.Parameter(logit_scale)
        self.logit_bias = None if logit_bias is None else nn.Parameter(logit_bias)

    def forward(self, pixels: Pixels, ids: Tensor) -> PairOutput:
        """Compare images with texts.

        Args:
            pixels: (I, C, H, W), or a list of (C, H, W) of any sizes for a tower that takes them.
            ids: (T, L).

        Raises:
            ValueError: as the towers do.
        """
        images, texts = self.embed_images(pixels), self.embed_texts(ids)
        logits = self.logit_scale.exp() * images @ texts.T
        return PairOutput(images, texts, logits if self.logit_bias is None else logits + self.logit_bias)

    def embed_images(self, pixels: Pixels) -> Tensor:
        """(I, E), of length one; `pixels` as in a call."""
        if isinstance(pixels, Tensor):
            return self._unit(_features(self.image(pixels, tap=Tap(), patches=False)))
        return self._unit(torch.cat([_features(out) for out in self.image.packed(pixels, tap=Tap())]))

    def embed_texts(self, ids: Tensor) -> Tensor:
        """(T, E), of length one, of ids (T, L)."""
        return self._unit(self.text(ids, tokens=False).features)

    @torch.no_grad()
    def similarity(self, images: Any, texts: str | Sequence[str]) -> Tensor:
        """Cosine similarity (I, T) of images, as `preprocess` takes them, and texts. Without gradients."""
        return self._compared(images, texts, lambda seen, ids: self.embed_images(seen) @ self.embed_texts(ids).T)

    @torch.no_grad()
    def probabilities(self, images: Any, texts: str | Sequence[str]) -> Tensor:
        """Probabilities (I, T). SigLIP: of each text by itself; CLIP: of one text among all, so that rows add up to 1."""
        logits = self._compared(images, texts, lambda seen, ids: self(seen, ids).logits_per_image)
        return logits.softmax(dim=-1) if self.logit_bias is None else logits.sigmoid()

    def save_pretrained(self, folder: str | Path) -> None:
        """Write both towers, scale, bias and tokenizer as a CLIP or SigLIP of transformers; `load_pair` reads it too.

        vlm_vision.json is written as well, as by `Encoder.save_pretrained`.

        Raises:
            ValueError: an architecture that transformers' classes cannot express, or a tokenizer that was never on disk.
        """
        image = self.image
        try:
            tokenizer = self.text.tokenizer
        except ValueError as error:
            log.warning("saved without a tokenizer: %s", error)
            tokenizer = None
        save_pair(
            Path(folder),
            image=image.model,
            family=image.origin.family,
            preprocess=image.preprocess,
            sidecar=image.sidecar(),
            text=self.text.model,
            logit_scale=self.logit_scale,
            logit_bias=self.logit_bias,
            tokenizer=tokenizer,
            card=self._card(has_tokenizer=tokenizer is not None),
        )

    def _card(self, *, has_tokenizer: bool) -> Card:
        state, text = self.image.to_dict(), self.text.model.config
        use = 'scores = pair.similarity(image, ["a cat", "a drawing"])  # cosines'
        if not has_tokenizer:
            use = "scores = pair.embed_images(pair.image.preprocess(image))  # the folder has no tokenizer for texts"
        load = f"""
import vlm_vision as vv
from PIL import Image

pair = vv.load_pair(".")
{IMAGE}
{use}
print(scores)
"""
        return Card(
            title=f"Image and text encoders: {self.image.origin.family}",
            about=f"{about_encoder(state)}; text tower of depth {text.depth} and width {text.embed_dim}; "
            f"{count(self)} parameters",
            load=load,
            notes=('`vv.load(".")` reads the image tower alone, and transformers the folder too.',),
            preprocess=about_preprocess(state),
            pipeline_tag="zero-shot-image-classification",
            tags=("transformers", self.image.origin.family),
            base_models=(self.image.hub_id,),
        )

    def _compared(
        self,
        images: ImageInput | Sequence[ImageInput],
        texts: str | Sequence[str],
        compare: Callable[[Pixels, Tensor], Tensor],
    ) -> Tensor:
        ids = self.text.tokenizer(texts).to(self.text.device)
        pixels = [one.to(self.image.device) for one in self.image.preprocess.each(images)]
        one_size = len({one.shape for one in pixels}) == 1
        return compare(torch.stack(pixels) if one_size else pixels, ids)

    def _unit(self, features: Tensor) -> Tensor:
        return features / (features.norm(dim=-1, keepdim=True) + self.epsilon)


def _features(out: VisionOutput) -> Tensor:
    """Image features that are compared with text: `pooled`, or the linear map after it where big_vision has one."""
    features = out.pooled if out.logits is None else out.logits
    assert features is not None  # `load_pair` sees to it
    return features


def load_text(
    source: str | Path | Checkpoint,
    *,
    tokenizer: TextTokenizer | str | Path | None = None,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    revision: str | None = None,
    format: str | None = None,
) -> TextEncoder:
    """Load the text tower of a CLIP, SigLIP, MetaCLIP 2, TIPSv2, AltCLIP or Chinese CLIP; it computes what its reference computes.

    Where a reference masks the padding (the last three), the tokens that are the padding's id are masked.

    Args:
        source: "mini", which the package contains; or hub id, local folder (transformers, open_clip) or big_vision `.npz`; the
            whole model or the text tower alone. Of a whole model only the text part is read.
        tokenizer: the tokenizer's folder, hub id or sentencepiece `.model`, or a `TextTokenizer`. Default: the one
            in the folder of the weights, made at first use.
        dtype: of weights and computation.
        device: where the weights go.
        revision: branch, tag or commit of a hub id.
        format: "hf" or "open_clip", for a folder that holds both.

    Returns:
        A `TextEncoder` in evaluation mode.

    Raises:
        ValueError: nothing at `source`, a model without a text tower, configuration and weights that disagree, a weight
            that is missing or unused, a `tokenizer` that is not a tokenizer.
    """
    checkpoint = _checkpoint(source, revision, format)
    return _encoder(_tower(checkpoint, format), source, tokenizer, dtype, device, revision)


def load_pair(
    source: str | Path | Checkpoint,
    *,
    tokenizer: TextTokenizer | str | Path | None = None,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    revision: str | None = None,
    format: str | None = None,
) -> Pair:
    """Load both towers of a CLIP, SigLIP or their kin, with logit scale and bias. Arguments as `load_text`.

    Returns:
        A `Pair` in evaluation mode.

    Raises:
        ValueError: as `load` and `load_text`; also a checkpoint without an image tower, whose features are of another
            width, or without a logit scale.
    """
    checkpoint = _checkpoint(source, revision, format)
    tower = _tower(checkpoint, format)
    if tower.logit_scale is None:
        raise ValueError(f"{source} holds a text tower without logit_scale, which makes no pair: use load_text")
    text = _encoder(tower, source, tokenizer, dtype, device, revision)
    image = load(checkpoint, dtype=dtype, device=device, format=format)
    if not isinstance(image, Encoder):
        raise ValueError(f"{source} holds several image towers: expected one")
    pooled = image.config.num_classes or image.config.pool_dim or image.config.embed_dim
    if image.config.pool == "none" or pooled != text.config.features_dim:
        features = "none of images" if image.config.pool == "none" else f"image features of width {pooled}"
        raise ValueError(
            f"{source} has text features of width {text.config.features_dim} and {features}: expected equal widths"
        )
    bias = tower.logit_bias
    return Pair(
        image,
        text,
        logit_scale=tower.logit_scale.to(device=device, dtype=dtype),
        logit_bias=None if bias is None else bias.to(device=device, dtype=dtype),
        epsilon=1e-8 if tower.format == "big_vision" else 0.0,
    ).eval()


def _checkpoint(source: str | Path | Checkpoint, revision: str | None, format: str | None) -> Checkpoint:
    if not isinstance(source, str | Path | Checkpoint) or not str(source).strip():
        raise ValueError(f"source is {source!r}, expected a local folder or file, or a hub id")
    if format not in (None, "hf", "open_clip"):
        raise ValueError(f"format is {format!r}, expected 'hf' or 'open_clip'")
    return Checkpoint.at(source, revision)


def _tower(checkpoint: Checkpoint, format: str | None) -> TextTower:
    """The text tower of a checkpoint, whose format follows from its files."""
    path = checkpoint.path
    if not checkpoint.is_folder:
        if path.suffix != ".npz":
            raise ValueError(f"{path} has no text tower that can be read: expected a folder or a big_vision .npz file")
        return text_big_vision.read(checkpoint)
    if sniff.is_open_clip(checkpoint, format):
        return text_open_clip.read(checkpoint)
    if not checkpoint.has("config.json"):
        raise ValueError(f"{path} has no config.json and no {open_clip.CONFIG}: expected a folder of a CLIP or SigLIP")
    return text_hf.read(checkpoint)


def _encoder(
    tower: TextTower,
    source: str | Path | Checkpoint,
    tokenizer: TextTokenizer | str | Path | None,
    dtype: torch.dtype,
    device: str | torch.device,
    revision: str | None,
) -> TextEncoder:
    make: Callable[..., TextTokenizer] = partial(
        TextTokenizer.from_pretrained,
        context_length=tower.config.context_length,
        rules=tower.rules,
        pad_id=tower.config.pad_id,
    )
    if tokenizer is None:
        where = source.path if isinstance(source, Checkpoint) else packaged_source(source)
        tokenizer_or_maker = partial(make, where, revision=revision)
    else:
        tokenizer_or_maker = tokenizer if isinstance(tokenizer, TextTokenizer) else make(tokenizer)
    model = build(tower, dtype=known_dtype(dtype), device=known_device(device))
    return TextEncoder(model, tokenizer_or_maker).eval()
