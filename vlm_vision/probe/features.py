"""Features of images and texts from a frozen encoder: computed in batches, kept on the CPU in float32."""

from collections.abc import Callable, Sequence
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from vlm_vision.data.stored_image import StoredImage, open_stored_images
from vlm_vision.encoder import Encoder, eval_mode
from vlm_vision.fused import FusedEncoder
from vlm_vision.nn.output import Tap, VisionOutput
from vlm_vision.pair import Pair
from vlm_vision.preprocess.images import ImageInput

Kind = Literal["cls", "mean", "cls+mean", "pooled"]
"""The CLS token, the mean of the patch tokens, both side by side, or the family's own vector."""
ProbeImage = ImageInput | StoredImage
"""An image as `preprocess` takes it, or a stored one."""
T = TypeVar("T")


def image_features(
    encoder: Encoder | FusedEncoder,
    images: Sequence[ProbeImage],
    *,
    kind: Kind = "cls+mean",
    tap: Tap | None = None,
    batch_size: int = 64,
) -> Tensor:
    """(M, D), one vector for each image.

    Args:
        encoder: on the device to use. Images of any size go packed through one that takes them so.
        kind: of vector.
        tap: which block's tokens; default the encoder's own.
        batch_size: images at a time.

    Raises:
        ValueError: no image, one that cannot be read, or a kind that the encoder does not have at this tap.
    """

    def see(batch: Sequence[ProbeImage]) -> Tensor:
        return torch.cat([vector(out, kind) for out in _look(encoder, batch)(tap, kind == "pooled")])

    return _in_batches(encoder, images, see, batch_size)


def block_features(
    encoder: Encoder | FusedEncoder,
    images: Sequence[ProbeImage],
    *,
    blocks: int = 4,
    batch_size: int = 64,
) -> Tensor:
    """(M, blocks + 1, D) for `linear_probe`: the CLS tokens of the last blocks in order, then the last block's patch mean.

    The final norm is applied to each, as DINOv2 does. An encoder without CLS token gives patch means in its place. The
    encoder runs once for each block, up to that block.

    Raises:
        ValueError: as `image_features`, or more blocks than the encoder has.
    """

    def see(batch: Sequence[ProbeImage]) -> Tensor:
        look = _look(encoder, batch)
        outs = [look(Tap(layer), False) for layer in range(-blocks, 0)]
        each = [torch.cat([vector(out, "mean" if out.cls_token is None else "cls") for out in one]) for one in outs]
        return torch.stack([*each, torch.cat([vector(out, "mean") for out in outs[-1]])], dim=1)

    if blocks < 1:
        raise ValueError(f"blocks is {blocks}, expected at least one")
    return _in_batches(encoder, images, see, batch_size)


def patch_features(
    encoder: Encoder | FusedEncoder,
    images: Sequence[ProbeImage],
    *,
    tap: Tap | None = None,
    batch_size: int = 64,
) -> Tensor:
    """(M, N, D): the patch tokens of each image, for `attentive_probe`.

    Raises:
        ValueError: as `image_features`, or images with unlike numbers of patches.
    """
    if encoder.preprocess.output_size is None:
        raise ValueError(
            "the encoder takes images of any size, so that the numbers of patches differ: load it with image_size"
        )

    def see(batch: Sequence[ProbeImage]) -> Tensor:
        return torch.cat([out.patch_tokens for out in _look(encoder, batch)(tap, False)])

    return _in_batches(encoder, images, see, batch_size)


def image_embeddings(pair: Pair, images: Sequence[ProbeImage], *, batch_size: int = 64) -> Tensor:
    """(M, E), of length one: images in the space of texts. Errors as `image_features`."""

    def see(batch: Sequence[ProbeImage]) -> Tensor:
        pixels = [one.to(pair.image.device) for one in pair.image.preprocess.each(read_images(batch))]
        one_size = len({one.shape for one in pixels}) == 1
        return pair.embed_images(torch.stack(pixels) if one_size else pixels)

    return _in_batches(pair, images, see, batch_size)


def text_embeddings(pair: Pair, texts: Sequence[str], *, batch_size: int = 256) -> Tensor:
    """(T, E), of length one. Raises ValueError if there is no text, or the pair has no tokenizer."""

    def see(batch: Sequence[str]) -> Tensor:
        return pair.embed_texts(pair.text.tokenizer(batch).to(pair.text.device))

    return _in_batches(pair, texts, see, batch_size)


def vector(out: VisionOutput, kind: Kind) -> Tensor:
    """(B, D) of what an encoder saw. Raises ValueError if that has no such vector."""
    mean = out.patch_tokens.mean(dim=1)
    found = {"cls": out.cls_token, "mean": mean, "cls+mean": out.cls_token, "pooled": out.pooled}
    if kind not in found:
        raise ValueError(f"kind is {kind!r}, expected one of {', '.join(found)}")
    one = found[kind]
    if one is None:
        lacks = "pooled vector at this tap" if kind == "pooled" else "CLS token"
        raise ValueError(f"this encoder has no {lacks}: choose another kind than {kind}, such as mean")
    return torch.cat([one, mean], dim=-1) if kind == "cls+mean" else one


def read_images(images: Sequence[ProbeImage]) -> list[ImageInput]:
    """What `preprocess` takes. Raises ValueError for a stored image that cannot be read."""
    return [open_stored_images([one])[0] if isinstance(one, StoredImage) else one for one in images]


def _look(
    encoder: Encoder | FusedEncoder, images: Sequence[ProbeImage]
) -> Callable[[Tap | None, bool], list[VisionOutput]]:
    """(tap, pool) -> one output of the whole batch, or one of each image where sizes differ; images are read once."""
    if isinstance(encoder, FusedEncoder) or encoder.preprocess.output_size is not None:
        pixels = encoder.preprocess(read_images(images)).to(encoder.device)
        return lambda tap, pool: [encoder(pixels, tap=tap, pool=pool)]
    each = [one.to(encoder.device) for one in encoder.preprocess.each(read_images(images))]
    return lambda tap, pool: encoder.packed(each, tap=tap, pool=pool)


@torch.no_grad()
def _in_batches(model: nn.Module, given: Sequence[T], see: Callable[[Sequence[T]], Tensor], batch_size: int) -> Tensor:
    if not len(given):
        raise ValueError("there is nothing to encode: expected at least one image or text")
    found = []
    with eval_mode(model):
        for start in tqdm(range(0, len(given), batch_size), desc="encoding", unit="batch"):
            found.append(see(given[start : start + batch_size]).float().cpu())
    return torch.cat(found)
