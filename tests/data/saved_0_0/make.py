"""Write the folders beside this file. They are of commit 1965b86 and are not to be made again: see README.md."""

import csv
import json
import os
import shutil
import sys
import zipfile
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

import vlm_vision as vv
from vlm_vision.data.lerobot import write_dataset
from vlm_vision.mae import load_mae
from vlm_vision.new_models import new_encoder, new_language_model, word_tokenizer
from vlm_vision.robot.episode import Episode
from vlm_vision.robot.observation import Observation, PolicySpec
from vlm_vision.robot.statistics import Statistics
from vlm_vision.train.adapters import load_adapter, merge, save_adapter
from vlm_vision.train.agglomerate import Agglomerate
from vlm_vision.train.parts import set_trainable
from vlm_vision.train.step import Step
from vlm_vision.vla import VisionLanguageActionModel, load_policy
from vlm_vision.vla.sight import Sight
from vlm_vision.vlm.config import VisionLanguageConfig
from vlm_vision.vlm.image_processor import VisionLanguageImageProcessor
from vlm_vision.vlm.processor import VisionLanguageProcessor

COLORS = {"red": (220, 30, 30), "green": (20, 180, 40), "blue": (30, 40, 230)}
TEXTS = ["<image> what color is this ?", "is it red ?", "<image> the left <image>"]
TOWER = dict(image_size=16, patch_size=4, embed_dim=8, depth=2, num_heads=2, mlp_dim=16, position_prefix=1)
SMALL = TOWER | dict(depth=1)
LLAMA = dict(model_type="llama", hidden_size=8, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2)
LLAMA |= dict(num_key_value_heads=1, tie_word_embeddings=True)
LAYOUTS = {"whole": vv.Whole(), "native": vv.Native(24), "anyres": vv.AnyRes(((16, 32), (32, 16)))}
HEADS = {"parallel": {"hidden_dim": 16}, "flow": {"width": 8, "mlp_dim": 16, "steps": 3}, "tokens": {"bins": 8}}
AUTO = {
    "AutoConfig": VisionLanguageConfig,
    "AutoModelForImageTextToText": vv.VisionLanguageModel,
    "AutoProcessor": VisionLanguageProcessor,
    "AutoImageProcessor": VisionLanguageImageProcessor,
}
RUN = dict(steps=4, batch_size=4, micro_batch_size=2, warmup_steps=1, checkpoint_every=2, tracker="none", log_every=1)
SEEN = {"train": "data/pictures.csv", "test": "data/pictures.csv"}
SPOKEN = {"train": "data/conversations.json"}
BOTH = {
    "encoder": {"new": SMALL | {"class_token": False, "pool": "none", "position_prefix": 0}},
    "language": {"new": LLAMA},
}
RUNS = {
    "mae": dict(
        data=SEEN,
        model={"encoder": SMALL, "decoder": {"embed_dim": 8, "depth": 1, "num_heads": 2, "mlp_dim": 16}},
        blr=0.1,
        eval_neighbours=0,
    ),
    "contrastive": dict(
        data={"train": SEEN["train"]},
        micro_batch_size=4,
        towers={
            "image": {name: value for name, value in SMALL.items() if name != "position_prefix"},
            "text": dict(embed_dim=8, depth=1, num_heads=2, mlp_dim=16, context_length=8),
            "vocab_size": 270,
            "logit_bias": "batch",
        },
    ),
    "supervised": dict(data=SEEN, student={"fields": SMALL, "crop_ratio": 1.0}, base_lr=0.1, ema=0.7),
    "distill": dict(
        data=SEEN,
        teachers=[{"source": "models/encoder_hf", "name": "first"}, {"source": "models/encoder_timm", "weight": 0.5}],
        student={"fields": SMALL},
        statistics_steps=2,
        eval_neighbours=0,
    ),
    "self_distill": dict(
        data=SEEN,
        student={"fields": SMALL | {"layer_scale": 1.0}, "crop_ratio": 1.0},
        crops={"small": 1, "small_size": 8},
        heads={"prototypes": 12, "hidden_dim": 8, "bottleneck_dim": 8},
        patch_heads={"prototypes": 8, "hidden_dim": 8, "bottleneck_dim": 8},
        teacher="center",
        momentum=[0.8, 1.0],
        base_lr=0.01,
        eval_neighbours=0,
    ),
    "align": dict(data=SPOKEN, **BOTH),
    "vqa": dict(data=SPOKEN, **BOTH, train_language="lora", lora_rank=2, lora_dropout=0.25),
    "vla": dict(
        data={"train": {"robot": "data/robot"}, "test_episodes": 1},
        **BOTH,
        head="flow",
        head_options=HEADS["flow"],
        chunk=3,
        train_language="full",
    ),
}
"""Recipe -> what its YAML says beside RUN."""


def pictures(root: Path) -> None:
    """Nine pictures of two colors with labels, captions and questions; and what a robot saw."""
    rows, records = [], []
    draw = np.random.default_rng(0)
    for left, value in COLORS.items():
        for right, other in COLORS.items():
            picture = np.empty((18, 20, 3), np.int64)
            picture[:, :12], picture[:, 12:] = value, other
            name = f"{left}-{right}.png"
            picture = np.clip(picture + draw.integers(-20, 21, (18, 20, 1)), 0, 255).astype(np.uint8)
            Image.fromarray(picture).save(root / "data" / name)
            rows.append({"picture": name, "caption": f"{left} left, {right} right", "label": left})
            turns = [{"from": "human", "value": "<image>\nwhat color is left ?"}, {"from": "gpt", "value": left}]
            records.append({"image": name, "conversations": turns})
    with (root / "data/pictures.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    (root / "data/conversations.json").write_text(json.dumps(records, indent=1) + "\n")
    write_dataset(root / "data/robot", map(episode, range(3)), fps=10, video=False)


def episode(number: int) -> Episode:
    draw = np.random.default_rng(number)
    seen = np.repeat(draw.integers(0, 256, (4, 1, 16, 3), dtype=np.uint8), 16, axis=1)
    states, actions = draw.normal(size=(4, 1)), draw.normal(size=(4, 2))
    return Episode("push a red block", {"top": seen}, actions.astype(np.float32), states.astype(np.float32))


def moved(model: torch.nn.Module, by: float = 0.1) -> Any:
    """All that trains moved at random, so that no two layers are alike and nothing is zero."""
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.add_(by * torch.randn_like(weight))
    return model.eval()


def tower(seed: int, **fields) -> vv.Encoder:
    torch.manual_seed(seed)
    return moved(new_encoder(TOWER | fields, tap=vv.Tap(-2, norm=False), mean=(0.4, 0.5, 0.6)))


def joined(layout: str) -> vv.VisionLanguageModel:
    encoder = tower(1)
    tokenizer = word_tokenizer([*TEXTS, *VLA_WORDS])
    llm = moved(new_language_model(LLAMA, tokenizer))
    return vv.VisionLanguageModel.attach(encoder, llm, tokenizer=tokenizer, layout=LAYOUTS[layout]).eval()


VLA_WORDS = ["what action should the robot take to push a red block ? " + " ".join("abcdefgh")]


def models(root: Path) -> None:
    """Everything that `save_pretrained` and `save_adapter` write."""
    two = tower(3, image_size=12, patch_size=3, embed_dim=12)
    one = tower(2, num_registers=1, layer_scale=0.5, mask_token=True, position_resize="bicubic_antialias")
    one.origin = type(one.origin)("dinov2_with_registers", "transformers")
    one.save_pretrained(root / "models/encoder_hf")
    two.save_pretrained(root / "models/encoder_timm", format="timm")
    vv.FusedEncoder([one, two]).save_pretrained(root / "models/encoder_fused")
    for layout in ("whole", "native"):
        joined(layout).save_pretrained(root / "models" / f"vlm_{layout}")
    for name, kind in AUTO.items():
        kind.register_for_auto_class(name)
    joined("anyres").save_pretrained(root / "models/vlm_anyres")
    for kind in AUTO.values():
        kind._auto_entry = {}
    base = vv.VisionLanguageModel.from_pretrained("models/vlm_whole")  # peft writes this name into the adapter
    torch.manual_seed(4)
    wrapped = set_trainable(base, vision="lora", projector="full", language="lora", lora_rank=2)
    save_adapter(moved(wrapped, 0.1), root / "models/adapter")
    drawn = np.random.default_rng(5).normal(size=(60, 4)) * [1, 2, 1, 3]
    statistics = {"mine": {"action": Statistics.of(drawn[:, :3]), "observation.state": Statistics.of(drawn[:, 3:])}}
    spec = PolicySpec(cameras=("top", "wrist"), action_dim=3, chunk=2, state_dim=1)
    for head, options in HEADS.items():
        torch.manual_seed(6)
        sight, kind = Sight(0.81), "min_max" if head == "tokens" else "mean_std"
        told: dict[str, Any] = dict(spec=spec, statistics=statistics, head_options=options, sight=sight, normalization=kind)
        policy = VisionLanguageActionModel.attach(joined("whole"), head, **told)
        moved(policy.hands, 0.2)
        policy.save_pretrained(root / "models" / f"policy_{head}")


def packed(folder: Path) -> None:
    """An archive in place of a folder."""
    with zipfile.ZipFile(folder.with_suffix(".zip"), "w") as archive:
        for file in sorted(file for file in folder.rglob("*") if file.is_file()):
            info = zipfile.ZipInfo(str(file.relative_to(folder)))
            archive.writestr(info, file.read_bytes(), zipfile.ZIP_DEFLATED, 9)
    shutil.rmtree(folder)


def stopped(recipe, arguments: list[str], at: int) -> None:
    """A run that is killed before step `at`."""
    taken = Step.__call__

    def until(self, index, micro_batches):
        if index == at:
            raise KeyboardInterrupt
        return taken(self, index, micro_batches)

    Step.__call__ = until
    try:
        recipe.main(recipe.parse(arguments))
    except KeyboardInterrupt:
        return
    finally:
        Step.__call__ = taken
    raise AssertionError("the run was not stopped")


def runs(root: Path) -> dict[str, list[float]]:
    """A stopped and a finished run of each recipe. Returns the losses of the finished ones."""
    losses = {}
    for name, told in RUNS.items():
        recipe = import_module(f"recipes.{name}")
        (root / "run.yaml").write_text(yaml.safe_dump(RUN | told))
        given = ["--config", "run.yaml", "--out"]
        losses[name] = recipe.main(recipe.parse([*given, f"recipe_runs/{name}/finished"]))["losses"]
        stopped(recipe, [*given, f"recipe_runs/{name}/stopped"], at=3)
        for path in ("finished/checkpoints", "finished/features", "stopped/features"):
            shutil.rmtree(root / "recipe_runs" / name / path, ignore_errors=True)
        (root / "recipe_runs" / name / "finished/metrics.json").unlink()
    return losses


CONFIGS = {
    "align": "align align_demo",
    "contrastive": "contrastive_emoji contrastive_smoke mini siglip_b16",
    "distill": "distill_dinov2_siglip distill_emoji distill_smoke",
    "mae": "mae_emoji mae_smoke mae_vit_l",
    "probe": "probe_emoji probe_smoke",
    "self_distill": "dinov2_vit_l dinov3_gram dinov3_high_res self_distill_emoji self_distill_smoke",
    "supervised": "deit_s supervised_emoji supervised_smoke",
    "vla": "vla_metaworld vla_metaworld_mt50 vla_oft vla_smoke",
    "vla_eval": "vla_eval_metaworld",
    "vqa": "demo real vqa_llava",
}


def configs(root: Path, source: Path) -> None:
    """The published YAML of each recipe without comments, and one with every key, as a run writes it."""
    for name, files in CONFIGS.items():
        folder = root / "configs" / name
        folder.mkdir(parents=True)
        for file in files.split():
            lines = [line.split("  #")[0].rstrip() for line in (source / f"{file}.yaml").read_text().splitlines()]
            kept = [line for line in lines if not line.startswith("#")]
            (folder / f"{file}.yaml").write_text("\n".join(kept) + "\n")
        if name in RUNS:
            shutil.copy(root / "recipe_runs" / name / "finished/config.yaml", folder / "every_key.yaml")
        else:
            recipe = import_module(f"recipes.{name}")
            smallest = {"probe": "probe_smoke", "vla_eval": "vla_eval_metaworld"}[name]
            config = recipe.parse(["--config", str(folder / f"{smallest}.yaml")])
            plain = json.loads(json.dumps(asdict(config)))
            (folder / "every_key.yaml").write_text(yaml.safe_dump(plain, sort_keys=False))


@torch.no_grad()
def expected(root: Path) -> dict[str, torch.Tensor]:
    """What each folder gives."""
    images = [str(root / "data" / name) for name in ("red-green.png", "blue-red.png", "green-blue.png")]
    found = {}
    for name in ("encoder_hf", "encoder_timm", "encoder_fused"):
        encoder = vv.load(root / "models" / name)
        if name != "encoder_fused":
            found[f"{name}.pixels"] = encoder.preprocess(images)
        found[f"{name}.patch_tokens"] = encoder(encoder.preprocess(images)).patch_tokens
    for layout in LAYOUTS:
        model = vv.VisionLanguageModel.from_pretrained(root / "models" / f"vlm_{layout}")
        batch = model.processor(text=TEXTS, images=images, return_tensors="pt")
        found[f"vlm_{layout}.input_ids"] = batch["input_ids"]
        found[f"vlm_{layout}.logits"] = model(**batch).logits[:, -4:]
    model = vv.VisionLanguageModel.from_pretrained(root / "models/vlm_whole")
    batch = model.processor(text=TEXTS, images=images, return_tensors="pt")
    wrapped = load_adapter(model, root / "models/adapter")
    found["adapter.logits"] = wrapped(**batch).logits[:, -4:]
    found["adapter.merged"] = merge(wrapped, batch)(**batch).logits[:, -4:]
    shown = {"top": images[0], "wrist": images[1]}
    observation = Observation(shown, "push a red block", np.array([0.7]))
    for head in HEADS:
        policy = load_policy(root / "models" / f"policy_{head}", statistics="mine")
        found[f"policy_{head}.actions"] = torch.from_numpy(policy.act([observation]).values)
    for name in ("supervised", "distill", "self_distill"):
        encoder = vv.load(root / "recipe_runs" / name / "finished/model")
        found[f"{name}.patch_tokens"] = encoder(encoder.preprocess(images)).patch_tokens
    encoder = vv.load(root / "recipe_runs/supervised/finished/model")
    found["supervised.logits"] = encoder(encoder.preprocess(images)).logits
    encoder = vv.load(root / "recipe_runs/supervised/finished/average")
    found["supervised.average"] = encoder(encoder.preprocess(images)).logits
    student = Agglomerate.load(root / "recipe_runs/distill/finished/model")
    found["distill.heads"] = torch.cat([value.flatten() for value in student.heads.state_dict().values()])
    pair = vv.load_pair(root / "recipe_runs/contrastive/finished/model")
    found["contrastive.similarity"] = pair.similarity(images, ["red left, green right", "blue left"])
    mae = load_mae(root / "recipe_runs/mae/finished/model")
    pixels = mae.encoder.preprocess(images)
    noise = torch.linspace(0, 1, 48).reshape(16, 3).T.contiguous()
    found["mae.predicted"], found["mae.mask"] = mae(pixels, noise)
    for name in ("align", "vqa"):
        model = vv.VisionLanguageModel.from_pretrained(root / "recipe_runs" / name / "finished/model")
        batch = model.processor(text=["<image> what color is left ?"], images=images[:1], return_tensors="pt")
        found[f"{name}.logits"] = model(**batch).logits[:, -4:]
    policy = load_policy(root / "recipe_runs/vla/finished/model")
    found["vla.actions"] = torch.from_numpy(
        policy.act([Observation({"top": images[0]}, "push a red block", np.array([0.7]))]).values
    )
    return {name: value.contiguous() for name, value in found.items()}


def main() -> None:
    root = Path(__file__).resolve().parent
    for name in ("data", "models", "recipe_runs", "configs"):
        shutil.rmtree(root / name, ignore_errors=True)
        (root / name).mkdir()
    os.chdir(root)  # runs name their data from here
    pictures(root)
    models(root)
    losses = runs(root)
    recipes = Path(sys.modules["recipes"].__path__[0])
    configs(root, recipes / "configs")
    save_file(expected(root), root / "expected.safetensors")
    (root / "losses.json").write_text(json.dumps(losses, indent=1) + "\n")
    (root / "run.yaml").unlink()
    for folder in (root / "data/robot", *(root / "recipe_runs" / name for name in RUNS)):
        packed(folder)


if __name__ == "__main__":
    main()
