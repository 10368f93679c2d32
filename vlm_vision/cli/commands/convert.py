"""`vlm-vision convert`."""

import argparse
import sys
import warnings

ENCODERS = ("hf", "timm")
"""Formats in which encoders are written: those of checkpoints.save, which imports torch."""
WHOLE = ("llava", "prismatic")
"""Formats of models with a language model."""


def add_to(parser: argparse.ArgumentParser) -> None:
    """Its arguments."""
    parser.add_argument("source", metavar="SRC", help="folder, file or hub id, of any format")
    parser.add_argument("target", metavar="DST", help="folder to write")
    parser.add_argument(
        "--to",
        required=True,
        choices=[*ENCODERS, *WHOLE],
        help="format to write; llava and prismatic for whole models",
    )
    parser.add_argument("--format", help="format of the source, where a folder holds two")
    parser.add_argument("--part", help="prefix of the tower's weights, where a file holds several")
    parser.add_argument("--architecture", help="timm's or open_clip's name, for a bare state dict")
    parser.add_argument("--num-heads", type=int, help="attention heads, for a file that does not store them")


def run(options: argparse.Namespace) -> None:
    import torch

    import vlm_vision as vv
    from vlm_vision.cli.whole_model import whole_model

    if options.to in WHOLE:
        vv.export(whole_model(options.source, "cpu"), options.to, options.target)
        print(f"{options.target}: {options.to}, read back, the same inputs and logits")
        return
    with warnings.catch_warnings(record=True) as remarks:
        warnings.simplefilter("always")
        hints = {name: getattr(options, name) for name in ("format", "part", "architecture", "num_heads")}
        encoder = vv.load(options.source, **hints)
        encoder.save_pretrained(options.target, format=options.to)
    for remark in remarks:
        if remark.category is UserWarning:
            print(f"note: {remark.message}", file=sys.stderr)
    again = vv.load(options.target)
    with torch.inference_mode():
        parts = encoder.towers if isinstance(encoder, vv.FusedEncoder) else [encoder]
        towers = [part for part in parts if isinstance(part, vv.Encoder)]
        sizes = [tower.preprocess.output_size or tower.config.image_size for tower in towers]
        pixels = [torch.randn(1, tower.config.channels, *size) for tower, size in zip(towers, sizes, strict=True)]
        inputs = pixels if isinstance(encoder, vv.FusedEncoder) else pixels[0]
        before, after = (one(inputs, pool=False).patch_tokens for one in (encoder, again))
    if not torch.equal(before, after):
        raise ValueError(
            f"{options.target} was written, but its tokens differ from those of {options.source}: do not use it"
        )
    print(f"{options.target}: {options.to}, read back, patch tokens equal to the bit")
