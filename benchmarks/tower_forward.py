"""Towers of today's VLMs beside transformers' own, on the same weights: one image, and four of mixed sizes in one pass.

    python -m benchmarks.tower_forward
    python -m benchmarks.tower_forward --towers qwen2_5_vl_3b --dtypes float32 --rounds 7
    python -m benchmarks.tower_forward --memory            # peak memory of each contestant, in processes of their own
    python -m benchmarks.tower_forward --device cuda --dtypes bfloat16 --depth 0

Published shapes, random weights, by default cut to 8 blocks. Both sides compute the tower's tokens, and the merger and deep
features where transformers' tower has them. Contestants: ours as loaded; ours packed for the CPU at these shapes
(`pack_linears`); transformers with eager and with SDPA attention, of which the faster counts; and the floor: the bare matrix
products and attention, window by window, by PyTorch's calls. Outputs are compared before anything is timed.
"""

import argparse
import copy
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedModel

import vlm_vision as vv
from benchmarks.timing import interleaved, machine
from vlm_vision.deploy.cpu_layout import pack_linears
from vlm_vision.nn.linear import Linear
from vlm_vision.nn.sequence import Part, plan

TOWERS: dict[str, dict[str, Any]] = {
    "qwen2_5_vl_3b": dict(
        model_type="qwen2_5_vl_vision", hidden_size=1280, intermediate_size=3420, num_heads=16, depth=32,
        out_hidden_size=2048, fullatt_block_indexes=[7, 15, 23, 31],
    ),
    "qwen3_vl_2b": dict(
        model_type="qwen3_vl_vision", hidden_size=1024, intermediate_size=4096, num_heads=16, depth=24,
        out_hidden_size=2048, deepstack_visual_indexes=[5, 11, 17],
    ),
    "pixtral": dict(
        model_type="pixtral", hidden_size=1024, intermediate_size=4096, num_attention_heads=16, num_hidden_layers=24,
        patch_size=16, image_size=1024,
    ),
}  # fmt: skip
"""Fields of config.json that differ from transformers' defaults."""

SIZES = {
    "one of 448 px": [(448, 448)],
    "four mixed": [(448, 448), (336, 560), (560, 336), (224, 672)],
}
"""(height, width) in pixels, each rounded to whole squares of merged patches."""


def tower(name: str, depth: int, attention: str = "sdpa") -> PreTrainedModel:
    """transformers' tower with random weights, cut to `depth` blocks; 0 for all."""
    fields = dict(TOWERS[name])
    if depth:
        blocks = "num_hidden_layers" if "num_hidden_layers" in fields else "depth"
        fields[blocks] = depth
        for chosen in ("fullatt_block_indexes", "deepstack_visual_indexes"):
            if chosen in fields:
                fields[chosen] = [i for i in fields[chosen] if i < depth]
    config = AutoConfig.for_model(fields.pop("model_type"), **fields)
    torch.manual_seed(0)
    model = (
        AutoModel.from_config(config, attn_implementation=attention).eval()
        if name == "pixtral"
        else _of(config, attention)
    )
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.02 * torch.randn_like(weight))
    return model


def _of(config: Any, attention: str) -> PreTrainedModel:
    """Towers that AutoModel does not know by their configuration."""
    import transformers

    names = {
        "qwen2_5_vl_vision": "Qwen2_5_VisionTransformerPretrainedModel",
        "qwen3_vl_vision": "Qwen3VLVisionModel",
    }
    module = f"transformers.models.{config.model_type.removesuffix('_vision')}"
    cls = getattr(transformers, names[config.model_type], None)
    if cls is None:
        modeling = __import__(f"{module}.modeling_{config.model_type.removesuffix('_vision')}", fromlist=["x"])
        cls = getattr(modeling, names[config.model_type])
    return cls._from_config(config, attn_implementation=attention).eval()


class Theirs:
    """transformers' tower over a list of images."""

    def __init__(self, model: PreTrainedModel, images: list[Tensor]):
        self.model, config = model, model.config
        patch = config.patch_size
        if config.model_type == "pixtral":
            height, width = (max(image.shape[axis] for image in images) for axis in (1, 2))
            padded = [F.pad(image, (0, width - image.shape[2], 0, height - image.shape[1])) for image in images]
            self.inputs = (torch.stack(padded), torch.tensor([image.shape[1:] for image in images]))
        else:
            rows = [
                rearrange(
                    image[:, None].expand(-1, 2, -1, -1),
                    "c f (h i p) (w j q) -> (h w i j) (c f p q)", i=2, j=2, p=patch, q=patch,
                )
                for image in images
            ]  # fmt: skip
            grids = [[1, image.shape[1] // patch, image.shape[2] // patch] for image in images]
            self.inputs = (torch.cat(rows), torch.tensor(grids))

    def __call__(self) -> list[Tensor]:
        """Merged tokens, or tokens where there is no merger, of all images; and deep features."""
        out = self.model(*self.inputs)
        if self.model.config.model_type == "pixtral":
            return [out.last_hidden_state[0]]
        return [out.pooler_output, *(getattr(out, "deepstack_features", None) or ())]


class Ours:
    """Our tower, and its merger, over the same images."""

    def __init__(self, encoder: vv.Encoder, merger: nn.Module | None, images: list[Tensor]):
        self.encoder, self.merger, self.images = encoder, merger, images

    def __call__(self) -> list[Tensor]:
        outputs = self.encoder.packed(self.images, pool=False)
        tokens = [
            out.patch_tokens if self.merger is None else self.merger(out.patch_tokens, out.grid) for out in outputs
        ]
        deep = zip(*(out.deepstack for out in outputs), strict=True)
        return [torch.cat([each[0] for each in tokens]), *(torch.cat([each[0] for each in level]) for level in deep)]


def floor(encoder: vv.Encoder, images: list[Tensor]) -> Callable[[], Tensor]:
    """The matrix products and attention of the blocks, and nothing else."""
    config, dtype, device = encoder.config, encoder.dtype, encoder.device
    dim, heads, hidden = config.embed_dim, config.num_heads, config.mlp_dim
    wide = hidden * (2 if config.mlp in ("swiglu", "geglu") else 1)
    parts = [Part(1, 1, encoder.grid(*image.shape[1:])) for image in images]
    how = plan(config, parts, packed=True, device=device)
    tokens = sum(part.grid[0] * part.grid[1] for part in parts)
    shapes = ((dim, 3 * dim), (dim, dim), (dim, wide), (hidden, dim))
    products = [  # by the kernels of the towers' own layers: PyTorch's choice is not the fastest on every processor
        [Linear(*shape, bias=False).to(device, dtype) for shape in shapes] for _ in range(config.depth)
    ]
    start = torch.randn(tokens, dim, dtype=dtype, device=device)

    @torch.inference_mode()
    def run() -> Tensor:
        x = start
        for i, (qkv, proj, fc1, fc2) in enumerate(products):
            runs = (how.full if i in config.full_blocks else how.windowed).runs or ()
            done, at, mixed = [], 0, qkv(x)
            for count, length in runs:
                piece = mixed[at : at + count * length].view(count, length, 3, heads, -1)
                q, k, v = piece.permute(2, 0, 3, 1, 4)
                done.append(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2).flatten(0, 1))
                at += count * length
            x = proj(torch.cat(done))
            x = fc2(fc1(x)[:, :hidden].contiguous())
        return x

    return run


def images_of(sizes: list[tuple[int, int]], patch: int, dtype: torch.dtype, device: str) -> list[Tensor]:
    unit = 2 * patch
    torch.manual_seed(1)
    return [
        torch.randn(3, *(round(side / unit) * unit for side in size)).to(device, dtype) for size in sizes
    ]  # fmt: skip


def contestants(name: str, options: argparse.Namespace, dtype: torch.dtype, case: str) -> dict[str, Callable[[], Any]]:
    """All of them, after their outputs were compared."""
    theirs = tower(name, options.depth)
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        encoder = vv.load(folder, dtype=dtype, device=options.device)
        merger = None if name == "pixtral" else vv.load_projector(folder).to(options.device, dtype).eval()
    assert isinstance(encoder, vv.Encoder)
    encoder.eval()
    images = images_of(SIZES[case], encoder.config.patch_size, dtype, options.device)
    eager = tower(name, options.depth, "eager").to(options.device, dtype)
    runs: dict[str, Callable[[], Any]] = {
        "ours": Ours(encoder, merger, images),
        "sdpa": Theirs(theirs.to(options.device, dtype), images),
        "eager": Theirs(eager, images),
        "floor": floor(encoder, images),
    }
    if options.device == "cpu":
        packed = Ours(copy.deepcopy(encoder), copy.deepcopy(merger), images)
        pack_linears(packed.encoder, packed)
        if packed.merger is not None:
            pack_linears(packed.merger, packed)
        runs["packed"] = packed
    expected = runs["sdpa"]()
    for contestant in set(runs) - {"floor", "sdpa"}:
        for one, two in zip(runs[contestant](), expected, strict=True):
            error = ((one - two).abs().max() / two.abs().max()).item()
            assert error < (1e-5 if dtype == torch.float32 else 0.1), (name, case, contestant, error)
    return runs


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tower_forward", description=__doc__)
    parser.add_argument("--towers", nargs="+", default=list(TOWERS), choices=list(TOWERS))
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--depth", type=int, default=8, help="blocks; 0 for all")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--memory", action="store_true", help="peak memory instead of time")
    parser.add_argument("--alone", nargs=3, metavar=("TOWER", "CASE", "CONTESTANT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.alone:
        name, case, contestant = options.alone
        print(_peak(name, case, contestant, options))
        return
    print(f"{machine(options.device)}; {options.depth or 'all'} blocks\n")
    if options.memory:
        memory(options)
        return
    columns = ["tower", "images", "dtype", "ours ms", "packed ms", "transformers / ours", "transformers / packed",
               "faster peer", "floor / ours", "floor / packed"]  # fmt: skip
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    for name in options.towers:
        for dtype in (getattr(torch, one) for one in options.dtypes):
            for case in SIZES:
                runs = contestants(name, options, dtype, case)
                seconds = interleaved(runs, rounds=options.rounds, device=options.device)
                peer = min(("sdpa", "eager"), key=seconds.__getitem__)
                mine, best = seconds["ours"], seconds.get("packed", seconds["ours"])
                cells = [name, case, str(dtype).removeprefix("torch."), f"{1e3 * mine:.1f}", f"{1e3 * best:.1f}"]
                cells += [f"{seconds[peer] / mine:.2f}", f"{seconds[peer] / best:.2f}", peer]
                cells += [f"{seconds['floor'] / mine:.2f}", f"{seconds['floor'] / best:.2f}"]
                print(f"| {' | '.join(cells)} |", flush=True)


def memory(options: argparse.Namespace) -> None:
    """Peak memory of each contestant above that of its weights, each in a process of its own."""
    print("| tower | images | ours MB | sdpa MB | eager MB |\n|---|---|---|---|---|")
    for name in options.towers:
        for case in SIZES:
            cells = []
            for contestant in ("ours", "sdpa", "eager"):
                command = [sys.executable, "-m", "benchmarks.tower_forward", "--depth", str(options.depth)]
                command += ["--dtypes", "float32", "--alone", name, case, contestant]
                cells.append(subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip())
            print(f"| {name} | {case} | {' | '.join(cells)} |", flush=True)


def _peak(name: str, case: str, contestant: str, options: argparse.Namespace) -> str:
    """MB above what the process held before its forward passes."""
    attention = "eager" if contestant == "eager" else "sdpa"
    theirs = tower(name, options.depth, attention)
    run: Callable[[], Any]
    if contestant == "ours":
        with tempfile.TemporaryDirectory() as folder:
            theirs.save_pretrained(folder)
            encoder, merger = vv.load(folder), None if name == "pixtral" else vv.load_projector(folder)
            del theirs
        run = Ours(encoder, merger, images_of(SIZES[case], encoder.config.patch_size, torch.float32, "cpu"))  # type: ignore[arg-type]
    else:
        run = Theirs(theirs, images_of(SIZES[case], theirs.config.patch_size, torch.float32, "cpu"))
    before = _resident()
    resource.getrusage(resource.RUSAGE_SELF)
    with open("/proc/self/clear_refs", "w") as file:  # the peak counts from here
        file.write("5")
    for _ in range(3):
        run()
    return f"{_resident('VmHWM') - before:.0f}"


def _resident(field: str = "VmRSS") -> float:
    """MB of this process, from /proc."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) / 1024 for line in file if line.startswith(field))


if __name__ == "__main__":
    main()
