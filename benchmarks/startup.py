"""How long `vlm-vision` takes to start, do what needs no torch, and end, beside `python -c pass`.

python -m benchmarks.startup --runs 20
"""

import argparse
import subprocess
import sys
from collections.abc import Callable
from functools import partial

from benchmarks.timing import interleaved, machine

SCRIPT = "from vlm_vision.cli.main import console; console()"
"""What the console script does."""
COMMANDS = ("--help", "--version", "models", "formats")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20, help="interleaved runs of each (default: %(default)s)")
    runs = parser.parse_args().runs
    jobs = {"python -c pass": ["pass"]} | {f"vlm-vision {name}": [SCRIPT, name] for name in COMMANDS}
    contestants: dict[str, Callable[[], object]] = {
        name: partial(subprocess.run, [sys.executable, "-c", *words], check=True, stdout=subprocess.DEVNULL)
        for name, words in jobs.items()
    }
    medians = interleaved(contestants, rounds=runs, device="cpu")
    print(
        f"{machine('cpu')}; median of {runs} interleaved runs\n\n| command | ms | beside python -c pass |\n|---|---|---|"
    )
    for name, median in medians.items():
        print(f"| `{name}` | {1000 * median:.1f} | {median / medians['python -c pass']:.2f} |")


if __name__ == "__main__":
    main()
