#!/usr/bin/env bash
# transformers 5.17.0: AutoImageProcessor refuses a CLIP folder where torchvision is absent; 5.18.0 loads it with Pillow alone.
# A guess from the version numbers would be that 5.x behaves the same throughout.
#
# Versions: torch 2.13.0, pillow 12.0.0, Python 3.11. Output seen:
#   5.17.0 ImportError
#   5.18.0 CLIPImageProcessorPil
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install -q torch==2.13.0 pillow==12.0.0 transformers==5.17.0
mkdir "$work/folder"
echo '{"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}' > "$work/folder/preprocessor_config.json"
cat > "$work/load.py" <<'PY'
import sys

import transformers
from transformers import AutoImageProcessor

try:
    kind = type(AutoImageProcessor.from_pretrained(sys.argv[1])).__name__
except ImportError:
    kind = "ImportError"
print(transformers.__version__, kind)
PY
first=$("$work/venv/bin/python" "$work/load.py" "$work/folder" 2> /dev/null)
"$work/venv/bin/pip" install -q transformers==5.18.0
second=$("$work/venv/bin/python" "$work/load.py" "$work/folder" 2> /dev/null)
printf '%s\n%s\n' "$first" "$second"
test "$first" = "5.17.0 ImportError"
test "$second" = "5.18.0 CLIPImageProcessorPil"
