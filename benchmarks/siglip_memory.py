"""SigLIP's loss and its gradients: peak memory and time, against the matrix of all pairs at once.

    python -m benchmarks.siglip_memory
    python -m benchmarks.siglip_memory --device cuda --rounds 20

The full loss is algorithm 1 of the paper in autograd's hands: logits, signs and log sigmoids of all pairs. Memory is what a
loss adds to its inputs, measured in a process of its own.
"""

import argparse
import resource
import subprocess
import sys
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.timing import interleaved, machine
from vlm_vision.objectives.siglip import siglip_loss


def full(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """All pairs at once."""
    logits = scale * image @ text.T + bias
    signs = 2 * torch.eye(len(image), device=image.device) - 1
    return -F.logsigmoid(signs * logits).sum() / len(image)


LOSSES: dict[str, Callable[..., Tensor]] = {
    "all pairs": full,
    "chunks of 4096": partial(siglip_loss, chunk_size=4096),
    "chunks of 1024": partial(siglip_loss, chunk_size=1024),
    "chunks of 256": partial(siglip_loss, chunk_size=256),
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.siglip_memory", description=__doc__)
    parser.add_argument("--batch", type=int, default=16_384)
    parser.add_argument("--width", type=int, default=1152)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--measure", choices=LOSSES, help="print the peak memory of one loss, in MiB, and no more")
    options = parser.parse_args()
    if options.measure:
        print(peak(LOSSES[options.measure], options))
        return
    print(f"{machine(options.device)}; batch {options.batch}, width {options.width}, float32\n")
    memory = {name: alone(name, options) for name in LOSSES}
    given = inputs(options)
    values = {name: loss(*given).item() for name, loss in LOSSES.items()}
    took = interleaved(
        {name: partial(step, loss, given) for name, loss in LOSSES.items()},
        rounds=options.rounds,
        device=options.device,
    )
    print("| loss | value | peak MiB | of all pairs | time of all pairs |\n|---|---|---|---|---|")
    for name, value in values.items():
        share, ratio = memory[name] / memory["all pairs"], took[name] / took["all pairs"]
        print(f"| {name} | {value:.6f} | {memory[name]:.0f} | 1/{1 / share:.1f} | {ratio:.2f} |")


def inputs(options: argparse.Namespace) -> list[Tensor]:
    """Unit vectors, SigLIP's first scale and bias."""
    generator = torch.Generator().manual_seed(0)
    shape = (options.batch, options.width)
    pairs = [F.normalize(torch.randn(shape, generator=generator), dim=-1) for _ in range(2)]
    made = [*pairs, torch.tensor(10.0), torch.tensor(-10.0)]
    return [value.to(options.device).requires_grad_() for value in made]


def step(loss: Callable[..., Tensor], given: list[Tensor]) -> None:
    """Forward and backward."""
    for value in given:
        value.grad = None
    loss(*given).backward()


def peak(loss: Callable[..., Tensor], options: argparse.Namespace) -> float:
    """MiB that one step adds."""
    small = argparse.Namespace(**(vars(options) | {"batch": 64}))
    step(loss, inputs(small))  # what is loaded once
    given = inputs(options)
    before = held(options.device)
    step(loss, given)
    return held(options.device) - before


def held(device: str) -> float:
    """Most memory in use so far, MiB."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def alone(name: str, options: argparse.Namespace) -> float:
    """`peak` in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.siglip_memory", "--measure", name, "--device", options.device]
    command += ["--batch", str(options.batch), "--width", str(options.width)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


if __name__ == "__main__":
    main()
