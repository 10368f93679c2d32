"""`vlm-vision verify`."""

import argparse


def add_to(parser: argparse.ArgumentParser) -> None:
    """Its arguments."""
    parser.add_argument("folder", metavar="FOLDER", help="folder of a saved encoder, model, policy or adapter")


def run(options: argparse.Namespace) -> None:
    from vlm_vision.checkpoints.manifest import verify

    states = verify(options.folder)
    for one in states:
        print(f"{one.state:8} {one.name}")
        for tensor, state in one.tensors:
            print(f"  {state:8} {tensor}")
    if differing := [one for one in states if one.state != "same"]:
        raise ValueError(f"{len(differing)} of {len(states)} files of {options.folder} are not as they were saved")
    print(f"all {len(states)} files are as they were saved; this is no signature")
