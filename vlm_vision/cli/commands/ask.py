"""`vlm-vision ask`."""

import argparse


def add_to(parser: argparse.ArgumentParser) -> None:
    """Its arguments."""
    parser.add_argument("image", metavar="IMAGE", help="image file")
    parser.add_argument("question", metavar="QUESTION", help="question about the image")
    parser.add_argument("--model", required=True, metavar="FOLDER", help="folder or hub id of a VisionLanguageModel")
    parser.add_argument(
        "--max-new-tokens", type=int, default=64, help="most tokens of the answer (default: %(default)s)"
    )
    parser.add_argument("--device", default="cpu", help="device that computes (default: %(default)s)")


def run(options: argparse.Namespace) -> None:
    from vlm_vision.cli.whole_model import whole_model
    from vlm_vision.preprocess.images import load_image

    image = load_image(options.image)
    model = whole_model(options.model, options.device)
    print(model.answer(image, options.question, max_new_tokens=options.max_new_tokens))
