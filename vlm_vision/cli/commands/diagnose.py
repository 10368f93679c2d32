"""`vlm-vision diagnose`."""

import argparse


def add_to(parser: argparse.ArgumentParser) -> None:
    """Its arguments."""
    parser.add_argument("--model", required=True, metavar="FOLDER", help="folder or hub id of a VisionLanguageModel")
    parser.add_argument(
        "--data", required=True, metavar="SRC", help="LLaVA's JSON, .tar shards, a data set, or easy_vqa"
    )
    parser.add_argument("--images", default="", metavar="FOLDER", help="folder that image paths start from")
    parser.add_argument("--limit", type=int, default=256, help="conversations to use (default: %(default)s; 0 for all)")
    parser.add_argument("--batch-size", type=int, default=16, help="conversations at a time (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="device that computes (default: %(default)s)")


def run(options: argparse.Namespace) -> None:
    from vlm_vision.cli.whole_model import at_least_one, whole_model
    from vlm_vision.data.conversations.read import read_conversations
    from vlm_vision.measure.image_use import image_use

    at_least_one("--batch-size", options.batch_size)
    if options.limit < 0:
        raise ValueError(f"--limit is {options.limit}: expected at least 1, or 0 for all")
    conversations = read_conversations(options.data, images=options.images, split="test")[: options.limit or None]
    model = whole_model(options.model, options.device)
    result = image_use(model, conversations, batch_size=options.batch_size)
    print(result.table())
    print(result.warning or "The model uses its images.")
