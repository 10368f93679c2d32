"""`vlm-vision convert`."""

import argparse
import sys
import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from projectors import Projector
    from vlm_vision.encoder import Encoder
    from vlm_vision.fused import FusedEncoder

ENCODERS = ("hf", "timm")
"""Formats in which encoders are written: those of checkpoints.save, which imports torch."""
WHOLE = ("llava", "prismatic")
"""Formats of models with a language model."""


def add_to(parser: argparse.ArgumentParser) -> None:
    """Its arguments."""
    parser.add_argument("source", metavar="SRC", help="folder, file or hub id, of any format")
    parser.add_argument("target", metavar="DST", nargs="?", help="folder to write")
    parser.add_argument("--out", metavar="DST", help="folder to write, in place of the second argument")
    parser.add_argument(
        "--to",
        choices=[*ENCODERS, *WHOLE],
        help="format to write; llava and prismatic for whole models",
    )
    parser.add_argument(
        "--into",
        metavar="FOLDER",
        help="whole model of transformers: DST becomes its copy, with the tower of SRC",
    )
    parser.add_argument(
        "--into-part", metavar="PREFIX", help="prefix of the tower's weights in FOLDER, if it has several"
    )
    parser.add_argument(
        "--projector", metavar="PROJ", help="folder or file of a projector to write into FOLDER as well"
    )
    parser.add_argument("--format", help="format of the source, where a folder holds two")
    parser.add_argument("--part", help="prefix of the tower's weights, where a file holds several")
    parser.add_argument("--architecture", help="timm's or open_clip's name, for a bare state dict")
    parser.add_argument("--num-heads", type=int, help="attention heads, for a file that does not store them")


def run(options: argparse.Namespace) -> None:
    import vlm_vision as vv
    from vlm_vision.cli.whole_model import whole_model

    target = options.target or options.out
    if not target or (options.target and options.out):
        raise ValueError("convert needs one folder to write: pass DST, or --out DST")
    if bool(options.to) == bool(options.into):
        raise ValueError("convert needs either --to, a format to write, or --into, the folder of a whole model")
    if not options.into and (options.projector or options.into_part):
        raise ValueError("--projector and --into-part need --into, the folder of a whole model")
    if options.to in WHOLE:
        vv.export(whole_model(options.source, "cpu"), options.to, target)
        print(f"{target}: {options.to}, read back, the same inputs and logits")
        return
    with warnings.catch_warnings(record=True) as remarks:
        warnings.simplefilter("always")
        encoder = _encoder(options)
        if options.into:
            _into(encoder, target, options)
        else:
            encoder.save_pretrained(target, format=options.to)
    for remark in remarks:
        if remark.category is UserWarning:
            print(f"note: {remark.message}", file=sys.stderr)
    if options.to:
        _compare(encoder, target, options)


def _encoder(options: argparse.Namespace) -> "Encoder | FusedEncoder":
    import vlm_vision as vv
    from vlm_vision.cli.whole_model import is_ours, whole_model

    if options.into and is_ours(options.source):
        return whole_model(options.source, "cpu").encoder
    hints = {name: getattr(options, name) for name in ("format", "part", "architecture", "num_heads")}
    return vv.load(options.source, **hints)


def _projector(source: str) -> "Projector":
    import vlm_vision as vv
    from vlm_vision.cli.whole_model import is_ours, whole_model

    return whole_model(source, "cpu").projector if is_ours(source) else vv.load_projector(source)


def _into(encoder: "Encoder | FusedEncoder", target: str, options: argparse.Namespace) -> None:
    import vlm_vision as vv

    projector = _projector(options.projector) if options.projector else None
    if isinstance(encoder, vv.Encoder):
        encoder.save_pretrained(target, into=options.into, projector=projector, part=options.into_part)
    elif options.into_part:
        raise ValueError(
            f"{options.source} holds several towers, so that all of FOLDER's are written: leave out --into-part"
        )
    else:
        encoder.save_pretrained(target, into=options.into, projector=projector)
    parts = "tower" if projector is None else "tower and projector"
    print(f"{target}: {options.into} with the {parts} of {options.source}")


def _compare(encoder: "Encoder | FusedEncoder", target: str, options: argparse.Namespace) -> None:
    """Read an encoder back and compare its tokens."""
    import torch

    import vlm_vision as vv

    again = vv.load(target)
    with torch.inference_mode():
        parts = encoder.towers if isinstance(encoder, vv.FusedEncoder) else [encoder]
        towers = [part for part in parts if isinstance(part, vv.Encoder)]
        sizes = [tower.preprocess.output_size or tower.config.image_size for tower in towers]
        pixels = [torch.randn(1, tower.config.channels, *size) for tower, size in zip(towers, sizes, strict=True)]
        inputs = pixels if isinstance(encoder, vv.FusedEncoder) else pixels[0]
        before, after = (one(inputs, pool=False).patch_tokens for one in (encoder, again))
    if not torch.equal(before, after):
        raise ValueError(f"{target} was written, but its tokens differ from those of {options.source}: do not use it")
    print(f"{target}: {options.to}, read back, patch tokens equal to the bit")
