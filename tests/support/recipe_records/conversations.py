"""Stages one and two, recipes align and vqa, on nine images of noise with two questions about each."""

import json
from pathlib import Path

from torch import Tensor

import vlm_vision as vv
from support.models import make_image
from vlm_vision.new_models import new_encoder
from vlm_vision.tokens.extraction.extract import extract
from vlm_vision.tokens.sources.choose import open_sources

from .recipe import Laws, Recipe, Shared, Stopped

TINY = """
data: {train: FOLDER/TRAIN.json, test: FOLDER/test.json}
encoder:
  new: {image_size: 16, patch_size: 8, embed_dim: 16, depth: 2, num_heads: 2, mlp_dim: 32, class_token: false, pool: none}
language:
  new: {model_type: llama, hidden_size: 16, intermediate_size: 32, num_hidden_layers: 2, num_attention_heads: 2,
        num_key_value_heads: 2, tie_word_embeddings: true, initializer_range: 0.2}
steps: 4
batch_size: 4
micro_batch_size: 1
warmup_steps: 2
eval_every: 2
eval_batch_size: 3
max_grad_norm: 0.5
lr_projector: 0.01
feature_dtype: float32
tracker: none
"""


def write(folder: Path) -> None:
    """Captions; conversations of which every third has no image; and test questions."""
    records: list[dict] = []
    for i in range(9):
        make_image(i, 20, 16 + i).save(folder / f"{i}.png")
        for question, answer in (("what color ?", ["red", "blue"][i % 2]), ("is it red ?", ["yes", "no"][i % 2])):
            turns = [{"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": answer}]
            records.append({"image": f"{i}.png", "conversations": turns})
    (folder / "captions.json").write_text(json.dumps(records))
    (folder / "test.json").write_text(json.dumps(records[:7]))
    talk = {"conversations": [{"from": "human", "value": "what ?"}, {"from": "gpt", "value": "blue"}]}
    mixed = [talk if i % 3 == 0 else record for i, record in enumerate(records)]
    (folder / "train.json").write_text(json.dumps(mixed))
    (folder / "talk.json").write_text(json.dumps([talk] * 4))


def state(out: Path) -> dict[str, Tensor]:
    model = vv.VisionLanguageModel.from_pretrained(out / "model")
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight  # tied as they were
    return dict(model.named_parameters())


PARTS = ("--sharding", "fsdp2")
ANYRES = ("--layout", '{"name": "anyres", "pinpoints": [[16, 32], [32, 16]]}')
CLOSE = {"rtol": 1e-3, "atol": 1e-4}

ALIGN = Recipe("align", write, TINY.replace("TRAIN", "captions"))
ALIGN_LAWS = Laws(
    ALIGN,
    steps=4,
    state=state,
    state_tolerance=CLOSE,
    figures=("eval_",),
    figures_count=6,
    shared={
        "copies": Shared(sharded_modules=0),
        "parts": Shared((), PARTS, sharded_modules=1 + 2),  # the model and two layers: a frozen encoder stays whole
        "tiles, copies": Shared(ANYRES),
        "tiles, parts": Shared(ANYRES, (*PARTS, "--checkpoint_every", "3"), resumes=3),
    },
    cut={"whole": ((), (4, 2))},
    stopped={"whole": Stopped((), every=2, at=3)},
    wrong=[
        (["--data.train", "FOLDER/talk.json"], "record 0 has no image: expected one in every record"),
        (
            ["--encoder.new", "{}", "--language.new", "{}", "--start", "FOLDER"],
            "has no config.json: pass the folder that save_pretrained wrote",
        ),
    ],
)

FULL = ("--train_vision", "full", "--train_language", "full")
UNSEEN = ("--data.test", "")
RANK = ("--lora_rank", "2")
LORA = (*UNSEEN, "--train_vision", "lora", "--train_language", "lora", *RANK, "--lr_language", "0.01")
AGAIN = ("--gradient_checkpointing", "true")
MIXED = (*UNSEEN, "--train_vision", "lora", "--train_language", "full", *RANK)
DROPOUT = (*LORA, "--lora_dropout", "0.5")
"""Adapters with dropout, so that random states matter."""

STORED = (*UNSEEN, "--encoder.source", "FOLDER/tower", "--data.tokens", "FOLDER/tokens", *RANK)
"""Training on stored tokens, with adapters in the language model."""


def store_tokens(folder: Path) -> None:
    """Write a tower, and a store of its tokens for all images."""
    shape = dict(image_size=16, patch_size=8, embed_dim=16, depth=2, num_heads=2, mlp_dim=32, position_prefix=1)
    tower = new_encoder(shape).eval()
    tower.save_pretrained(folder / "tower")
    extract(open_sources([str(folder / "*.png")]), tower, folder / "tokens")


VQA = Recipe("vqa", write, TINY.replace("TRAIN", "train"), ("--max_new_tokens", "2"))
VQA_LAWS = Laws(
    VQA,
    steps=4,
    state=state,
    first=store_tokens,
    state_tolerance=CLOSE,
    shared={
        "full, copies": Shared(FULL, sharded_modules=0),
        "full, parts": Shared(FULL, PARTS, sharded_modules=1 + 2 + 2),  # the model, two blocks, two layers
        "adapters, copies": Shared((*LORA, *AGAIN)),
        "adapters, parts": Shared((*LORA, *AGAIN), PARTS),
        "adapters beside full, copies": Shared(MIXED),
        "adapters beside full, parts": Shared(MIXED, PARTS),
        "stored tokens, copies": Shared(STORED),
        "stored tokens, parts": Shared(STORED, (*PARTS, "--checkpoint_every", "3")),
    },
    half=(FULL, (*PARTS, "--mixed_precision", "bf16", "--pack_length", "64")),
    half_tolerance={"rel": 0.02, "abs": 0.02},
    cut={"full": (FULL, (4, 2))},
    stopped={"adapters with dropout": Stopped(DROPOUT, every=2, at=3)},
    wrong=[(["--mixed_precision", "fp16", *PARTS], "sharding fsdp2 has no gradient scaler for fp16")],
)
