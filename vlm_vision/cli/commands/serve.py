"""`vlm-vision serve`."""

import argparse
import logging

from vlm_vision.serve.settings import TOKEN_VARIABLE, ServerSettings, read_token


def add_to(serve: argparse.ArgumentParser) -> None:
    """Its arguments."""
    serve.add_argument("--model", required=True, metavar="FOLDER", help="folder of a policy")
    serve.add_argument(
        "--statistics",
        required=True,
        metavar="NAME",
        help="name of the data set whose statistics the policy uses; clients send it as unnorm_key",
    )
    serve.add_argument("--host", default=ServerSettings.host, help="address to listen on (default: %(default)s)")
    serve.add_argument(
        "--port",
        type=int,
        default=ServerSettings.port,
        help="port to listen on, 0 for a free one (default: %(default)s)",
    )
    serve.add_argument(
        "--map",
        action="append",
        default=[],
        metavar="KEY=CAMERA",
        help="client's key of a camera, of the 'instruction' or of the 'state'; KEY= to ignore it; may be repeated",
    )
    serve.add_argument(
        "--token-file", metavar="FILE", help=f"file with the token that clients must send (default: ${TOKEN_VARIABLE})"
    )
    serve.add_argument("--no-token", action="store_true", help="serve to other machines without a token")
    serve.add_argument("--device", default="cpu", help="device that computes (default: %(default)s)")
    serve.add_argument(
        "--dtype",
        choices=["float32", "bfloat16", "float16"],
        help="dtype of the weights (default: as saved; float32 for published folders)",
    )
    serve.add_argument(
        "--graphs",
        type=int,
        default=0,
        metavar="N",
        help="number of batch shapes kept as CUDA graphs, on a CUDA device (default: %(default)s)",
    )
    published = serve.add_argument_group(
        "for folders that OpenVLA and OpenVLA-OFT published", "a folder of vlm_vision stores all of these"
    )
    published.add_argument(
        "--cameras", nargs="+", metavar="NAME", help="names of the images, in the order of the policy's training"
    )
    published.add_argument("--chunk", type=int, metavar="N", help="actions in a chunk; OFT on LIBERO: 8")
    published.add_argument(
        "--normalization", metavar="KIND", help="normalization of states and actions: quantiles or min_max"
    )
    published.add_argument(
        "--evaluation", metavar="NAME", help="preprocessing of camera images in the evaluation: openvla or openvla_oft"
    )
    published.add_argument(
        "--crop", action="store_true", default=None, help="crop the center of images, as LIBERO policies were trained"
    )
    for name, kind, meaning in (
        ("max_batch", int, "most observations in one forward pass"),
        ("max_wait_ms", float, "milliseconds that the first observation of a batch waits for others"),
        ("max_queue", int, "most observations in the queue; the server rejects more"),
        ("max_connections", int, "most open connections"),
        ("max_per_address", int, "most open connections from one address, websockets included"),
        ("max_message_mb", float, "largest message in MiB"),
        ("rate", float, "most requests per second from one address"),
        ("stall_s", float, "most seconds for a message to arrive"),
        ("grace_s", float, "most seconds for requests in flight when the server stops"),
    ):
        default = getattr(ServerSettings, name)
        option = "--" + name.replace("_", "-")
        serve.add_argument(option, type=kind, default=default, help=f"{meaning} (default: %(default)s)")


def _settings(options: argparse.Namespace) -> ServerSettings:
    """The settings of the options. Raises ValueError, or OSError for a token file that cannot be read."""
    names = set(ServerSettings.__dataclass_fields__) - {"token", "keys"}
    chosen = {name: getattr(options, name) for name in names}
    return ServerSettings(token=read_token(options.token_file), keys=_keys(options.map), **chosen)


def _keys(pairs: list[str]) -> dict[str, str]:
    keys: dict[str, str] = {}
    for pair in pairs:
        key, equals, target = pair.rpartition("=")
        if not equals or not key or key in keys:
            raise ValueError(f"--map {pair}: expected KEY=CAMERA, each key once, such as observation/image=top")
        keys[key] = target
    return keys


def run(options: argparse.Namespace) -> None:
    chosen = _settings(options)
    if options.crop and not options.evaluation:
        raise ValueError("--crop needs --evaluation: set it to openvla or openvla_oft")
    try:
        from vlm_vision.serve.server import serve
    except ModuleNotFoundError as error:
        raise ValueError(f"serving needs {error.name}: pip install 'vlm-vision[serve]'") from None
    from vlm_vision.load_encoder import known_device
    from vlm_vision.vla import load_policy

    device = known_device(options.device)
    published = {name: getattr(options, name) for name in ("cameras", "chunk", "normalization", "evaluation", "crop")}
    published = {name: value for name, value in published.items() if value is not None}
    if options.dtype:
        import torch

        published["dtype"] = getattr(torch, options.dtype)
    policy = load_policy(
        options.model, statistics=options.statistics, device=device, graphs=options.graphs, **published
    )
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    serve(policy, chosen)
