"""`vlm-vision record`."""

import argparse


def add_to(parser: argparse.ArgumentParser) -> None:
    """Its arguments."""
    from vlm_vision.sim.environment import TRAINING_SEED
    from vlm_vision.sim.metaworld import HORIZON

    parser.add_argument(
        "--tasks",
        nargs="+",
        required=True,
        metavar="TASK",
        help="names of tasks such as reach-v3, or all for the fifty",
    )
    parser.add_argument("--out", required=True, metavar="FOLDER", help="new folder to write")
    parser.add_argument(
        "--episodes",
        nargs="+",
        type=int,
        default=[50],
        metavar="N",
        help="episodes of each task: one number, or one for each (default: 50)",
    )
    parser.add_argument("--size", type=int, default=128, help="side of the images in pixels (default: %(default)s)")
    parser.add_argument(
        "--views", nargs="+", default=["corner4"], metavar="VIEW", help="cameras of the scene (default: corner4)"
    )
    parser.add_argument(
        "--noise",
        type=float,
        default=0.0,
        help="standard deviation of noise on executed actions (default: %(default)s)",
    )
    parser.add_argument("--horizon", type=int, default=HORIZON, help="most steps of an episode (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=TRAINING_SEED, help="first seed (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=0, help="processes (default: %(default)s, this one)")
    parser.add_argument("--png", action="store_true", help="store images as PNG, without loss, instead of videos")


def run(options: argparse.Namespace) -> None:
    import time

    from tqdm import tqdm

    from vlm_vision.data.lerobot import write_dataset
    from vlm_vision.sim.instructions import INSTRUCTIONS
    from vlm_vision.sim.metaworld import ACTION_NAMES, STATE_NAMES
    from vlm_vision.sim.record import Demonstrations, Recorder

    started = time.monotonic()
    tasks = list(INSTRUCTIONS) if options.tasks == ["all"] else options.tasks
    recorder = Recorder(tuple(options.views), options.size, options.noise, options.horizon)
    made = Demonstrations(recorder, tasks, options.episodes, seed=options.seed, workers=options.workers)
    names = {"action_names": ACTION_NAMES, "state_names": STATE_NAMES}
    write_dataset(
        options.out, tqdm(made, unit=" episodes"), fps=80, robot_type="sawyer", video=not options.png, **names
    )
    failed = ", ".join(f"{task} {number}" for task, number in made.failed.items()) or "none"
    print(
        f"{len(made)} episodes in {options.out}, {time.monotonic() - started:.0f} s; failed episodes of the experts: {failed}"
    )
