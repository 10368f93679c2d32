"""Side by side with peers: commands, with their results in RESULTS.md. The peers' environment is described in peers.py."""

import importlib.util

import torch


def _declare_operators() -> None:
    """timm and transformers import torchvision, which has no build for every torch: declare what it looks for."""
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _LIBRARIES.append(library)  # it lives as long as this does


_LIBRARIES: list[torch.library.Library] = []
if importlib.util.find_spec("torchvision") is not None and torch.version.cuda is None:
    _declare_operators()
