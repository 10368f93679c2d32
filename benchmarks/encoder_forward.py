"""Our forward against transformers' on the same weights, and against the bare matrix products.

    python -m benchmarks.encoder_forward
    python -m benchmarks.encoder_forward --device cuda --models dinov2_large siglip_so400m_patch14_224 --compile

Four contestants: ours as loaded, ours with LayerScale folded and weights packed for this shape (`pack_for_cpu`; on a GPU
only folded), transformers, and the floor. Both encoders compute everything that transformers' model returns, pooled output included. Outputs are compared before
anything is timed. The floor is the same matrix products and attention with nothing in between.
"""

import argparse
import copy
import tempfile
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoConfig, AutoModel, PreTrainedModel

import vlm_vision as vv
from benchmarks.timing import interleaved, machine
from vlm_vision import presets
from vlm_vision.checkpoints import hf
from vlm_vision.packed import pack_for_cpu


def reference(name: str) -> PreTrainedModel:
    """transformers' model of the preset `name`, with random weights."""
    family = hf.FAMILIES[kind(name)]
    config = AutoConfig.for_model(kind(name), **family.write_config(presets.config(name)))
    torch.manual_seed(0)
    model = AutoModel.from_config(config).eval()
    with torch.no_grad():  # transformers leaves some of these at zero or one; no figure should hang on that
        for weight in model.parameters():
            weight.add_(0.02 * torch.randn_like(weight))
    return model


def kind(name: str) -> str:
    """model_type of the preset `name`."""
    family = presets.family(name)
    return f"{family}_vision_model" if family in ("clip", "siglip") else family


def floor(config: vv.ViTConfig, batch: int, side: int, dtype: torch.dtype, device: str) -> Callable[[], Tensor]:
    """The matrix products and attention of one forward, and nothing else."""
    dim, heads = config.embed_dim, config.num_heads
    tokens = config.num_patch_tokens(side, side) + config.num_prefix_tokens
    gated = 2 if config.mlp == "swiglu" else 1

    def matrix(rows: int, columns: int) -> Tensor:
        return torch.randn(rows, columns, dtype=dtype, device=device) / columns**0.5

    blocks = [
        (matrix(3 * dim, dim), matrix(dim, dim), matrix(gated * config.mlp_dim, dim), matrix(dim, config.mlp_dim))
        for _ in range(config.depth)
    ]
    bias = {n: torch.zeros(n, dtype=dtype, device=device) for n in (3 * dim, dim, gated * config.mlp_dim)}
    patches = torch.randn(batch, tokens, config.channels * config.patch_size**2, dtype=dtype, device=device)
    embed = matrix(dim, patches.shape[-1])

    @torch.inference_mode()
    def run() -> Tensor:
        x = F.linear(patches, embed)
        for qkv, proj, fc1, fc2 in blocks:
            q, k, v = F.linear(x, qkv, bias[3 * dim]).unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
            x = F.linear(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2), proj, bias[dim])
            x = F.linear(F.linear(x, fc1, bias[len(fc1)])[..., : config.mlp_dim], fc2, bias[dim])
        return x

    return run


def compare(ours: vv.VisionOutput, theirs, prefix: int) -> float:
    """Largest difference of patch tokens and pooled output, over their scale."""
    pairs = [(ours.patch_tokens, theirs.last_hidden_state[:, prefix:]), (ours.pooled, theirs.pooler_output)]
    return max(((a - b).abs().max() / b.abs().max()).item() for a, b in pairs if a is not None and b is not None)


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.encoder_forward", description=__doc__)
    parser.add_argument("--models", nargs="+", default=["dinov2_small", "siglip_base_patch16_224"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--side", type=int, default=224, help="pixels")
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compile", action="store_true", help="torch.compile both")
    options = parser.parse_args()

    print(f"{machine(options.device)}; {options.side} px{', compiled' if options.compile else ''}\n")
    print(
        "| model | dtype | batch | ours ms | packed ms | transformers ms | ours x | packed x | floor / ours | floor / packed | difference |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    for name in options.models:
        theirs = reference(name)
        with tempfile.TemporaryDirectory() as folder:
            theirs.save_pretrained(folder)
            ours = vv.load(folder)
        assert isinstance(ours, vv.Encoder)
        for dtype in (getattr(torch, one) for one in options.dtypes):
            ours.to(options.device, dtype)
            torch.nn.Module.to(theirs, options.device, dtype)
            row(name, ours, theirs, dtype, options)


def row(name: str, ours: vv.Encoder, theirs: PreTrainedModel, dtype: torch.dtype, options: argparse.Namespace) -> None:
    """Compare, time and print one model at one dtype."""
    native = options.side == ours.config.image_size[0]
    extra = {} if native else {"interpolate_pos_encoding": True} if "siglip" in name or "clip" in name else {}
    run_ours, run_theirs = (torch.compile(ours), torch.compile(theirs)) if options.compile else (ours, theirs)
    for batch in options.batches:
        pixels = torch.randn(batch, 3, options.side, options.side, dtype=dtype, device=options.device)
        packed = copy.deepcopy(ours)
        if options.device == "cpu":
            pack_for_cpu(packed, batch=batch, height=options.side, width=options.side)
        else:
            packed.fold_layer_scale()
        wanted = theirs(pixels, **extra)
        difference = max(compare(one(pixels), wanted, ours.config.num_prefix_tokens) for one in (ours, packed))
        run_packed = torch.compile(packed) if options.compile else packed
        limit = 1e-5 if dtype == torch.float32 and options.device == "cpu" else 5e-2
        if difference > limit:
            raise SystemExit(f"{name} {dtype} batch {batch}: outputs differ by {difference:.1e}, more than {limit:.0e}")
        contestants = {
            "ours": lambda pixels=pixels: run_ours(pixels),
            "packed": lambda pixels=pixels, run=run_packed: run(pixels),
            "transformers": lambda pixels=pixels: run_theirs(pixels, **extra),
            "floor": floor(ours.config, batch, options.side, dtype, options.device),
        }
        took = interleaved(contestants, rounds=options.rounds, device=options.device)
        cells = [f"{took[one] * 1e3:.1f}" for one in ("ours", "packed", "transformers")]
        cells += [f"{took['transformers'] / took[one]:.2f}" for one in ("ours", "packed")]
        cells += [f"{took['floor'] / took[one]:.2f}" for one in ("ours", "packed")]
        print(
            f"| {name} | {str(dtype).removeprefix('torch.')} | {batch} | {' | '.join(cells)} | {difference:.0e} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
