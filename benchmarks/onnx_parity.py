"""Encoders exported to ONNX and run by onnxruntime on the CPU: every output beside the encoder's own.

peers/bin/python -m benchmarks.onnx_parity ../shared/golden/hf_dinov2 google/siglip-base-patch16-224

A figure is the largest absolute difference over the largest absolute value of the encoder's output, the worst over all
outputs (patch tokens, prefix tokens, pooled, logits) and batches of 1, 2 and 3 with a dynamic batch, of 1 with a fixed one.
"""

import argparse
import logging
import tempfile
import warnings
from pathlib import Path

import torch

import vlm_vision as vv
from vlm_vision.deploy.export import export_onnx

LIMIT = 1e-4


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.onnx_parity", description=__doc__)
    parser.add_argument("sources", nargs="+", help="whatever vlm_vision.load takes")
    parser.add_argument("--reference", help="whose resize of the position table; default that of the format")
    options = parser.parse_args()
    logging.disable(logging.WARNING)  # the exporter tells what it does not fold
    warnings.simplefilter("ignore", FutureWarning)  # of PyTorch, about itself
    torch.manual_seed(0)
    print("| source | pixels | outputs | difference, dynamic batch | fixed batch |\n|---|---|---|---|---|")
    failed = 0
    for source in options.sources:
        encoder = vv.load(source, reference=options.reference)
        for height, width in sizes(encoder):
            try:
                dynamic, names = compare(encoder, height, width, dynamic_batch=True)
                fixed, _ = compare(encoder, height, width, dynamic_batch=False)
            except ValueError as error:
                print(f"| {source} | {height}x{width} | not to be had: {error} | | |")
                continue
            failed += not max(dynamic, fixed) < LIMIT
            print(f"| {source} | {height}x{width} | {', '.join(names)} | {dynamic:.0e} | {fixed:.0e} |", flush=True)
    return int(failed > 0)


def sizes(encoder: vv.Encoder | vv.FusedEncoder) -> list[tuple[int, int]]:
    """(height, width) of the native grid, and of one with two more rows and one more column (of towers side by side, the
    canvas alone)."""
    if isinstance(encoder, vv.FusedEncoder):
        canvas = encoder.preprocess.output_size
        assert canvas is not None  # a fused encoder has one
        return [canvas]
    rows, columns = encoder.config.grid
    patch = encoder.config.patch_size
    return [(rows * patch, columns * patch), ((rows + 2) * patch, (columns + 1) * patch)]


@torch.no_grad()
def compare(
    encoder: vv.Encoder | vv.FusedEncoder, height: int, width: int, *, dynamic_batch: bool
) -> tuple[float, list[str]]:
    """Largest difference over the output's scale, and the names of the outputs."""
    import onnxruntime  # type: ignore[import-not-found]

    worst = 0.0
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "encoder.onnx"
        export_onnx(encoder, file, height=height, width=width, dynamic_batch=dynamic_batch)
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    for batch in (1, 2, 3) if dynamic_batch else (1,):
        pixels = torch.randn(batch, encoder.config.channels, height, width)
        ours = encoder(pixels)
        for name, theirs in zip(names, session.run(None, {"pixels": pixels.numpy()}), strict=True):
            wanted = getattr(ours, name)
            worst = max(worst, ((torch.from_numpy(theirs) - wanted).abs().max() / wanted.abs().max()).item())
    return worst, names


if __name__ == "__main__":
    raise SystemExit(main())
