"""Correspondence: each patch should be most similar to the patch of the same place in another view of the image."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor
from tqdm.auto import tqdm

from vlm_vision.encoder import Encoder, eval_mode
from vlm_vision.fused import FusedEncoder, FusedPreprocess
from vlm_vision.nn.output import Tap
from vlm_vision.nn.position import Grid
from vlm_vision.preprocess.images import load_image
from vlm_vision.preprocess.spec import Preprocess
from vlm_vision.probe.features import ProbeImage, read_images


@dataclass(frozen=True)
class CropBox:
    """A part of an image, in its pixels, stretched to the encoder's size, mirrored or not."""

    top: int
    left: int
    height: int
    width: int
    flip: bool = False

    def centers(self, grid: Grid) -> Tensor:
        """(N, 2): the (row, column) of each patch's center, in pixels of the whole image."""
        rows, columns = ((torch.arange(count) + 0.5) / count for count in grid)
        columns = 1 - columns if self.flip else columns
        return torch.cartesian_prod(self.top + rows * self.height, self.left + columns * self.width)

    def places(self, points: Tensor, grid: Grid) -> Tensor:
        """(N, 2) points of the whole image -> where they are in this view, in patches: 0 is the first one's center."""
        shares = (points - torch.tensor([self.top, self.left])) / torch.tensor([self.height, self.width])
        if self.flip:
            shares = torch.stack([shares[:, 0], 1 - shares[:, 1]], dim=1)
        return shares * torch.tensor(grid) - 0.5

    def cut(self, image: Image.Image) -> Image.Image:
        """What the view shows, not yet stretched."""
        part = image.crop((self.left, self.top, self.left + self.width, self.top + self.height))
        return ImageOps.mirror(part) if self.flip else part


@dataclass(frozen=True)
class Correspondence:
    """Shares from 0 to 1."""

    share: float
    """Share of patches whose most similar patch in the other view is within the radius of the true place."""
    chance: float
    """The same share for a random patch."""
    patches: int


@torch.no_grad()
def correspondence(tokens: Tensor, other: Tensor, places: Tensor, grid: Grid, *, radius: float = 1.0) -> Correspondence:
    """For each patch, look for the most similar one in another view, by cosine.

    The keypoint-free form of what El Banani et al. 2024, "Probing the 3D awareness of visual foundation models", ask of
    two views with known geometry.

    Args:
        tokens: (N, D) of one view.
        other: (h * w, D) of the other.
        places: (N, 2), the true (row, column) of each in the other view, in patches, as `CropBox.places` gives them. Patches
            whose place is outside it are left out.
        grid: (h, w) of the other view.
        radius: in patches, along a straight line. Below 0.71 not every place has a patch that near.

    Raises:
        ValueError: shapes that do not fit, or views without a common place.
    """
    if len(tokens) != len(places) or len(other) != grid[0] * grid[1] or tokens.shape[-1] != other.shape[-1]:
        raise ValueError(
            f"tokens are {tuple(tokens.shape)} with {len(places)} places and {tuple(other.shape)} on a grid {grid}: expected a "
            "place for each token, a token of the other view for each cell, and equal widths"
        )
    places = places.to(tokens.device)
    inside = ((places >= -0.5) & (places <= torch.tensor(grid, device=places.device) - 0.5)).all(dim=1)
    if not inside.any():
        raise ValueError("the views have no place in common: choose views that overlap")
    cells = torch.cartesian_prod(*(torch.arange(count, device=places.device) for count in grid)).to(places)
    near = torch.cdist(places[inside], cells, compute_mode="donot_use_mm_for_euclid_dist") <= radius
    similarity = F.normalize(tokens[inside].float(), dim=-1) @ F.normalize(other.float(), dim=-1).T
    found = near.gather(1, similarity.argmax(dim=1, keepdim=True))
    return Correspondence(found.double().mean().item(), near.double().mean().item(), len(found))


@torch.no_grad()
def image_correspondence(
    encoder: Encoder | FusedEncoder,
    images: Sequence[ProbeImage],
    *,
    tap: Tap | None = None,
    radius: float = 1.0,
    seed: int = 0,
) -> Correspondence:
    """Random crops of images, half of them mirrored, against the whole images; the mean over images.

    A crop's sides are half to nine tenths of the image's.

    Raises:
        ValueError: no image, or an encoder whose images have any size.
    """
    if encoder.preprocess.output_size is None or not len(images):
        raise ValueError(
            f"there are {len(images)} images for an encoder of output size {encoder.preprocess.output_size}: expected at "
            "least one, and one size; load the encoder with image_size"
        )
    squash, generator = _squashed(encoder.preprocess), torch.Generator().manual_seed(seed)
    found = []
    for source in tqdm(images, desc="comparing views", unit="image"):
        image = load_image(*read_images([source]))
        whole, part = CropBox(0, 0, image.height, image.width), random_crop_box(image.height, image.width, generator)
        with eval_mode(encoder):
            out = encoder(squash([part.cut(image), image]).to(encoder.device), tap=tap, pool=False)
        tokens, other = out.patch_tokens
        places = whole.places(part.centers(out.grid), out.grid)
        found.append(correspondence(tokens, other, places, out.grid, radius=radius))
    share, chance = (sum(getattr(one, name) for one in found) / len(found) for name in ("share", "chance"))
    return Correspondence(share, chance, sum(one.patches for one in found))


def random_crop_box(height: int, width: int, generator: torch.Generator) -> CropBox:
    """A random part of an image with sides of half to nine tenths of its own, mirrored or not."""
    tall, wide, down, right, flip = torch.rand(5, generator=generator).tolist()
    size = [max(1, round(side * (0.5 + 0.4 * share))) for side, share in ((height, tall), (width, wide))]
    corner = [round(room * share) for room, share in ((height - size[0], down), (width - size[1], right))]
    return CropBox(*corner, *size, flip=flip < 0.5)


def _squashed(preprocess: Preprocess | FusedPreprocess) -> Preprocess | FusedPreprocess:
    """The same for images that are seen whole: stretched to the output size, nothing cut off."""
    if isinstance(preprocess, FusedPreprocess):
        return FusedPreprocess(tuple(_whole(tower) for tower in preprocess.towers))
    return _whole(preprocess)


def _whole(preprocess: Preprocess) -> Preprocess:
    size = preprocess.output_size
    assert size is not None
    return replace(preprocess, resize="squash", resize_to=size, crop=None, fill=(0, 0, 0), crop_rounding="floor")
