"""Policies small enough to make in milliseconds, and observations for them."""

import numpy as np
import torch

import vlm_vision as vv
from vlm_vision.new_models import new_encoder, new_language_model, word_tokenizer
from vlm_vision.robot.observation import Observation, PolicySpec
from vlm_vision.robot.statistics import Statistics
from vlm_vision.vla import VisionLanguageActionModel

ENCODER = {"image_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2, "mlp_dim": 32}


LLAMA = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)


SPEC = PolicySpec(cameras=("top", "wrist"), action_dim=3, chunk=4, state_dim=2)


HEADS = {
    "tokens": {"bins": 8},
    "parallel": {"hidden_dim": 24},
    "flow": {"width": 16, "mlp_dim": 32, "steps": 4},
}


WORDS = ["what action should the robot take to push a red block open drawer " + " ".join("abcdefghijklmnop")]


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def made(head: str, *, encoder=None, language: dict | None = None, spec: PolicySpec = SPEC, seed: int = 0, **options):
    torch.manual_seed(seed)
    tokenizer = word_tokenizer(WORDS)
    llm = new_language_model(language or {"model_type": "llama", **LLAMA}, tokenizer)
    vlm = vv.VisionLanguageModel.attach(encoder or new_encoder(ENCODER), llm, tokenizer=tokenizer)
    drawn = rng().normal(size=(100, 5)) * [1, 2, 3, 1, 1]
    statistics = {"mine": {"action": Statistics.of(drawn[:, :3]), "observation.state": Statistics.of(drawn[:, 3:])}}
    options = {"head_options": HEADS[head]} | options
    return VisionLanguageActionModel.attach(vlm, head, spec=spec, statistics=statistics, **options)


def observation(seed: int, words: str = "push a red block") -> Observation:
    images = {name: rng(seed + i).integers(0, 256, (20, 24, 3), dtype=np.uint8) for i, name in enumerate(SPEC.cameras)}
    return Observation(images, words, rng(seed).normal(size=2))
