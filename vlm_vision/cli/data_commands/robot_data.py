"""`vlm-vision robot-data`."""

import argparse


def add_to(parser: argparse.ArgumentParser) -> None:
    """Its arguments."""
    parser.add_argument(
        "folder",
        metavar="FOLDER",
        help="a sub-folder for each episode: camera/*.png or camera.mp4, actions.npy, task.txt",
    )
    parser.add_argument("--out", required=True, metavar="DATASET", help="new folder to write")
    parser.add_argument("--fps", required=True, type=int, help="frames per second")
    parser.add_argument("--png", action="store_true", help="store images as PNG, without loss, instead of videos")
    parser.add_argument(
        "--codec", default="av1", choices=["av1", "h264"], help="codec of the videos (default: %(default)s)"
    )
    parser.add_argument("--robot-type", default="", metavar="NAME", help="name of the robot")


def run(options: argparse.Namespace) -> None:
    from tqdm import tqdm

    from vlm_vision.data.lerobot import write_dataset
    from vlm_vision.data.lerobot.from_folders import EpisodeFolders

    episodes = tqdm(EpisodeFolders(options.folder), unit="episode", disable=None)
    kind = {"robot_type": options.robot_type, "video": not options.png, "codec": options.codec}
    info = write_dataset(options.out, episodes, fps=options.fps, **kind)
    print(f"{options.out}: {info.total_episodes} episodes, {info.total_frames} frames, {info.total_tasks} tasks")
