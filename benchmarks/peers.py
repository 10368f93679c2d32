"""The benchmark environment: peers that are no dependencies, made by

    python -m venv peers && peers/bin/pip install torch==2.13.0
    peers/bin/pip install --no-deps timm open_clip_torch torchvision==0.28.0
    peers/bin/pip install -e . ftfy regex pyyaml onnx onnxscript onnxruntime pytest

(`--no-deps`, because torchvision would bring another torch.)
"""

import torch

_OPERATORS: list[torch.library.Library] = []


def import_timm():
    """timm. torchvision, which it imports, has no build for every torch: two operators are declared in its place."""
    if not _OPERATORS:
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            try:
                library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            except RuntimeError:  # torchvision's own are there
                break
        _OPERATORS.append(library)
    import timm

    return timm
