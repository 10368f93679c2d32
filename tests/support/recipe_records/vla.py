"""Learning to act on small recordings: a bright square on one side of the image says where, the instruction how fast."""

from pathlib import Path

import numpy as np
import torch

from vlm_vision.data.lerobot import read_dataset, write_dataset
from vlm_vision.robot.episode import Episode
from vlm_vision.vla import load_policy

from .recipe import Laws, Recipe, Shared, Stopped

TINY = """
encoder:
  new: {image_size: 16, patch_size: 8, embed_dim: 16, depth: 1, num_heads: 2, mlp_dim: 32, class_token: false, pool: none}
language:
  new: {model_type: llama, hidden_size: 32, intermediate_size: 48, num_hidden_layers: 2, num_attention_heads: 4,
        num_key_value_heads: 2, tie_word_embeddings: true}
head_options: {hidden_dim: 24}
chunk: 3
area: 0.81
train_language: full
lr_vision: 2.0e-3
lr_projector: 2.0e-3
lr_language: 2.0e-3
lr_action: 2.0e-3
steps: 8
batch_size: 8
micro_batch_size: 8
warmup_steps: 2
tracker: none
"""
WAYS = {"left": -1.0, "right": 1.0}


def episode(number: int) -> Episode:
    rng = np.random.default_rng(number)
    side, fast = list(WAYS)[rng.integers(2)], bool(rng.integers(2))
    length = 5 + number % 3
    images = rng.integers(0, 40, (length, 16, 16, 3), dtype=np.uint8)
    images[:, 4:12, slice(1, 7) if side == "left" else slice(9, 15)] = 230
    states = rng.normal(size=(length, 1)).astype(np.float32)
    actions = np.column_stack([np.full(length, WAYS[side]), rng.uniform(0.5, 1, length) if fast else np.zeros(length)])
    return Episode("go fast" if fast else "go slow", {"top": images}, actions.astype(np.float32), states)


def write(folder: Path) -> None:
    write_dataset(folder / "data", (episode(number) for number in range(24)), fps=10, video=False)


RECIPE = Recipe("vla", write, TINY, ("--data.test_episodes", "6", "--data.train", '{"mine": "FOLDER/data"}'))
HEADS = {
    "parallel": (),
    "tokens": ("--head", "tokens", "--head_options", '{"bins": 8}'),
    "flow": ("--head", "flow", "--head_options", '{"width": 16, "mlp_dim": 32, "steps": 3}'),
}


def actions(out: Path, folder: Path | None = None) -> torch.Tensor:
    """Actions of a run's policy at three moments of the data, which lies beside the run or in `folder`."""
    policy, data = load_policy(out / "model"), read_dataset((folder or out.parent) / "data")
    return torch.from_numpy(policy.act([data.frame(i).observation for i in (0, 20, 40)]).values)


TWO = ("--micro_batch_size", "2")
ADAPTERS = ("--train_language", "lora", "--lora_rank", "2", "--train_vision", "lora")
LAWS = Laws(
    RECIPE,
    steps=8,
    state=lambda out: {"actions": actions(out)},
    figures=("action_error/",),
    figures_count=3,
    figures_tolerance={"rel": 1e-3},
    state_tolerance={"rtol": 1e-2, "atol": 5e-3},
    shared={
        "parallel": Shared(HEADS["parallel"], TWO),
        # The expert attends to layers of the language model.
        "flow in parts": Shared(HEADS["flow"], ("--micro_batch_size", "4", "--sharding", "fsdp2", "--eval_every", "4")),
    },
    cut={head: (changes, (2,)) for head, changes in HEADS.items()},
    stopped={
        "full": Stopped(("--lora_rank", "2", "--train_vision", "full"), every=3, at=5),
        "adapters": Stopped(ADAPTERS, every=3, at=5),
    },
    wrong=[
        (["--data.test_episodes", "24"], "leave some for training"),
        (["--data.cameras", '{"wrist": "wrist"}'], "has no camera 'wrist': it has 'top'"),
        (["--data.raw_actions", "[7]"], "raw_actions names [7]"),
        (["--film", "true", "--train_vision", "frozen"], "choose train_vision lora"),
        (["--head_options", '{"colour": 1}'], "action head 'parallel' has no 'colour'"),
        (["--data.train", '{"mine": "nowhere"}'], "there is no folder nowhere"),
        (["--data.train", "{}"], "data.train is empty"),
        (["--data.memory", "-1"], "memory is -1"),
        (
            ["--encoder.source", "mini", "--encoder.std", "[0.1, 0.1, 0.1]"],
            "remove encoder.mean and encoder.std",
        ),
        ([*HEADS["flow"], "--gradient_checkpointing", "true"], "turn gradient checkpointing off"),
    ],
)
