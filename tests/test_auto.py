"""The Auto classes of transformers know our models, whatever was imported first."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.tiny_vlm import join

CODE = '''
"""Each order in a child of this process, which has imported torch and nothing that knows an Auto class."""
import json, os, sys
import torch, numpy, PIL.Image, safetensors.torch, tokenizers, huggingface_hub, jinja2

folder, orders = sys.argv[1], json.loads(sys.argv[2])
for order in orders:
    sys.stdout.flush()
    if child := os.fork():
        if os.waitpid(child, 0)[1]:
            print("failed:", *order)
        continue
    assert not {"transformers", "vlm_vision"} & set(sys.modules)
    for name in order:
        if name == "vlm_vision":
            import vlm_vision
        else:
            exec(f"from transformers import {name}")
    import transformers
    for name in ("AutoConfig", "AutoProcessor", "AutoImageProcessor", "AutoModelForImageTextToText"):
        made = getattr(transformers, name).from_pretrained(folder)
        assert type(made).__module__.startswith("vlm_vision.vlm."), (name, type(made))
    os._exit(0)
'''
NAMES = ["AutoConfig", "AutoTokenizer", "AutoImageProcessor", "AutoProcessor", "AutoModelForImageTextToText"]
OTHERS = [
    "AutoModel",
    "AutoModelForCausalLM",
    "AutoFeatureExtractor",
    "AutoVideoProcessor",
    "LlavaForConditionalGeneration",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("model")
    join().save_pretrained(path)
    return path


def failures(folder: Path, orders: list[list[str]]) -> str:
    command = [sys.executable, "-c", CODE, str(folder), json.dumps(orders)]
    offline = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=offline)
    assert done.returncode == 0, done.stderr
    return done.stdout and done.stdout + done.stderr


def test_the_tokenizer_may_come_first_and_so_may_the_model(folder):
    tokenizer, model = "AutoTokenizer", "AutoModelForImageTextToText"
    assert not failures(folder, [["vlm_vision", tokenizer, model], [model, "AutoProcessor", "vlm_vision"]])


@pytest.mark.slow
def test_every_order(folder):
    orders = [["vlm_vision", *order] for order in itertools.permutations(NAMES)]
    orders += [[*order, "vlm_vision"] for order in itertools.permutations(NAMES, 2)]
    orders += [[order[0], "vlm_vision", *order[1:]] for order in itertools.permutations(NAMES, 3)]
    orders += [["vlm_vision", other] for other in OTHERS] + [[other, "vlm_vision"] for other in OTHERS]
    assert not failures(folder, orders)
