#!/usr/bin/env bash
# transformers 5.24.0: the vision tower of Phi-4 multimodal attends in both directions with attn_implementation="eager", and with
# "sdpa", the default, only backwards if no image of the batch is padded. One would guess one result up to rounding: a tower of
# patches has no order.
# Seen on 2026-11-30 with Python 3.11, torch 2.13.0:
#     change of the first token when the last patch changes: eager 1.6056, sdpa 0.0000
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv" || exit 2
"$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.24.0 numpy==2.4.6 || exit 2

"$folder/venv/bin/python" - << 'PYTHON'
import sys

import torch
import transformers
from transformers import Phi4MultimodalVisionConfig, Phi4MultimodalVisionModel

seen = {}
for attention in ("eager", "sdpa"):
    torch.manual_seed(0)
    config = Phi4MultimodalVisionConfig(
        hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4, image_size=32, crop_size=32,
        patch_size=8, attn_implementation=attention,
    )
    tower = Phi4MultimodalVisionModel(config).eval()
    with torch.no_grad():
        for weight in tower.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
        image = torch.randn(1, 3, 32, 32)
        changed = image.clone()
        changed[..., -8:, -8:] += 1
        first = [tower(x, patch_attention_mask=torch.ones(1, 4, 4, dtype=torch.bool)).last_hidden_state[0, 0] for x in (image, changed)]
    seen[attention] = (first[0] - first[1]).abs().max().item()
print(f"transformers {transformers.__version__}, torch {torch.__version__}")
print("change of the first token when the last patch changes: " + ", ".join(f"{k} {v:.4f}" for k, v in seen.items()))
sys.exit(0 if seen["eager"] > 1e-4 and seen["sdpa"] == 0 else 1)
PYTHON
