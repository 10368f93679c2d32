"""`vlm-vision store`."""

import argparse
from typing import Any


def add_to(parser: argparse.ArgumentParser) -> None:
    """Its arguments."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION", help="what to do")
    stats = _action(actions, "stats", "norms, dead channels, outlier tokens, effective rank, near duplicates")
    stats.add_argument("stores", nargs=1, metavar="STORE", help="folder of the store")
    stats.add_argument("--layer", type=int, help="layer to measure (default: the first one stored)")
    stats.add_argument("--png", metavar="FILE", help="file for the plot (default: stats.png in the store)")
    merge = _action(actions, "merge", "write several stores of the same settings as a new one")
    merge.add_argument("stores", nargs="+", metavar="STORE", help="folders of the stores")
    merge.add_argument("--out", required=True, metavar="DIR", help="folder of the new store")
    export = _action(actions, "export", "write a store in the format of other tools")
    export.add_argument("stores", nargs=1, metavar="STORE", help="folder of the store")
    export.add_argument("--to", required=True, choices=["webdataset", "parquet", "numpy"], help="format to write")
    export.add_argument("--out", required=True, metavar="DIR", help="new folder for the files")


def _action(actions: Any, name: str, about: str) -> argparse.ArgumentParser:
    return actions.add_parser(name, help=about, description=f"{about[0].upper()}{about[1:]}.")


def run(options: argparse.Namespace) -> None:
    {"stats": _stats, "merge": _merge, "export": _export}[options.action](options)


def _stats(options: argparse.Namespace) -> None:
    from importlib.util import find_spec
    from pathlib import Path

    from vlm_vision.tokens.stats import measure_store
    from vlm_vision.tokens.stats_plot import plot_stats
    from vlm_vision.tokens.store import TokenStore

    folder = options.stores[0]
    stats = measure_store(TokenStore(folder), options.layer)
    print(stats.text())
    if options.png is None and find_spec("matplotlib") is None:
        print("no plot: it needs matplotlib, pip install 'vlm-vision[plot]'")
        return
    png = options.png or Path(folder) / "stats.png"
    plot_stats(stats, png, title=Path(folder).name)
    print(f"plot              {png}")


def _merge(options: argparse.Namespace) -> None:
    from vlm_vision.tokens.merge import merge
    from vlm_vision.tokens.store import TokenStore

    merge(options.stores, options.out)
    print(f"{len(TokenStore(options.out))} images in {options.out}")


def _export(options: argparse.Namespace) -> None:
    from vlm_vision.tokens.export import export
    from vlm_vision.tokens.store import TokenStore

    store = TokenStore(options.stores[0])
    export(store, options.to, options.out)
    print(f"{len(store)} images in {options.out}")
