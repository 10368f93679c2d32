"""`vlm-vision tokens`."""

import argparse
from dataclasses import fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vlm_vision.tokens.source import Source
    from vlm_vision.tokens.wanted import Wanted


def add_to(parser: argparse.ArgumentParser) -> None:
    """Its arguments."""
    parser.add_argument(
        "sources",
        nargs="+",
        metavar="SRC",
        help="images, folders, globs, lists, tables, shards, data sets, videos or robot recordings, local or by URL",
    )
    parser.add_argument("--encoder", required=True, metavar="ENC", help="folder or hub id; 'a + b' for fused towers")
    parser.add_argument("--out", required=True, metavar="STORE", help="folder of the store; the same command resumes")
    _add_wanted(parser.add_argument_group("content"))
    _add_source(parser.add_argument_group("source"))
    run = parser.add_argument_group("run")
    run.add_argument("--append", action="store_true", help="add the images that a finished store lacks")
    run.add_argument("--max-bad", type=float, help="share of bad images above which the run stops (default: 0.1)")
    run.add_argument("--workers", type=int, default=0, help="threads of one process (default: one a core)")
    run.add_argument("--device", default="cpu", help="device that computes (default: %(default)s)")
    run.add_argument("--engine", choices=["local", "ray"], default="local", help="local processes, or a Ray cluster")
    run.add_argument("--actors", type=int, default=2, help="encoders on the Ray cluster (default: %(default)s)")
    run.add_argument("--dry-run", action="store_true", help="print the number of rows and bytes, write nothing")


def _add_wanted(group: Any) -> None:
    group.add_argument(
        "--layer", type=int, nargs="+", default=[-1], help="blocks whose tokens are stored (default: -1, the last)"
    )
    group.add_argument("--norm", action=argparse.BooleanOptionalAction, default=True, help="apply the final norm")
    group.add_argument(
        "--parts",
        nargs="+",
        default=[],
        metavar="PART",
        help="some of patch_tokens, cls_token, register_tokens, pooled (default: all that the encoder has)",
    )
    group.add_argument("--dtype", default="float32", help="float32, float16, bfloat16 or int8 (default: %(default)s)")
    group.add_argument("--pool", type=int, default=1, help="side of squares of patches to average (default: 1, none)")
    group.add_argument("--projector", metavar="SRC", help="folder or hub id of a projector to apply to patch tokens")
    group.add_argument(
        "--precision", default="float32", help="of the forward: float32, bfloat16 or float16 (default: %(default)s)"
    )
    group.add_argument(
        "--image-size",
        type=int,
        nargs="+",
        metavar="PIXELS",
        help="side to which images are resized; one for each of several fused towers (default: the encoder's own)",
    )
    group.add_argument(
        "--pixels",
        choices=["pil", "torchvision"],
        default="pil",
        help="image backend of transformers whose pixels are made, for its folders (default: %(default)s)",
    )
    group.add_argument("--part", help="prefix of the weights of one tower, in a file with several")
    group.add_argument("--batch-size", type=int, default=16, help="images in one forward (default: %(default)s)")
    group.add_argument("--shard-mb", type=int, default=128, help="megabytes of a shard (default: %(default)s)")
    group.add_argument("--shard-images", type=int, default=0, help="images of a shard (default: by --shard-mb)")


def _add_source(group: Any) -> None:
    group.add_argument("--path-column", help="column of a table with the path or the bytes of the image")
    group.add_argument("--label-column", help="column with the label")
    group.add_argument("--caption-column", help="column with the caption")
    group.add_argument("--id-column", help="column with the key (default: the path, or the number of the row)")
    group.add_argument("--image-root", help="folder that paths start from (default: the folder of the table)")
    group.add_argument("--split", help="split of a data set (default: train)")
    group.add_argument("--subset", help="configuration of a data set")
    group.add_argument("--every", type=int, help="take each n-th frame of videos and recordings (default: 1)")
    group.add_argument("--cameras", nargs="+", help="cameras of recordings (default: all)")
    group.add_argument("--episodes", type=int, nargs="+", help="episodes of recordings (default: all)")
    group.add_argument("--revision", help="branch, tag or commit of a data set on the hub")


def run(options: argparse.Namespace) -> None:
    import json

    from vlm_vision.tokens.extraction.loading import EncoderSource
    from vlm_vision.tokens.sources.choose import SourceOptions, open_sources

    _check(options)
    wanted = _wanted(options)
    chosen: dict[str, Any] = {field.name: getattr(options, field.name, None) for field in fields(SourceOptions)}
    chosen = {name: tuple(one) if isinstance(one, list) else one for name, one in chosen.items() if one is not None}
    source = open_sources(options.sources, SourceOptions(**chosen))
    described = json.loads(json.dumps({"sources": options.sources, "options": chosen}))
    encoder = EncoderSource(
        options.encoder,
        tuple(options.image_size or ()),
        options.part,
        _device(options.device),
        options.projector,
        options.pixels,
    )
    if options.dry_run:
        _dry_run(encoder, source, wanted)
    elif options.engine == "ray":
        from vlm_vision.tokens.extraction.ray_engine import extract_on_ray

        extract_on_ray(
            source, encoder, options.out, wanted=wanted, described=described, append=options.append,
            max_bad=options.max_bad, workers=options.workers, actors=options.actors,
        )  # fmt: skip
        _print_result(options.out)
    else:
        _extract(options, encoder, source, wanted, described)


def _check(options: argparse.Namespace) -> None:
    from vlm_vision.files import check_folder

    if options.max_bad is not None and not 0 <= options.max_bad <= 1:
        raise ValueError(f"--max-bad is {options.max_bad}: expected a share from 0 to 1")
    for name, least in (("workers", 0), ("actors", 1)):
        if getattr(options, name) < least:
            raise ValueError(f"--{name} is {getattr(options, name)}: expected at least {least}")
    check_folder(options.out)


def _wanted(options: argparse.Namespace) -> "Wanted":
    from vlm_vision.tokens.wanted import Wanted

    return Wanted(
        layers=tuple(options.layer),
        norm=options.norm,
        parts=tuple(options.parts),
        dtype=options.dtype,
        pool=options.pool,
        precision=options.precision,
        batch_size=options.batch_size,
        shard_mb=options.shard_mb,
        shard_images=options.shard_images,
    )


def _device(device: str) -> str:
    """With one process for each GPU of a machine, the GPU of this one."""
    import os

    return f"cuda:{os.environ['LOCAL_RANK']}" if device == "cuda" and "LOCAL_RANK" in os.environ else device


def _extract(options: argparse.Namespace, encoder: Any, source: "Source", wanted: "Wanted", described: Any) -> None:
    import os

    from tqdm import tqdm

    from vlm_vision.tokens.extraction.extract import extract

    tower, projector = encoder.load()
    first = os.environ.get("RANK", "0") == "0"
    bars: list[tqdm] = []

    def progress(done: int, total: int, bad: int) -> None:
        if not bars:  # images of an earlier run do not count in the speed
            bars.append(
                tqdm(desc="tokens", unit="image", total=total, initial=done, disable=not first, mininterval=0.5)
            )
        bars[0].set_postfix_str(f"{bad} bad", refresh=False)
        bars[0].update(done - bars[0].n)

    try:
        extract(
            source, tower, options.out, wanted=wanted, name=options.encoder, described=described, projector=projector,
            append=options.append, max_bad=options.max_bad, workers=options.workers, progress=progress,
        )  # fmt: skip
    finally:
        for bar in bars:
            bar.close()
    if first:
        _print_result(options.out)


def _print_result(out: str) -> None:
    from vlm_vision.tokens.store import TokenStore

    store = TokenStore(out)
    shown = ", ".join(f"{name} {width}" for name, width in store.about["channels"].items())
    print(f"{len(store)} images, {store.about['failures']} bad; channels: {shown}; in {out}")


def _dry_run(encoder: Any, source: "Source", wanted: "Wanted") -> None:
    import tempfile
    from pathlib import Path

    from vlm_vision.tokens.extraction.extract import prepare
    from vlm_vision.tokens.extraction.opening import bytes_of, first_images, shard_images
    from vlm_vision.tokens.extraction.plan import write_plan

    tower, projector = encoder.load()
    tokens = prepare(tower, wanted, projector)
    first = first_images(source, tokens)
    if not first:
        raise ValueError("none of the first images can be read: run without --dry-run for their names and reasons")
    of_shard = shard_images(tokens, first)
    with tempfile.TemporaryDirectory() as folder:
        count = write_plan(Path(folder) / "plan.parquet", source.items(), shard_images=of_shard).count
    each = sum(bytes_of(one, wanted.dtype) for one in first) / len(first)
    print(f"{count} rows of {each:,.0f} bytes, {count * each / 1e9:.3f} GB in {-(-count // of_shard)} shards")
