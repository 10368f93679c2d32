#!/usr/bin/env bash
# transformers 5.24.0: the vision tower of Qwen2.5-VL returns last_hidden_state in the order of its attention windows, and
# pooler_output, the same tokens after the merger, in the order of the image's rows. One would guess one order for both: merging
# last_hidden_state by hand gives pooler_output's tokens at other places.
# Seen on 2026-11-30 with Python 3.11, torch 2.13.0:
#     merger(last_hidden_state) equals pooler_output as it stands: False
#     equals it after the windows are undone: True
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv" || exit 2
"$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.24.0 numpy==2.4.6 || exit 2

"$folder/venv/bin/python" - << 'PYTHON'
import sys

import torch
import transformers
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel
from transformers.vision_utils import get_vision_window_index

config = Qwen2_5_VLVisionConfig(
    depth=2, hidden_size=64, intermediate_size=96, num_heads=4, out_hidden_size=32, patch_size=8, window_size=32,
    fullatt_block_indexes=[1],
)
torch.manual_seed(0)
tower = Qwen2_5_VisionTransformerPretrainedModel(config).eval()
grid = torch.tensor([[1, 12, 8]])  # frames, rows and columns of patches
with torch.no_grad():
    out = tower(torch.randn(96, 3 * 2 * 8 * 8), grid_thw=grid)
    merged = tower.merger(out.last_hidden_state)
order, _ = get_vision_window_index(grid, 2, 32, 8)
as_it_stands = torch.allclose(merged, out.pooler_output, atol=1e-5)
undone = torch.allclose(merged[order.argsort()], out.pooler_output, atol=1e-5)
print(f"transformers {transformers.__version__}, torch {torch.__version__}")
print(f"merger(last_hidden_state) equals pooler_output as it stands: {as_it_stands}")
print(f"equals it after the windows are undone: {undone}")
sys.exit(0 if undone and not as_it_stands else 1)
PYTHON
