"""The command `vlm-vision`: models, formats, convert, tokens, ask, diagnose, sizes, robot-data, serve."""

import argparse
import json
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import vlm_vision as vv
from vlm_vision.checkpoints.save import FORMATS
from vlm_vision.cli import serve as serve
from vlm_vision.data.shards.cache import ShardCache
from vlm_vision.load import known_device
from vlm_vision.preprocess.images import load_image


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Wrong input gives one sentence on standard error and exit code 2."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except (ValueError, OSError, ImportError) as error:
        print(f"vlm-vision {options.command}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="vlm-vision", description="Vision encoders for language models.")
    parser.add_argument("--version", action="version", version=vv.__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    models = commands.add_parser("models", help="list the architectures and their sizes")
    models.set_defaults(run=_models)

    formats = commands.add_parser("formats", help="which families are read from which formats, as a table")
    formats.set_defaults(run=_formats)

    convert = commands.add_parser("convert", help="write an encoder, or a whole model, in another public format")
    convert.add_argument("source", metavar="SRC", help="folder, file or hub id, of any format")
    convert.add_argument("target", metavar="DST", help="folder to write")
    convert.add_argument(
        "--to", required=True, choices=[*FORMATS, *WHOLE], help="format to write; llava and prismatic for whole models"
    )
    convert.add_argument("--format", help="of the source, where a folder holds two")
    convert.add_argument("--part", help="prefix of the tower's weights, where a file holds several")
    convert.add_argument("--architecture", help="timm's or open_clip's name, for a bare state dict")
    convert.add_argument("--num-heads", type=int, help="attention heads, for a file that does not tell them")
    convert.set_defaults(run=_convert)

    tokens = commands.add_parser("tokens", help="write the visual tokens of images to disk")
    tokens.add_argument("images", nargs="+", metavar="IMAGES", help="image files")
    tokens.add_argument("--encoder", required=True, metavar="SRC", help="folder or hub id; 'a + b' for fused towers")
    tokens.add_argument("--out", required=True, metavar="DIR", help="folder for tokens.safetensors and tokens.json")
    tokens.add_argument(
        "--layer", type=int, default=-1, help="block whose tokens to take (default: %(default)s, the last)"
    )
    tokens.add_argument("--no-norm", action="store_true", help="leave the final norm out")
    tokens.add_argument("--batch-size", type=int, default=16, help="images at a time (default: %(default)s)")
    tokens.add_argument("--device", default="cpu", help="where to compute (default: %(default)s)")
    tokens.set_defaults(run=_tokens)

    ask = commands.add_parser("ask", help="ask a model about an image")
    ask.add_argument("image", metavar="IMAGE", help="image file")
    ask.add_argument("question", help="what to ask")
    ask.add_argument("--model", required=True, metavar="FOLDER", help="folder or hub id of a VisionLanguageModel")
    ask.add_argument("--max-new-tokens", type=int, default=64, help="length of the answer (default: %(default)s)")
    ask.add_argument("--device", default="cpu", help="where to compute (default: %(default)s)")
    ask.set_defaults(run=_ask)

    diagnose = commands.add_parser("diagnose", help="does a model use its images? Measure it, and say what to try")
    diagnose.add_argument("--model", required=True, metavar="FOLDER", help="folder or hub id of a VisionLanguageModel")
    diagnose.add_argument(
        "--data", required=True, metavar="SRC", help="LLaVA's JSON, .tar shards, a data set, or easy_vqa"
    )
    diagnose.add_argument("--images", default="", metavar="FOLDER", help="what image paths start from")
    diagnose.add_argument(
        "--limit", type=int, default=256, help="conversations to use (default: %(default)s; 0 for all)"
    )
    diagnose.add_argument("--batch-size", type=int, default=16, help="conversations at a time (default: %(default)s)")
    diagnose.add_argument("--device", default="cpu", help="where to compute (default: %(default)s)")
    diagnose.set_defaults(run=_diagnose)

    sizes = commands.add_parser("sizes", help="count the samples of WebDataset shards, for training on them by URL")
    sizes.add_argument("shards", metavar="SHARDS", help="'folder/{00000..00099}.tar', or by URL")
    sizes.add_argument(
        "--cache", default=ShardCache.folder, metavar="DIR", help="of those by URL (default: %(default)s)"
    )
    sizes.add_argument(
        "--cache-gb", type=float, default=ShardCache.gb, help="what they may fill (default: %(default)s)"
    )
    sizes.set_defaults(run=_sizes)

    robot = commands.add_parser("robot-data", help="make a LeRobotDataset of a folder of episodes")
    robot.add_argument(
        "folder",
        metavar="FOLDER",
        help="a sub-folder for each episode: camera/*.png or camera.mp4, actions.npy, task.txt",
    )
    robot.add_argument("--out", required=True, metavar="DATASET", help="folder to write, a new one")
    robot.add_argument("--fps", required=True, type=int, help="moments in a second")
    robot.add_argument("--png", action="store_true", help="images exactly, rather than as videos")
    robot.add_argument("--codec", default="av1", choices=["av1", "h264"], help="of the videos (default: %(default)s)")
    robot.add_argument("--robot-type", default="", metavar="NAME", help="whose data it is")
    robot.set_defaults(run=_robot_data)
    serve.add_to(commands)
    return parser


def _models(options: argparse.Namespace) -> None:
    import torch

    from vlm_vision import presets

    print(f"{'name':34} {'parameters':>12} {'width':>6} {'blocks':>7} {'patch':>6} {'native':>7} {'patches':>8}")
    for name in presets.names():
        with torch.device("meta"):
            model = presets.create(name)
        config, count = model.config, sum(weight.numel() for weight in model.parameters())
        side = config.image_size[0]
        row = (config.embed_dim, config.depth, config.patch_size, side, config.num_patch_tokens(side, side))
        print(f"{name:34} {count / 1e6:10.1f} M {row[0]:6} {row[1]:7} {row[2]:6} {row[3]:7} {row[4]:8}")


_COLUMNS = {
    "hf": "transformers folder",
    "timm": "timm folder",
    "pth": "original `.pth`",
    "open_clip": "open_clip",
    "big_vision": "big_vision `.npz`",
    "openvla": "Prismatic, OpenVLA",
    "lerobot": "LeRobot, openpi (pi0, SmolVLA)",
}
WHOLE = ("llava", "prismatic")
"""Formats of models with a language model."""
_WRITTEN = {"dino": "vit"}  # families that a format holds under another's name


def _formats(options: argparse.Namespace) -> None:
    from vlm_vision.checkpoints.references import RESIZE_BY_FAMILY
    from vlm_vision.checkpoints.sniff import FORMATS as READ

    print(f"| family | {' | '.join(_COLUMNS.values())} | references of its positions |")
    print("|---" * (len(_COLUMNS) + 2) + "|")
    for family, rules in RESIZE_BY_FAMILY.items():
        cells = []
        for name in _COLUMNS:
            read = _WRITTEN.get(family, family) in READ[name] if name == "hf" else family in READ[name]
            cells.append("read, written" if read and name in FORMATS else "read" if read else "")
        references = "none needed" if family == "dinov3_vit" else ", ".join(rules)
        print(f"| {family} | {' | '.join(cells)} | {references} |")


def _convert(options: argparse.Namespace) -> None:
    import torch

    if options.to in WHOLE:
        vv.export(_model(options.source, "cpu"), options.to, options.target)
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
        given = pixels if isinstance(encoder, vv.FusedEncoder) else pixels[0]
        before, after = (one(given, pool=False).patch_tokens for one in (encoder, again))
    if not torch.equal(before, after):
        raise ValueError(f"{options.target} was written and gives other tokens than {options.source}: do not use it")
    print(f"{options.target}: {options.to}, read back, patch tokens equal to the bit")


def _tokens(options: argparse.Namespace) -> None:
    import torch
    from safetensors.torch import save_file

    from vlm_vision.files import whole, write_json

    _at_least_one("--batch-size", options.batch_size)
    tap = vv.Tap(options.layer, not options.no_norm)
    encoder = vv.load(options.encoder, tap=tap, device=options.device)
    tensors, grids = {}, []
    with torch.inference_mode():
        for start in range(0, len(options.images), options.batch_size):
            paths = options.images[start : start + options.batch_size]
            if isinstance(encoder, vv.Encoder) and encoder.preprocess.output_size is None:
                images = [pixels.to(options.device) for pixels in encoder.preprocess.each(paths)]
                seen = [(out.patch_tokens[0], out.grid) for out in encoder.packed(images, pool=False)]
            else:
                out = encoder(encoder.preprocess(paths).to(options.device), pool=False)
                seen = [(row, out.grid) for row in out.patch_tokens]
            for i, (row, grid) in enumerate(seen, start=start):
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


def _ask(options: argparse.Namespace) -> None:
    image = load_image(options.image)
    model = _model(options.model, options.device)
    print(model.answer(image, options.question, max_new_tokens=options.max_new_tokens))


def _diagnose(options: argparse.Namespace) -> None:
    from vlm_vision.data.conversations.read import read_conversations
    from vlm_vision.measure.image_use import image_use

    _at_least_one("--batch-size", options.batch_size)
    if options.limit < 0:
        raise ValueError(f"--limit is {options.limit}: it must be at least 1, or 0 for all")
    conversations = read_conversations(options.data, images=options.images, split="test")[: options.limit or None]
    found = image_use(_model(options.model, options.device), conversations, batch_size=options.batch_size)
    print(found.table())
    print(found.warning or "The model uses its images.")


def _sizes(options: argparse.Namespace) -> None:
    from vlm_vision.data.shards.sizes import count_samples

    for table in count_samples(options.shards, ShardCache(options.cache, options.cache_gb)):
        print(f"{table}: {sum(json.loads(table.read_text()).values())} samples")


def _robot_data(options: argparse.Namespace) -> None:
    from tqdm import tqdm

    from vlm_vision.data.lerobot import write_dataset
    from vlm_vision.data.lerobot.from_folders import EpisodeFolders

    episodes = tqdm(EpisodeFolders(options.folder), unit="episode", disable=None)
    kind = {"robot_type": options.robot_type, "video": not options.png, "codec": options.codec}
    info = write_dataset(options.out, episodes, fps=options.fps, **kind)
    print(f"{options.out}: {info.total_episodes} episodes, {info.total_frames} moments, {info.total_tasks} tasks")


def _model(source: str, device: str) -> vv.VisionLanguageModel:
    """The `VisionLanguageModel` of a folder or hub id, on a device."""
    from transformers import PreTrainedConfig

    from vlm_vision.vlm.config import STOCK_TYPES, VisionLanguageConfig

    folder = Path(source)
    if folder.exists() and not (folder / "config.json").is_file():
        raise ValueError(f"{folder} has no config.json: give the folder that VisionLanguageModel.save_pretrained wrote")
    if not folder.exists() and source.count("/") != 1:
        raise ValueError(f"there is no folder {source}, and it is no hub id of the form owner/name")
    where, kind = known_device(device), PreTrainedConfig.get_config_dict(source)[0].get("model_type")
    if kind not in (VisionLanguageConfig.model_type, *STOCK_TYPES):
        raise ValueError(
            f"{source} holds a {kind} model, expected one saved by VisionLanguageModel, LLaVA or Prismatic"
        )
    return vv.VisionLanguageModel.from_pretrained(source).to(where)


def _at_least_one(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{name} is {value}: it must be at least 1")


if __name__ == "__main__":
    sys.exit(main())
