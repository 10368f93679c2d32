"""DINOv2 and SigLIP side by side, batch 1, as OpenVLA runs them: two timm towers one after the other, against ours fused.

    peers/bin/python -m benchmarks.fused_latency --device cuda --dtype bfloat16

On a GPU ours runs the towers on two streams, and once more as one CUDA graph; on a CPU with weights packed for the shape.
Both give the patch tokens before the last block, without norm, concatenated. Also what a tap one block earlier saves.
"""

import argparse
import copy
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

import vlm_vision as vv
from benchmarks.encoder_forward import reference
from benchmarks.peers import import_peer
from benchmarks.timing import interleaved, machine
from vlm_vision.deploy.cpu_layout import pack_for_cpu
from vlm_vision.deploy.cuda_graph import CudaGraph


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fused_latency", description=__doc__)
    parser.add_argument("--models", nargs=2, default=["dinov2_with_registers_large", "siglip_so400m_patch14_224"])
    parser.add_argument("--side", type=int, default=224, help="pixels")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    options = parser.parse_args()
    dtype, side = getattr(torch, options.dtype), options.side
    fused, towers = models(options.models, side)
    fused.to(options.device, dtype)
    for tower in towers:
        tower.to(options.device, dtype)
    pixels = torch.randn(1, 6, side, side, dtype=dtype, device=options.device)

    def one_after_the_other() -> Tensor:
        parts = zip(towers, pixels.split(3, dim=1), strict=True)
        return torch.cat(
            [tower.get_intermediate_layers(part, n={len(tower.blocks) - 2})[0] for tower, part in parts], dim=-1
        )

    wanted = one_after_the_other()
    contestants: dict[str, Callable[[], object]] = {
        "timm": one_after_the_other,
        "ours": lambda: fused(pixels, pool=False),
    }
    if options.device.startswith("cuda"):
        graph = CudaGraph(fused, batch=1, height=side, width=side, pool=False)
        contestants["as one CUDA graph"] = lambda: graph(pixels)
    else:
        packed = copy.deepcopy(fused)
        pack_for_cpu(packed, batch=1, height=side, width=side)
        contestants["packed"] = lambda: packed(pixels, pool=False)
    first = fused.towers[0]
    assert isinstance(first, vv.Encoder)
    part = pixels[:, :3]
    contestants["first tower, all blocks"] = lambda: first(part, tap=vv.Tap(-1, norm=False), pool=False)
    contestants["first tower, one block less"] = lambda: first(part, tap=vv.Tap(-2, norm=False), pool=False)
    difference = ((fused(pixels).patch_tokens - wanted).abs().max() / wanted.abs().max()).item()
    if difference > (1e-5 if dtype == torch.float32 and options.device == "cpu" else 5e-2):
        raise SystemExit(f"outputs differ by {difference:.1e}")
    took = interleaved(contestants, rounds=options.rounds, device=options.device)
    print(f"{machine(options.device)}; {' + '.join(options.models)}, {side} px, {options.dtype}, batch 1\n")
    print("| | ms | timm / it |\n|---|---|---|")
    for name, seconds in took.items():
        print(f"| {name} | {seconds * 1e3:.1f} | {'' if 'tower' in name else format(took['timm'] / seconds, '.2f')} |")
    depth = first.config.depth
    saved = 1 - took["first tower, one block less"] / took["first tower, all blocks"]
    print(
        f"\nOne block less of {depth} saves {saved:.1%} (a share of 1/{depth} is {1 / depth:.1%}). Difference {difference:.0e}."
    )


def models(names: list[str], side: int) -> tuple[vv.FusedEncoder, list]:
    """Ours fused, tapped before the last block, and timm's towers with the same weights, positions resized once."""
    timm, towers, folders = import_peer("timm"), [], []
    with tempfile.TemporaryDirectory() as root:
        for name in names:
            folder, hf = Path(root) / name, Path(root) / f"{name}_hf"
            reference(name).save_pretrained(hf)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about preprocessing and the mask token
                vv.load(hf).save_pretrained(folder, format="timm")
            towers.append(timm.create_model(f"local-dir:{folder}", pretrained=True, img_size=side).eval())
            folders.append(str(folder))
        fused = vv.load(" + ".join(folders), tap=vv.Tap(-2, norm=False), image_size=side, reference="timm")
    assert isinstance(fused, vv.FusedEncoder)
    return fused, towers


if __name__ == "__main__":
    main()
