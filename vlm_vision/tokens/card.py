"""README.md of a store: what it holds, and how to read it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlm_vision.files import CARD, CARD_MARK, is_own_card

_TEXT = """{mark} -->
# Visual tokens of {images} images

| | |
|---|---|
| encoder | {source} |
| weights | `{weights}` |
| preprocessing | `{preprocess}` |
| layers | {layers}, {norm} the final norm |
| tokens | {parts} |
| numbers | {dtype} |
| bad images | {failures} |

```python
import vlm_vision as vv

store = vv.TokenStore("folder/of/this/file")
row = store[0]
print(row.key, row.grid, row.patch_tokens.shape)
```

## Files
- `index/*.parquet`: a row for each image: `key`, `shard`, `row` in the shard, `offset` of its first patch token and number of
  `tokens` there, `height` and `width` of the grid, `frames`, `label`, `caption`.
- `tensors/*.safetensors`, one for each shard: `patch_tokens.LAYER` (tokens of all its images, channels); `cls_token.LAYER`,
  `register_tokens.LAYER` and `pooled` (images, ...). In int8 a tensor has another one, NAME.scale, to multiply by.
- `failures/*.jsonl`: key and reason of each bad image.
- `store.json`: settings, fingerprints, and the loss of the number format against float32 on the first images.
"""


def write_store_card(folder: Path, about: Mapping[str, Any]) -> None:
    """Write README.md, unless the user wrote one."""
    path, settings = folder / CARD, about["settings"]
    if path.exists() and not is_own_card(path):
        return
    text = _TEXT.format(
        mark=CARD_MARK,
        images=about["rows"],
        source=about["source"] or "made in code",
        weights=about["weights"],
        preprocess=about["preprocess_fingerprint"],
        layers=", ".join(map(str, settings["layers"])),
        norm="with" if settings["norm"] else "without",
        parts=", ".join(settings["parts"]),
        dtype=settings["dtype"],
        failures=about["failures"],
    )
    path.write_text(text, encoding="utf-8")
