"""Towers that we save in timm's format, read by unmodified timm: outputs side by side, at native and other sizes.

peers/bin/python -m benchmarks.timm_parity ../shared/golden/hf_dinov2 google/siglip-base-patch16-224
"""

import argparse
import tempfile
import warnings

import torch

import vlm_vision as vv
from benchmarks.peers import import_peer


@torch.inference_mode()
def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.timm_parity", description=__doc__)
    parser.add_argument("sources", nargs="+", help="whatever vlm_vision.load takes")
    options = parser.parse_args()
    timm = import_peer("timm")
    print("| source | timm architecture | largest difference of tokens | of pooled |\n|---|---|---|---|")
    failed = 0
    for source in options.sources:
        with tempfile.TemporaryDirectory() as folder:
            try:
                ours = vv.load(source)
                assert isinstance(ours, vv.Encoder)
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # about preprocessing, which is not compared here
                    ours.save_pretrained(folder, format="timm")
                ours = vv.load(folder, reference="timm")
            except ValueError as error:
                print(f"| {source} | not expressible: {error} | | |")
                continue
            theirs = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        assert isinstance(ours, vv.Encoder)
        tokens, pooled = compare(ours, theirs)
        failed += tokens > 1e-5 or pooled > 1e-5
        print(f"| {source} | {theirs.default_cfg.get('architecture')} | {tokens:.0e} | {pooled:.0e} |")
    return int(failed)


def compare(ours: vv.Encoder, theirs) -> tuple[float, float]:
    """Largest difference over the output's scale, of all tokens after the norm and of what the model returns."""
    patch = ours.config.patch_size
    height, width = (side * patch for side in ours.config.grid)
    sizes = [(height, width), (height + 2 * patch, width + 2 * patch), (height, width + patch)]
    if "Distilled" in type(theirs).__name__:
        sizes = sizes[:1]
    worst = [0.0, 0.0]
    for size in sizes:
        pixels = torch.randn(2, ours.config.channels, *size)
        out = ours(pixels)
        prefix = [
            x
            for x in (out.cls_token[:, None] if out.cls_token is not None else None, out.register_tokens)
            if x is not None
        ]
        features = theirs.forward_features(pixels)
        features = features["patches"] if isinstance(features, dict) else features
        pairs = [(torch.cat([*prefix, out.patch_tokens], dim=1), features)]
        mine = out.logits if out.logits is not None else out.pooled
        if mine is not None:
            pairs.append((mine, theirs.forward_head(theirs.forward_features(pixels))))
        for i, (a, b) in enumerate(pairs):
            worst[i] = max(worst[i], ((a - b).abs().max() / b.abs().max()).item())
    return worst[0], worst[1]


if __name__ == "__main__":
    raise SystemExit(main())
