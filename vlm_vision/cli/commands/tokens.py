"""`vlm-vision tokens`."""

import argparse


def add_to(parser: argparse.ArgumentParser) -> None:
    """Its arguments."""
    parser.add_argument("images", nargs="+", metavar="IMAGES", help="image files")
    parser.add_argument("--encoder", required=True, metavar="SRC", help="folder or hub id; 'a + b' for fused towers")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for tokens.safetensors and tokens.json")
    parser.add_argument(
        "--layer", type=int, default=-1, help="block whose tokens are written (default: %(default)s, the last)"
    )
    parser.add_argument("--no-norm", action="store_true", help="leave out the final norm")
    parser.add_argument(
        "--image-size",
        type=int,
        nargs="+",
        metavar="PIXELS",
        help="side to which images are resized; one for each of several fused towers (default: the encoder's own)",
    )
    parser.add_argument("--batch-size", type=int, default=16, help="images at a time (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="device that computes (default: %(default)s)")


def run(options: argparse.Namespace) -> None:
    import json
    from pathlib import Path

    import torch
    from safetensors.torch import save_file

    import vlm_vision as vv
    from vlm_vision.cli.whole_model import at_least_one
    from vlm_vision.files import check_folder, whole, write_json

    at_least_one("--batch-size", options.batch_size)
    tap = vv.Tap(options.layer, not options.no_norm)
    check_folder(options.out)
    size = options.image_size[0] if options.image_size and len(options.image_size) == 1 else options.image_size
    encoder = vv.load(options.encoder, tap=tap, image_size=size, device=options.device)
    tensors, grids = {}, []
    with torch.inference_mode():
        for start in range(0, len(options.images), options.batch_size):
            paths = options.images[start : start + options.batch_size]
            if isinstance(encoder, vv.Encoder) and encoder.preprocess.output_size is None:
                images = [pixels.to(options.device) for pixels in encoder.preprocess.each(paths)]
                outputs = [(out.patch_tokens[0], out.grid) for out in encoder.packed(images, pool=False)]
            else:
                out = encoder(encoder.preprocess(paths).to(options.device), pool=False)
                outputs = [(row, out.grid) for row in out.patch_tokens]
            for i, (row, grid) in enumerate(outputs, start=start):
                tensors[f"patch_tokens.{i}"] = row.cpu().contiguous()
                grids.append(list(grid))
    about = {
        "encoder": options.encoder,
        "tap": {"layer": options.layer, "norm": not options.no_norm},
        "preprocess_fingerprint": encoder.preprocess.fingerprint,
        "images": [
            {"path": path, "tensor": f"patch_tokens.{i}", "grid": grid}
            for i, (path, grid) in enumerate(zip(options.images, grids, strict=True))
        ],
    }
    with whole(Path(options.out)) as staging:
        save_file(tensors, staging / "tokens.safetensors", metadata={"about": json.dumps(about)})
        write_json(staging / "tokens.json", about)
    print(f"{len(tensors)} images, {encoder.embed_dim} channels: {Path(options.out) / 'tokens.safetensors'}")
