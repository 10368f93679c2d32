"""timm's plain-transformer architectures, each built small by unmodified timm and saved as timm saves: tokens and pooled, here and there.

    python -m benchmarks.timm_census --timm peers/bin/python
    python -m benchmarks.timm_census --timm peers/bin/python --only 'eva02*'

No weights and no network: sizes are cut where the builder allows, and every parameter is moved away from its initial value. Each row
is exact (error relative to the largest value of at most 2e-5, at the native square and, where the model takes other sizes, at two that
are not square; and what the name alone tells, heads, epsilon, activation and pooling, is that of the full-size model), refused with
our reason, or different. The exit status is 1 if one is different.
"""

# pyright: reportMissingImports=false
import argparse
import json
import os
import subprocess
import sys
import tempfile
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

MODULES = (
    "vision_transformer", "deit", "eva", "beit", "naflexvit", "vision_transformer_relpos", "vision_transformer_sam", "cait",
    "qwen3_vit", "gemma4_vit", "deepseek_vit",
)  # fmt: skip
"""timm's modules of transformers without convolution stages."""

NAMED = ("vision_transformer", "deit", "eva", "naflexvit")
"""Modules that we read."""

EXACT = 2e-5


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.timm_census", description=__doc__)
    parser.add_argument("--timm", default=sys.executable, metavar="PYTHON", help="interpreter that has timm")
    parser.add_argument("--only", default="*", metavar="PATTERN", help="architectures by name, with * for any letters")
    parser.add_argument("--keep", metavar="FOLDER", help="folder for the models; default: a temporary one")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(options.keep or temporary).resolve()
        command = [options.timm, str(Path(__file__).resolve()), str(folder), options.only]
        env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}
        subprocess.run(command, check=True, env=env)
        return compare(folder)


# ---------------------------------------------------------------------------------------------- here


def compare(folder: Path) -> int:
    """Print the outcome for each model in the folder, and a summary by module. 1 if one differs."""
    built = json.loads((folder / "models.json").read_text())
    counts: dict[str, Counter[str]] = {module: Counter() for module in MODULES}
    print("| module | architecture | outcome |\n|---|---|---|")
    for name, entry in sorted(built["models"].items(), key=lambda item: (MODULES.index(item[1]["module"]), item[0])):
        if reason := entry.get("not_built"):
            outcome, text = "not built", f"not built small: {reason}"
        else:
            outcome, text = outcome_of(folder / name)
            if outcome == "exact" and (wrong := misnamed(name, entry["full"])):
                outcome, text = "different", f"**different** by name: {wrong}"
        counts[entry["module"]][outcome] += 1
        print(f"| {entry['module']} | {name} | {text} |", flush=True)
    kinds = ("exact", "refused", "different", "not built")
    print(f"\ntimm {built['timm']}, torch {built['torch']} there\n")
    print("| module | " + " | ".join(kinds) + " |\n|---|" + "---|" * len(kinds))
    for module, count in counts.items():
        print(f"| {module} | " + " | ".join(str(count[kind]) for kind in kinds) + " |")
    total = sum(counts.values(), Counter[str]())
    print("| all | " + " | ".join(str(total[kind]) for kind in kinds) + " |")
    return int(total["different"] > 0)


def outcome_of(path: Path) -> tuple[str, str]:
    """Exact, refused or different, and the text of the row."""
    import torch

    import vlm_vision as vv

    theirs = dict(np.load(path / "outputs.npz"))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            encoder = vv.load(path, reference="timm")
    except (ValueError, NotImplementedError) as error:
        return "refused", f"refused: {str(error).replace(str(path), path.name)}"
    assert isinstance(encoder, vv.Encoder)
    errors = []
    with torch.inference_mode():
        for at in range(sum(key.startswith("pixels") for key in theirs)):
            out = encoder(torch.from_numpy(theirs[f"pixels{at}"]))
            prefix = [out.cls_token[:, None]] if out.cls_token is not None else []
            prefix += [out.register_tokens] if out.register_tokens is not None else []
            errors.append(relative(torch.cat([*prefix, out.patch_tokens], dim=1).numpy(), theirs[f"tokens{at}"]))
            mine = out.logits if out.logits is not None else out.pooled
            if mine is not None and f"head{at}" in theirs:
                errors.append(relative(mine.numpy(), theirs[f"head{at}"]))
    text = " ".join(f"{error:.0e}" for error in errors)
    return ("exact", f"exact: {text}") if max(errors) <= EXACT else ("different", f"**different**: {text}")


def misnamed(name: str, full: dict[str, Any]) -> str:
    """What our reader takes from the name of the full-size architecture and timm does not; "" for nothing."""
    from vlm_vision.checkpoints.timm import layout, reader
    from vlm_vision.checkpoints.towers import Hints

    config = reader.config_of(name, layout.fields(full["shapes"], image_size=tuple(full["size"])), {}, Hints())
    pool = {"mean": "avg", "map_all": "map", "none": "", "cls": "token", "cls_dist": "token"}.get(
        config.pool, config.pool
    )
    ours = dict(heads=config.num_heads, eps=config.norm_eps, act=config.mlp, pool=pool)
    ours["pool_heads"] = (config.pool_heads or config.num_heads) if full["pool_heads"] else 0
    return ", ".join(f"{key} {ours[key]!r} for {full[key]!r}" for key in ours if ours[key] != full[key])


def relative(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Largest error, relative to the largest value; infinite for other shapes."""
    return float(abs(ours - theirs).max() / abs(theirs).max()) if ours.shape == theirs.shape else float("inf")


# ---------------------------------------------------------------------------------------------- in timm's environment


def write(folder: Path, pattern: str) -> None:
    """Save each architecture of the modules, small, and its outputs."""
    import timm
    import torch

    models: dict[str, Any] = {}
    for module in MODULES:
        for name in timm.list_models(pattern, module=module):
            torch.manual_seed(0)
            models[name] = {"module": module}
            if module in NAMED:
                models[name]["full"] = full_size(name)
            reasons = []
            for arguments in sizes(name):
                try:
                    save(folder / name, name, arguments)
                    break
                except (TypeError, ValueError, AssertionError, RuntimeError, AttributeError) as error:
                    reasons.append(f"{type(error).__name__}: {error}".splitlines()[0])
            else:
                models[name]["not_built"] = reasons[0]
    described = {"timm": timm.__version__, "torch": torch.__version__, "models": models}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "models.json").write_text(json.dumps(described))


def sizes(name: str) -> list[dict[str, Any]]:
    """Arguments of small models, the most general first."""
    import timm

    described = timm.get_pretrained_cfg(name, allow_unregistered=False)
    assert described is not None
    patch = 32 if "patch32" in name else 14 if "patch14" in name else 8 if "patch8" in name else 16
    small = dict(embed_dim=128, depth=3, num_heads=2, num_classes=5)
    if "giantopt" in name or "so400m" in name or "sapiens2" in name:
        small["embed_dim"] = 144 if "sapiens2" not in name else 128
    image: dict[str, Any] = dict(img_size=4 * patch)
    tries = [small | image | dict(dynamic_img_size=True), small | image, small]
    if "sapiens2" in name:
        tries = [arguments | dict(num_kv_heads=(2, 1, 2)) for arguments in tries]
    if "pe_core" in name:
        tries = [arguments | dict(attn_pool_num_heads=4) for arguments in tries]
    if name.startswith("samvit"):
        tries = [arguments | dict(global_attn_indexes=(1,)) for arguments in tries]
    if name.startswith("naflexvit"):
        tries = [small | dict(pos_embed_grid_size=(4, 4)), small]
    if "qwen3" in name or "gemma4" in name or "deepseek" in name:
        tries += [{key: value for key, value in arguments.items() if key != "num_classes"} for arguments in tries]
    return tries


def save(path: Path, name: str, arguments: dict[str, Any]) -> None:
    """Build, move every parameter, save as `push_to_hub` does, and compute."""
    import timm
    import torch
    from timm.models import save_for_hf

    model = timm.create_model(name, **arguments).eval()
    with torch.no_grad():
        for value in model.state_dict().values():
            if value.is_floating_point():
                value += 0.1 * torch.randn_like(value)
    save_for_hf(model, str(path), safe_serialization=True)
    _, height, width = model.pretrained_cfg["input_size"]
    height, width = (arguments["img_size"],) * 2 if "img_size" in arguments else (height, width)
    patch = height // 4 if "img_size" in arguments else 16
    arrays = {}
    for at, size in enumerate([(height, width), (height + 2 * patch, width), (height, width + 2 * patch)]):
        pixels = torch.randn(2, 3, *size)
        try:
            with torch.inference_mode():
                tokens = model.forward_features(pixels)
                head = head_of(model, tokens)
        except (AssertionError, RuntimeError, ValueError, TypeError):
            if not at:
                raise
            continue  # a model of one size
        tokens = tokens["patches"] if isinstance(tokens, dict) else tokens
        if tokens.ndim == 4:
            tokens = tokens.flatten(2).transpose(1, 2) if name.startswith("samvit") else tokens.flatten(1, 2)
        last = len([key for key in arrays if key.startswith("pixels")])
        arrays |= {f"pixels{last}": pixels.numpy(), f"tokens{last}": tokens.numpy()}
        if head is not None:
            arrays[f"head{last}"] = head.numpy()
    np.savez(path / "outputs.npz", **arrays)


def full_size(name: str) -> dict[str, Any]:
    """Shapes of the weights of an architecture as it is, without memory for them, and what the shapes do not tell."""
    import timm

    model = timm.create_model(name, device="meta")
    block, pool = model.blocks[0], getattr(model, "attn_pool", None)
    act = getattr(getattr(block, "mlp", None), "act", None)
    tanh = getattr(act, "approximate", "") == "tanh" or type(act).__name__ == "GELUTanh"
    names = {"GELU": "gelu", "QuickGELU": "quick_gelu", "SiLU": "swiglu"}
    return dict(
        shapes={key: list(value.shape) for key, value in model.state_dict().items()},
        size=model.pretrained_cfg["input_size"][1:],
        heads=getattr(block.attn, "num_heads", None) if hasattr(block, "attn") else None,
        eps=getattr(getattr(block, "norm1", None), "eps", None),
        act="gelu_tanh" if tanh else names.get(type(act).__name__, type(act).__name__),
        pool=model.global_pool,
        pool_heads=getattr(pool, "num_heads", 0),
    )


def head_of(model: Any, tokens: Any) -> Any:
    """What the model returns, where it has a head."""
    try:
        return model.forward_head(tokens)
    except NotImplementedError:
        return None


if __name__ == "__main__":
    if len(sys.argv) == 3 and not sys.argv[1].startswith("-"):
        sys.path = [place for place in sys.path if Path(place or ".").resolve() != Path(__file__).resolve().parent]
        write(Path(sys.argv[1]), sys.argv[2])
        sys.exit(0)
    sys.exit(main())
