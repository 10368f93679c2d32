"""Our forward against its peers on the same weights, and against the bare matrix products.

    python -m benchmarks.encoder_forward
    peers/bin/python -m benchmarks.encoder_forward --peers timm onnxruntime  # in the environment of benchmarks/peers.py
    python -m benchmarks.encoder_forward --device cuda --models dinov2_large siglip_so400m_patch14_224 --compile

Contestants: ours as loaded; ours with LayerScale folded and weights packed for this shape (`pack_for_cpu`; on a GPU only
folded); transformers; timm, made for this image size; onnxruntime on our export; and the floor: the same matrix products
and attention by PyTorch with nothing in between. All compute what transformers' model returns, pooled output included. Outputs
are compared before anything is timed, each with that reference's own resize of the positions.
"""

import argparse
import copy
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoConfig, AutoModel, PreTrainedModel

import vlm_vision as vv
from benchmarks.peers import import_peer
from benchmarks.timing import interleaved, machine
from vlm_vision import presets
from vlm_vision.checkpoints.hf import reader as hf
from vlm_vision.deploy.cpu_layout import pack_for_cpu
from vlm_vision.deploy.export import export_onnx

Run = Callable[[], object]


def reference(name: str) -> PreTrainedModel:
    """transformers' model of the preset `name`, with random weights."""
    kind = presets.checkpoint_family(name)
    family = hf.FAMILIES[kind]
    config = AutoConfig.for_model(kind, **family.write_config(presets.config(name)))
    torch.manual_seed(0)
    model = AutoModel.from_config(config).eval()
    with torch.no_grad():  # transformers leaves some of these at zero or one; no figure should hang on that
        for weight in model.parameters():
            weight.add_(0.02 * torch.randn_like(weight))
    return model


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


def timm_of(folder: Path, ours: vv.Encoder, side: int) -> torch.nn.Module:
    """timm's model of our weights, its position table resized once for images of `side` pixels."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about preprocessing and the mask token
        ours.save_pretrained(folder, format="timm")
    return import_peer("timm").create_model(f"local-dir:{folder}", pretrained=True, img_size=side).eval()


def onnx_of(file: Path, ours: vv.Encoder, side: int) -> Callable[[Tensor], list]:
    """onnxruntime on our export for images of `side` pixels, with as many threads as PyTorch."""
    onnxruntime = import_peer("onnxruntime")
    export_onnx(ours, file, height=side, width=side)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # it would slow down who runs next
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    names = ["patch_tokens"] + [out.name for out in session.get_outputs() if out.name == "pooled"]
    return lambda pixels: session.run(names, {"pixels": pixels.numpy()})


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.encoder_forward", description=__doc__)
    parser.add_argument("--models", nargs="+", default=["dinov2_small", "siglip_base_patch16_224"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--side", type=int, default=224, help="pixels")
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compile", action="store_true", help="torch.compile all of PyTorch's")
    parser.add_argument("--peers", nargs="*", default=[], choices=["timm", "onnxruntime"])
    options = parser.parse_args()

    names = ["transformers", *options.peers]
    print(f"{machine(options.device)}; {options.side} px{', compiled' if options.compile else ''}\n")
    columns = ["model", "dtype", "batch", "ours ms", "packed ms", *(f"{name} / ours" for name in names)]
    columns += [*(f"{name} / packed" for name in names), "floor / ours", "floor / packed", "difference"]
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    for name in options.models:
        theirs = reference(name)
        with tempfile.TemporaryDirectory() as folder:
            theirs.save_pretrained(folder)
            ours = vv.load(folder)
            as_timm = vv.load(folder, reference="timm")
            assert isinstance(ours, vv.Encoder) and isinstance(as_timm, vv.Encoder)
            timm = timm_of(Path(folder) / "timm", as_timm, options.side) if "timm" in options.peers else None
            session = (
                onnx_of(Path(folder) / "model.onnx", ours, options.side) if "onnxruntime" in options.peers else None
            )
        for dtype in (getattr(torch, one) for one in options.dtypes):
            for model in (ours, as_timm, theirs, timm):
                if model is not None:
                    torch.nn.Module.to(model, options.device, dtype)
            row(name, Models(ours, as_timm, theirs, timm, session), dtype, options)


@dataclass
class Models:
    """One encoder in every hand."""

    ours: vv.Encoder
    as_timm: vv.Encoder
    """Ours with timm's resize of the positions."""
    transformers: PreTrainedModel
    timm: torch.nn.Module | None
    onnxruntime: Callable[[Tensor], list] | None


def row(name: str, models: Models, dtype: torch.dtype, options: argparse.Namespace) -> None:
    """Compare, time and print one model at one dtype."""
    ours, theirs = models.ours, models.transformers
    native = options.side == ours.config.image_size[0]
    extra = {} if native else {"interpolate_pos_encoding": True} if "siglip" in name or "clip" in name else {}
    compiled = torch.compile if options.compile else lambda model: model
    prefix = ours.config.num_prefix_tokens
    for batch in options.batches:
        pixels = torch.randn(batch, 3, options.side, options.side, dtype=dtype, device=options.device)
        packed = copy.deepcopy(ours)
        if options.device == "cpu":
            pack_for_cpu(packed, batch=batch, height=options.side, width=options.side)
        else:
            packed.fold_layer_scale()
        wanted = theirs(pixels, **extra)
        expected = (wanted.last_hidden_state[:, prefix:], wanted.pooler_output)
        differences = [compare(ours(pixels), expected), compare(packed(pixels), expected)]
        run_ours, run_theirs, run_packed = compiled(ours), compiled(theirs), compiled(packed)
        contestants: dict[str, Run] = {
            "ours": lambda pixels=pixels, run=run_ours: run(pixels),
            "packed": lambda pixels=pixels, run=run_packed: run(pixels),
            "transformers": lambda pixels=pixels, run=run_theirs: run(pixels, **extra),
            "floor": floor(ours.config, batch, options.side, dtype, options.device),
        }
        if models.timm is not None:
            features = models.timm.forward_features(pixels)  # type: ignore[operator]
            differences.append(compare(models.as_timm(pixels), (features[:, prefix:], models.timm(pixels))))
            run_timm = compiled(models.timm)
            contestants["timm"] = lambda pixels=pixels, run=run_timm: run(pixels)
        if models.onnxruntime is not None and dtype == torch.float32:
            seen = [torch.from_numpy(out) for out in models.onnxruntime(pixels)]
            differences.append(compare(ours(pixels), (seen[0], seen[1] if len(seen) > 1 else None)))
            contestants["onnxruntime"] = lambda pixels=pixels: models.onnxruntime(pixels)  # type: ignore[misc]
        limit = 1e-5 if dtype == torch.float32 and options.device == "cpu" else 5e-2
        if max(differences) > limit:
            raise SystemExit(f"{name} {dtype} batch {batch}: outputs differ by {differences}, more than {limit:.0e}")
        took = interleaved(contestants, rounds=options.rounds, device=options.device)
        cells = [f"{took[one] * 1e3:.1f}" for one in ("ours", "packed")]
        for one in ("ours", "packed"):
            cells += [
                f"{took[peer] / took[one]:.2f}" if peer in took else "" for peer in ("transformers", *options.peers)
            ]
        cells += [f"{took['floor'] / took[one]:.2f}" for one in ("ours", "packed")]
        label = str(dtype).removeprefix("torch.")
        print(f"| {name} | {label} | {batch} | {' | '.join(cells)} | {max(differences):.0e} |", flush=True)


def compare(ours: vv.VisionOutput, expected: tuple[Tensor, Tensor | None]) -> float:
    """Largest difference of patch tokens and pooled output, over their scale."""
    pairs = [(ours.patch_tokens, expected[0]), (ours.pooled, expected[1])]
    return max(((a - b).abs().max() / b.abs().max()).item() for a, b in pairs if a is not None and b is not None)


if __name__ == "__main__":
    main()
