"""Tokens and logits of small towers as unmodified timm 1.0.31 computes them: run in an environment that has timm, in this folder.

The weights are drawn by `weights` here, in the order of their names, so that only config.json, shapes and outputs are stored.
"""

import json
from pathlib import Path

import numpy as np

SMALL = dict(embed_dim=16, depth=2, num_heads=2, patch_size=4, img_size=16, num_classes=3, dynamic_img_size=True)
TOWERS = {
    "vit_pe_core_base_patch16_224": dict(attn_pool_num_heads=4),
    "vit_pe_lang_large_patch14_448": dict(),
    "eva02_base_patch16_clip_224": dict(),
    "eva02_tiny_patch14_224": dict(),
    "beit3_base_patch16_224": dict(),
    "vit_base_patch16_rope_ape_224": dict(),
    "vit_base_patch14_reg1_tipsv2": dict(),
}
SIZES = ((16, 16), (24, 12))


def weights(shapes: dict[str, list[int]]) -> dict[str, np.ndarray]:
    """Numbers for each shape: around 1 for the weights of norms, around 0 elsewhere."""
    generator = np.random.default_rng(0)
    made = {}
    for name in sorted(shapes):
        around = 1.0 if len(shapes[name]) == 1 and name.endswith("weight") else 0.0
        made[name] = (around + 0.3 * generator.standard_normal(shapes[name])).astype(np.float32)
    return made


def pixels(size: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((2, 3, *size)).astype(np.float32)


def main() -> None:
    import timm
    import torch
    from timm.models import save_for_hf

    described, outputs = {}, {}
    for name, arguments in TOWERS.items():
        model = timm.create_model(name, **(SMALL | arguments)).eval()
        shapes = {key: list(value.shape) for key, value in model.state_dict().items()}
        model.load_state_dict({key: torch.from_numpy(value) for key, value in weights(shapes).items()})
        save_for_hf(model, "made", safe_serialization=True)
        described[name] = dict(config=json.loads(Path("made/config.json").read_text()), shapes=shapes)
        for i, size in enumerate(SIZES):
            with torch.inference_mode():
                tokens = model.forward_features(torch.from_numpy(pixels(size)))
                outputs[f"{name}.tokens{i}"] = tokens.numpy()
                outputs[f"{name}.logits{i}"] = model.forward_head(tokens).numpy()
    Path("towers.json").write_text(json.dumps(described) + "\n")
    np.savez_compressed("outputs.npz", **outputs)


if __name__ == "__main__":
    main()
