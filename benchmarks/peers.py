"""The peers' environment, for what is no dependency:

    python -m venv peers && peers/bin/pip install torch==2.13.0
    peers/bin/pip install --no-deps timm open_clip_torch lightly torchvision==0.28.0
    peers/bin/pip install -e . ftfy regex pyyaml onnx onnxscript onnxruntime

(`--no-deps`, because torchvision would bring another torch; its package for another build will do, as nothing here needs its
operators. Of lightly the losses and modules are used, which need no more than timm.)
"""

import importlib
from functools import cache
from typing import Any

import torch


def import_peer(name: str) -> Any:
    """The module called `name`. Raises SystemExit where it is not installed."""
    try:
        _torchvision()
        return importlib.import_module(name)
    except ImportError as error:
        raise SystemExit(f"{name} is not to be had here ({error}): see benchmarks/peers.py") from None


@cache
def _torchvision() -> None:
    """Import it if it is there: where its operators are of another build, those it asks for are declared without code."""
    try:
        importlib.import_module("torchvision")
    except ModuleNotFoundError:
        return
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        for operator in ("nms", "qnms"):
            torch.library.define(
                f"torchvision::{operator}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            )
        importlib.import_module("torchvision")
