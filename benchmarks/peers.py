"""The peers' environment, for what is no dependency:

    python -m venv peers && peers/bin/pip install torch==2.13.0
    peers/bin/pip install --no-deps timm open_clip_torch torchvision==0.28.0
    peers/bin/pip install -e . ftfy regex pyyaml onnx onnxscript onnxruntime

(`--no-deps`, because torchvision would bring another torch; its package for another build will do.)
"""

import importlib
from typing import Any


def import_peer(name: str) -> Any:
    """The module called `name`. Raises SystemExit where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise SystemExit(f"{name} is not to be had here ({error}): see benchmarks/peers.py") from None
