"""Time and memory from a folder on disk to an encoder: ours against transformers', each in fresh processes, taking turns.

    python -m benchmarks.loading

Memory is what the process's peak grew by while loading, the files' own pages counted where they were mapped and read.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile

from benchmarks.encoder_forward import reference
from benchmarks.timing import machine

_OURS = "import vlm_vision as vv; load = lambda folder: vv.load(folder)"
_THEIRS = "from transformers import AutoModel; load = lambda folder: AutoModel.from_pretrained(folder, dtype='float32')"
_MEASURE = """
import json, re, sys, time, torch
from pathlib import Path
{load}
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024
before, start = peak(), time.perf_counter()
model = load(sys.argv[1]).eval()
loaded = time.perf_counter() - start
grown = peak() - before
with torch.inference_mode():
    model(torch.zeros(1, 3, 224, 224))
print(json.dumps([loaded, grown, time.perf_counter() - start, peak() - before]))
"""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loading", description=__doc__)
    parser.add_argument("--models", nargs="+", default=["dinov2_base", "dinov2_large"])
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    print(f"{machine('cpu')}\n")
    print(
        "| model | file MB | | load ms | peak MB at load | load and first forward ms | peak MB |\n|---|---|---|---|---|---|---|"
    )
    for name in options.models:
        with tempfile.TemporaryDirectory() as folder:
            model = reference(name)
            size = sum(weight.numel() * weight.element_size() for weight in model.parameters()) / 2**20
            model.save_pretrained(folder)
            del model
            found: dict[str, list] = {"ours": [], "transformers": []}
            for _ in range(options.rounds):
                for who, load in (("ours", _OURS), ("transformers", _THEIRS)):
                    command = [sys.executable, "-c", _MEASURE.format(load=load), folder]
                    done = subprocess.run(command, capture_output=True, text=True, check=True)
                    found[who].append(json.loads(done.stdout.strip().splitlines()[-1]))
            for who, values in found.items():
                loaded, grown, first, peak = (statistics.median(column) for column in zip(*values, strict=True))
                print(
                    f"| {name} | {size:.0f} | {who} | {loaded * 1e3:.0f} | {grown:.0f} | {first * 1e3:.0f} | {peak:.0f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
