"""`vlm-vision check-data`."""

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vlm_vision.data.check.report import DataReport


def add_to(parser: argparse.ArgumentParser) -> None:
    """Its arguments."""
    parser.add_argument(
        "source",
        metavar="SRC",
        help="JSON file, .tar shards, table, folder, data set, hf:owner/name, or LeRobotDataset",
    )
    kinds = parser.add_mutually_exclusive_group()
    kinds.add_argument("--robot", action="store_true", help="SRC is robot data, such as a hub id of a LeRobotDataset")
    kinds.add_argument(
        "--conversations", action="store_true", help="SRC holds conversations, as for recipes vqa and align"
    )
    kinds.add_argument(
        "--samples", action="store_true", help="SRC holds images with captions or labels, as for pretraining"
    )
    parser.add_argument("--images", default="", metavar="FOLDER", help="folder that image paths start from")
    parser.add_argument("--split", default="train", help="split of a data set (default: %(default)s)")
    parser.add_argument(
        "--decode", action="store_true", help="decode every image, which finds damage behind its header"
    )
    parser.add_argument("--model", default="", metavar="FOLDER", help="saved model, whose tokens --max-length counts")
    parser.add_argument("--max-length", type=int, metavar="N", help="most tokens of a conversation; needs --model")
    parser.add_argument("--state", default="", metavar="FEATURE", help="feature of the state; ' + ' joins several")
    parser.add_argument("--action", default="", metavar="FEATURE", help="feature of the action; ' + ' joins several")
    parser.add_argument(
        "--normalization",
        default="quantiles",
        choices=["quantiles", "mean_std", "min_max"],
        help="normalization of robot data whose clipping is measured (default: %(default)s)",
    )


def run(options: argparse.Namespace) -> None:
    from vlm_vision.data.check.report import first_error

    report = _report(options)
    print(report.table())
    if report.errors:
        raise ValueError(first_error([report]))


def _report(options: argparse.Namespace) -> "DataReport":
    from vlm_vision.data.check.source import check_source, kind_of

    kind = kind_of(options.source)
    kind = (
        "robot"
        if options.robot
        else "conversations"
        if options.conversations
        else "images"
        if options.samples
        else kind
    )
    if (options.max_length is None) != (not options.model):
        raise ValueError("--max-length and --model go together: tokens are those of a model")
    if options.model and kind != "conversations":
        raise ValueError(f"{options.source} holds {kind}: --model and --max-length are for conversations")
    if kind == "robot":
        from vlm_vision.data.check.robot import check_robot
        from vlm_vision.data.lerobot import read_dataset

        dataset = read_dataset(options.source, state=options.state, action=options.action)
        return check_robot(options.source, dataset, normalization=options.normalization, decode=options.decode)
    report = check_source(options.source, kind, images=options.images, split=options.split, decode=options.decode)
    if options.model:
        _add_lengths(report, options)
    return report


def _add_lengths(report: "DataReport", options: argparse.Namespace) -> None:
    from vlm_vision.cli.whole_model import whole_model
    from vlm_vision.data.check.conversations import check_lengths, usable
    from vlm_vision.data.conversations.labels import ChatLabels
    from vlm_vision.data.conversations.read import open_conversations

    processor = whole_model(options.model, "cpu").processor
    if processor is None:
        raise ValueError(f"{options.model} has no processor: expected a model that was saved with its tokenizer")
    opened = open_conversations(options.source, images=options.images, split=options.split)
    check_lengths(report, usable(opened, report), ChatLabels(processor, max_length=options.max_length))
