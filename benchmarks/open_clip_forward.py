"""Our forward against open_clip's own CLIP tower on the same weights, read from the folder that open_clip would publish.

peers/bin/python -m benchmarks.open_clip_forward
"""

import argparse
import copy
import json
import tempfile
from pathlib import Path

import torch

import vlm_vision as vv
from benchmarks.peers import import_peer
from benchmarks.timing import interleaved, machine
from vlm_vision.deploy.cpu_layout import pack_for_cpu


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.open_clip_forward", description=__doc__)
    parser.add_argument("--models", nargs="+", default=["ViT-B-16", "ViT-B-16-quickgelu"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    open_clip = import_peer("open_clip")
    print(f"{machine('cpu')}; open_clip {open_clip.__version__}; float32\n")
    print("| model | batch | ours ms | packed ms | open_clip / ours | open_clip / packed | difference |")
    print("|---|---|---|---|---|---|---|")
    for name in options.models:
        torch.manual_seed(0)
        theirs = open_clip.create_model(name).eval()
        with tempfile.TemporaryDirectory() as folder:
            torch.save(theirs.state_dict(), Path(folder) / "open_clip_pytorch_model.bin")
            config = {"model_cfg": open_clip.get_model_config(name), "preprocess_cfg": {}}
            (Path(folder) / "open_clip_config.json").write_text(json.dumps(config))
            ours = vv.load(folder)
        assert isinstance(ours, vv.Encoder)
        height, width = ours.config.image_size
        for batch in options.batches:
            pixels = torch.randn(batch, 3, height, width)
            packed = copy.deepcopy(ours)
            pack_for_cpu(packed, batch=batch, height=height, width=width)
            wanted = theirs.encode_image(pixels)
            seen = [one(pixels).pooled for one in (ours, packed)]
            difference = max(((a - wanted).abs().max() / wanted.abs().max()).item() for a in seen)
            if difference > 1e-5:
                raise SystemExit(f"{name}: outputs differ by {difference:.1e}")
            contestants = {
                "ours": lambda pixels=pixels, run=ours: run(pixels),
                "packed": lambda pixels=pixels, run=packed: run(pixels),
                "open_clip": lambda pixels=pixels, run=theirs.encode_image: run(pixels),
            }
            took = interleaved(contestants, rounds=options.rounds, device="cpu")
            cells = [f"{took[one] * 1e3:.1f}" for one in ("ours", "packed")]
            cells += [f"{took['open_clip'] / took[one]:.2f}" for one in ("ours", "packed")]
            print(f"| {name} | {batch} | {' | '.join(cells)} | {difference:.0e} |", flush=True)


if __name__ == "__main__":
    main()
