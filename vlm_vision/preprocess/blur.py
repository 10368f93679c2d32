"""A Gauss filter as torch's, before a resize between two by two pixels."""

import math

import numpy as np
import torch
import torch.nn.functional as F


def resize_blurred(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(H, W, 3) -> (height, width, 3), float32: of transformers' Owlv2 image processor with torchvision.

    The deviation is (side / to - 1) / 2, the filter cut at three of it, pixels past an edge mirrored. As there, the one
    along the rows is of the heights' ratio and the other way round, and no image is filtered of which a side grows.

    Raises:
        ValueError: an image smaller than half the filter, which that class refuses.
    """
    planes = torch.from_numpy(np.array(pixels)).permute(2, 0, 1)[None].float() * (1 / 255)
    factors = torch.tensor(pixels.shape[:2]) / torch.tensor(size)
    deviations = ((factors - 1) / 2).clamp(min=0)
    if bool((deviations > 0).all()):
        reaches = [int(reach) for reach in torch.ceil(3 * deviations)]
        across, down = (_bell(reach, float(d)) for reach, d in zip(reaches, deviations, strict=True))
        if reaches[0] >= pixels.shape[1] or reaches[1] >= pixels.shape[0]:
            raise ValueError(
                f"an image of {pixels.shape[0]}x{pixels.shape[1]} pixels is smaller than the filter before its resize to "
                f"{size[0]}x{size[1]}: enlarge it, or crop it"
            )
        planes = F.pad(planes, (reaches[0], reaches[0], reaches[1], reaches[1]), mode="reflect")
        weights = (down[:, None] * across)[None, None].expand(3, 1, -1, -1)
        planes = F.conv2d(planes, weights, groups=3)
    planes = F.interpolate(planes, size, mode="bilinear", align_corners=False, antialias=False)
    return (planes[0].permute(1, 2, 0) * 255).numpy()


def _bell(reach: int, deviation: float) -> torch.Tensor:
    """Weights of the pixels up to `reach` away, (2 * reach + 1,), of sum 1."""
    places = torch.linspace(-reach, reach, 2 * reach + 1) * math.sqrt(0.5)
    return torch.softmax(-((places / deviation) ** 2), dim=0)
