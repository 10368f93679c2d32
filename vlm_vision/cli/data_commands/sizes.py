"""`vlm-vision sizes`."""

import argparse


def add_to(parser: argparse.ArgumentParser) -> None:
    """Its arguments."""
    from vlm_vision.data.shards.cache import ShardCache

    parser.add_argument("shards", metavar="SHARDS", help="'folder/{00000..00099}.tar', or by URL")
    parser.add_argument(
        "--cache", default=ShardCache.folder, metavar="DIR", help="folder for shards by URL (default: %(default)s)"
    )
    parser.add_argument(
        "--cache-gb",
        type=float,
        default=ShardCache.gb,
        help="largest size of that folder in 10^9 bytes (default: %(default)s)",
    )


def run(options: argparse.Namespace) -> None:
    import json

    from vlm_vision.data.shards.cache import ShardCache
    from vlm_vision.data.shards.sizes import count_samples

    for table in count_samples(options.shards, ShardCache(options.cache, options.cache_gb)):
        print(f"{table}: {sum(json.loads(table.read_text()).values())} samples")
