"""Images of mixed shapes through SigLIP2 NaFlex: ours packed in one sequence against transformers' padded batch.

    python -m benchmarks.naflex

Outputs are compared before anything is timed.
"""

import argparse
import tempfile

import torch
from einops import rearrange
from transformers import AutoConfig, AutoModel

import vlm_vision as vv
from benchmarks.timing import interleaved, machine
from vlm_vision import presets
from vlm_vision.checkpoints.hf import reader as hf

GRIDS = {
    "mixed sizes": [(16, 16), (8, 12), (20, 12), (6, 24), (10, 10), (14, 18), (4, 16), (12, 9)],
    "full budget": [(16, 16), (12, 21), (9, 28), (21, 12), (18, 14), (14, 18), (16, 16), (11, 23)],
}
"""(rows, columns) of patches, at most 256: images of all sizes, and images that each fill the budget."""


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.naflex", description=__doc__)
    parser.add_argument("--models", nargs="+", default=["siglip2_naflex_base_patch16_256"])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    print(f"{machine(options.device)}\n")
    print(
        "| model | dtype | images | patches of 256 each | ours packed ms | transformers padded ms | ratio | difference |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for name in options.models:
        family = hf.FAMILIES["siglip2_vision_model"]
        config = AutoConfig.for_model("siglip2_vision_model", **family.write_config(presets.config(name)))
        torch.manual_seed(0)
        theirs = AutoModel.from_config(config).eval()
        with tempfile.TemporaryDirectory() as folder:
            theirs.save_pretrained(folder)
            ours = vv.load(folder)
        assert isinstance(ours, vv.Encoder)
        for dtype in (getattr(torch, one) for one in options.dtypes):
            ours.to(options.device, dtype)
            torch.nn.Module.to(theirs, options.device, dtype)
            for label, grids in GRIDS.items():
                row(f"{name} | {str(dtype).removeprefix('torch.')} | {label}", ours, theirs, grids, dtype, options)


def row(label: str, ours: vv.Encoder, theirs, grids: list[tuple[int, int]], dtype: torch.dtype, options) -> None:
    """Compare, time and print one batch."""
    patch, most = ours.config.patch_size, 256
    images = [torch.randn(3, h * patch, w * patch, dtype=dtype, device=options.device) for h, w in grids]
    vectors = torch.zeros(len(grids), most, 3 * patch * patch, dtype=dtype, device=options.device)
    mask = torch.zeros(len(grids), most, dtype=torch.int64, device=options.device)
    for i, image in enumerate(images):
        seen = rearrange(image, "c (h p) (w q) -> (h w) (p q c)", p=patch, q=patch)
        vectors[i, : len(seen)], mask[i, : len(seen)] = seen, 1
    shapes = torch.tensor(grids, device=options.device)
    wanted = theirs(vectors, mask, shapes)
    outs = ours.packed(images)
    pairs = [
        (out.patch_tokens[0], row[: out.patch_tokens.shape[1]])
        for out, row in zip(outs, wanted.last_hidden_state, strict=True)
    ]
    pairs.append((torch.cat([out.pooled for out in outs if out.pooled is not None]), wanted.pooler_output))
    difference = max(((a - b).abs().max() / b.abs().max()).item() for a, b in pairs)
    if difference > (1e-5 if dtype == torch.float32 and options.device == "cpu" else 5e-2):
        raise SystemExit(f"{label}: outputs differ by {difference:.1e}")
    contestants = {"ours": lambda: ours.packed(images), "theirs": lambda: theirs(vectors, mask, shapes)}
    took = interleaved(contestants, rounds=options.rounds, device=options.device)
    share = sum(h * w for h, w in grids) / (most * len(grids))
    cells = [
        f"{share:.0%}",
        f"{took['ours'] * 1e3:.0f}",
        f"{took['theirs'] * 1e3:.0f}",
        f"{took['theirs'] / took['ours']:.2f}",
    ]
    print(f"| {label} | {' | '.join(cells)} | {difference:.0e} |", flush=True)


if __name__ == "__main__":
    main()
