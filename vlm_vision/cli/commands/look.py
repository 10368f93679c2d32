"""`vlm-vision look`."""

import argparse


def add_to(parser: argparse.ArgumentParser) -> None:
    """Its arguments."""
    parser.add_argument("images", nargs="*", metavar="IMAGES", help="image files")
    parser.add_argument(
        "--encoder", nargs="+", metavar="SRC", default=[], help="folders or hub ids; 'a + b' for fused towers"
    )
    parser.add_argument("--out", metavar="PAGE", help="html file to write")
    parser.add_argument(
        "--layers",
        nargs="+",
        type=int,
        metavar="N",
        help="blocks, from 0, whose attention the page holds (default: four)",
    )
    parser.add_argument(
        "--text", nargs="+", metavar="TEXT", default=[], help="texts to compare with patches, for CLIP and SigLIP"
    )
    parser.add_argument(
        "--model", metavar="FOLDER", help="folder or hub id of a VisionLanguageModel that answers --question"
    )
    parser.add_argument("--question", help="question about the first image, for --model")
    parser.add_argument("--policy", metavar="FOLDER", help="folder of a policy, whose actions in --episode are shown")
    parser.add_argument(
        "--episode", metavar="DATASET", help="folder of a LeRobotDataset; DATASET:N for its episode N, from 0"
    )
    parser.add_argument(
        "--statistics", default="", metavar="NAME", help="name of the data set whose statistics the policy uses"
    )
    parser.add_argument(
        "--image-size",
        nargs="+",
        type=int,
        metavar="N",
        help="side in pixels of the images that encoders see; for fused ones also one for each tower",
    )
    parser.add_argument(
        "--serve", action="store_true", help="serve the page on this machine alone, and compute what is looked at"
    )
    parser.add_argument(
        "--port", type=int, default=8765, help="port of --serve, 0 for a free one (default: %(default)s)"
    )
    parser.add_argument("--device", default="cpu", help="device that computes (default: %(default)s)")


def run(options: argparse.Namespace) -> None:
    from pathlib import Path

    from vlm_vision.load_encoder import known_device
    from vlm_vision.page.arrays import Arrays
    from vlm_vision.page.look import gather, make_page, shown_encoders

    if bool(options.out) == options.serve:
        raise ValueError("pass either --out PAGE for a file, or --serve")
    if bool(options.model) != bool(options.question):
        raise ValueError("--model and --question go together: pass both or neither")
    if bool(options.policy) != bool(options.episode):
        raise ValueError("--policy and --episode go together: pass both or neither")
    if options.out and Path(options.out).is_dir():
        raise ValueError(f"{options.out} is a folder: pass the name of an html file")
    device, arrays, model, policy = known_device(options.device), Arrays(), None, None
    if options.model:
        from vlm_vision.cli.whole_model import whole_model

        model = whole_model(options.model, str(device))
    if options.policy:
        from vlm_vision.vla.policy import load_policy

        policy = load_policy(options.policy, statistics=options.statistics, device=device)
    given = gather(
        options.images,
        options.encoder,
        arrays,
        model=model,
        question=options.question,
        policy=policy,
        episode=options.episode,
    )
    shown = shown_encoders(
        given.encoders, texts=options.text, pairs=options.serve, image_size=_size(options.image_size), device=device
    )
    if options.serve:
        from vlm_vision.page.server import LookService, serve

        service = LookService(shown, given.images, texts=options.text, parts=given.parts, arrays=arrays)
        serve(service, options.port)
        return
    page = make_page(shown, given.images, layers=options.layers, texts=options.text, parts=given.parts, arrays=arrays)
    path = page.save(options.out)
    described = "; ".join(
        f"{one['name']} {', '.join(str(tower['layers']) for tower in one['towers'])}" for one in page.about["encoders"]
    )
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB, attention of layers: {described}")


def _size(sides: list[int] | None) -> int | list[int | tuple[int, int]] | None:
    """One side for every tower, or a list with one for each."""
    if sides is None:
        return None
    return sides[0] if len(sides) == 1 else [*sides]
