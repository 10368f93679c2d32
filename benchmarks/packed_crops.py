"""Large, masked crops and small ones through a student, forward and backward: one packed sequence against two batches.

    OMP_NUM_THREADS=1 python -m benchmarks.packed_crops
    python -m benchmarks.packed_crops --device cuda --images 32 --rounds 20

On a GPU under bfloat16, where packed attention has a kernel of its own.
"""

import argparse
from typing import Any

import torch
from torch import Tensor

from benchmarks.timing import interleaved, machine
from vlm_vision.encoder import Encoder
from vlm_vision.new_models import new_encoder

NARROW = dict(embed_dim=192, depth=6, num_heads=3, mlp_dim=768, mask_token=True, layer_scale=1.0)
WIDE = NARROW | dict(embed_dim=384, num_heads=6, mlp_dim=1536)
CASES = {
    "192 wide, 8 of 32 beside 64 px": (NARROW | dict(image_size=64, patch_size=8, position_prefix=1), 32, 8, 4),
    "192 wide, 2 of 32 beside 64 px": (NARROW | dict(image_size=64, patch_size=8, position_prefix=1), 32, 2, 8),
    "192 wide, 8 of 96 beside 224 px": (NARROW | dict(image_size=224, patch_size=16, position_prefix=1), 96, 8, 1),
    "384 wide, 8 of 96 beside 224 px": (WIDE | dict(image_size=224, patch_size=16, position_prefix=1), 96, 8, 1),
    "192 wide, rotary, 8 of 112 beside 256 px": (
        NARROW | dict(image_size=256, patch_size=16, position="rope2d"),
        112,
        8,
        1,
    ),
}
"""Name -> (fields, side of small crops, how many for each image, times as many images)."""


def learn(encoder: Encoder, large: Tensor, small: Tensor, mask: Tensor, *, pack: bool) -> None:
    """Gradients of something that all crops take part in."""
    encoder.zero_grad()
    with torch.autocast(large.device.type, torch.bfloat16, enabled=large.is_cuda):
        outs: list[Any]
        if pack:
            outs = encoder.together([large, small], masks=[mask, None], pool=False)
        else:
            outs = [encoder(large, mask=mask, pool=False), encoder(small, pool=False)]
        loss = outs[0].patch_tokens.square().sum() + sum(out.cls_token.square().sum() for out in outs)
    loss.backward()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--images", type=int, default=2, help="in a batch; more where crops are small")
    parser.add_argument("--rounds", type=int, default=9)
    given = parser.parse_args()
    print(
        machine(given.device),
        "\n\n| student | images | two batches ms | packed ms | packed / two |\n|---|---|---|---|---|",
    )
    for name, (fields, side, count, times) in CASES.items():
        encoder, images = new_encoder(fields).to(given.device).train(), given.images * times
        size = encoder.config.image_size
        large = torch.randn(2 * images, 3, *size, device=given.device)
        small = torch.randn(count * images, 3, side, side, device=given.device)
        mask = torch.rand(len(large), encoder.num_patch_tokens(*size), device=given.device) < 0.3
        took = interleaved(
            {
                str(pack): lambda pack=pack, args=(encoder, large, small, mask): learn(*args, pack=pack)
                for pack in (False, True)
            },
            rounds=given.rounds,
            device=given.device,
        )
        two, packed = (1e3 * took[str(pack)] for pack in (False, True))
        print(f"| {name} | {images} | {two:.1f} | {packed:.1f} | {packed / two:.2f} |", flush=True)


if __name__ == "__main__":
    main()
