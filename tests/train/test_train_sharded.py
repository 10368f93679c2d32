"""Two processes equal one: copies of the model (DDP) and parts of it (FSDP2), with adapters and in full, stopped and not.

Run as a script under torch.distributed.run, this file does a list of runs one after another, so that all of them pay once
for starting Python: `test_train_sharded.py RUNS.json`, each {"recipe", "arguments", "dies"}; losses go to RUNS.out.json.
"""

import json
from pathlib import Path

import pytest
import torch
from support.models import make_image
from support.two_processes import launch, run

import vlm_vision as vv

TINY = """
data: {{train: {folder}/train.json, test: {folder}/test.json}}
encoder:
  new: {{image_size: 16, patch_size: 8, embed_dim: 16, depth: 2, num_heads: 2, mlp_dim: 32, class_token: false, pool: none}}
language:
  new: {{model_type: llama, hidden_size: 16, intermediate_size: 32, num_hidden_layers: 2, num_attention_heads: 2,
        num_key_value_heads: 2, tie_word_embeddings: true, initializer_range: 0.2}}
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
FULL = ["--train_vision", "full", "--train_language", "full"]
UNSEEN = ["--data.test", ""]
LORA = [*UNSEEN, "--train_vision", "lora", "--train_language", "lora", "--lora_rank", "2", "--lr_language", "0.01"]
ANYRES = ["--layout", '{"name": "anyres", "pinpoints": [[16, 32], [32, 16]]}']
SHARDED = ["--sharding", "fsdp2"]

RUNS = {
    "full": ("vqa", FULL),
    "adapters": ("vqa", [*LORA, "--gradient_checkpointing", "true"]),
    "adapters beside full": (
        "vqa",
        [*UNSEEN, "--train_vision", "lora", "--train_language", "full", "--lora_rank", "2"],
    ),
    "align": ("align", []),
    "tiles": ("align", ANYRES),
}
"""Each is done by one process, by two with copies and by two with parts."""
DROPOUT = [
    *LORA,
    *SHARDED,
    "--steps",
    "6",
    "--checkpoint_every",
    "2",
    "--lora_dropout",
    "0.5",
]  # so that random states matter


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Images, conversations of which every third has no image, and captions."""
    folder = tmp_path_factory.mktemp("sharded")
    records = []
    for i in range(9):
        make_image(i, 20, 16 + i).save(folder / f"{i}.png")
        for question, answer in (("what color ?", ["red", "blue"][i % 2]), ("is it red ?", ["yes", "no"][i % 2])):
            turns = [{"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": answer}]
            records.append({"image": f"{i}.png", "conversations": turns})
    (folder / "captions.json").write_text(json.dumps(records))
    (folder / "test.json").write_text(json.dumps(records[:7]))
    for i in range(0, len(records), 3):
        turns = [{"from": "human", "value": "what ?"}, {"from": "gpt", "value": "blue"}]
        records[i] = {"conversations": turns}
    (folder / "train.json").write_text(json.dumps(records))
    (folder / "tiny.yaml").write_text(TINY.format(folder=folder))
    return folder


def arguments(folder: Path, recipe: str, out: str, changes: list[str]) -> list[str]:
    given = ["--config", str(folder / "tiny.yaml"), "--out", str(folder / out), *changes]
    return given + (["--data.train", str(folder / "captions.json")] if recipe == "align" else ["--max_new_tokens", "2"])


@pytest.fixture(scope="module")
def together(folder) -> dict[str, dict]:
    """What two processes found in every run; first of all, one run is killed while it writes its second checkpoint."""
    dropout = {"recipe": "vqa", "arguments": arguments(folder, "vqa", "killed", DROPOUT)}
    killed = launch(folder, "first", [dropout | {"dies": 2}])
    assert killed.returncode != 0 and "SIGKILL" in killed.stderr, killed.stderr[-3000:]
    assert sorted(path.name for path in (folder / "killed/checkpoints").iterdir()) == ["step-00000002", "writing"]
    wanted = {"killed": dropout, "whole": {"recipe": "vqa", "arguments": arguments(folder, "vqa", "whole", DROPOUT)}}
    for name, (recipe, changes) in RUNS.items():
        for kind, how in (("copies", []), ("parts", SHARDED)):
            given = arguments(folder, recipe, f"{name} {kind}", [*changes, *how])
            wanted[f"{name} {kind}"] = {"recipe": recipe, "arguments": given}
    half = [*FULL, *SHARDED, "--mixed_precision", "bf16", "--pack_length", "64"]
    wanted["half parts"] = {"recipe": "vqa", "arguments": arguments(folder, "vqa", "half parts", half)}
    done = launch(folder, "second", list(wanted.values()))
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(zip(wanted, json.loads((folder / "second.out.json").read_text()), strict=True))


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_equal_one(folder, together, name):
    recipe, changes = RUNS[name]
    one = run(recipe, arguments(folder, recipe, f"{name} one", changes))
    model = vv.VisionLanguageModel.from_pretrained(folder / f"{name} one" / "model")
    for kind in ("copies", "parts"):
        two = together[f"{name} {kind}"]
        assert two["processes"] == 2 and len(two["losses"]) == 4
        torch.testing.assert_close(torch.tensor(two["losses"]), torch.tensor(one["losses"]), rtol=1e-4, atol=1e-5)
        saved = vv.VisionLanguageModel.from_pretrained(folder / f"{name} {kind}" / "model")
        for (at, a), (_, b) in zip(saved.named_parameters(), model.named_parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4, msg=lambda text, at=at: f"{at}: {text}")
        embeddings = saved.get_input_embeddings().weight
        assert embeddings is saved.get_output_embeddings().weight  # tied as they were
        if recipe == "align":
            found = {key: value for key, value in one.items() if key.startswith("eval_")}
            assert len(found) == 6 and {key: two[key] for key in found} == pytest.approx(found, rel=1e-4)


def test_each_process_holds_its_part_of_the_layers(together):
    assert together["full parts"]["sharded_modules"] == 1 + 2 + 2  # the model, two blocks, two layers
    assert together["align parts"]["sharded_modules"] == 1 + 2  # a frozen encoder stays whole
    assert together["full copies"]["sharded_modules"] == 0


def test_a_sharded_run_killed_while_it_writes_goes_on_as_if_it_had_not_been(folder, together):
    assert together["killed"]["first_step"] == 2
    assert together["killed"]["losses"] == together["whole"]["losses"][2:]
    first, second = (vv.VisionLanguageModel.from_pretrained(folder / name / "model") for name in ("whole", "killed"))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_half_precision_and_packing_follow_the_same_curve(together):
    half, whole = together["half parts"]["losses"], together["full parts"]["losses"]
    assert half != whole
    torch.testing.assert_close(torch.tensor(half), torch.tensor(whole), rtol=0.02, atol=0.02)


def test_fp16_cannot_be_sharded(folder):
    given = arguments(folder, "vqa", "fp16", [*SHARDED, "--mixed_precision", "fp16"])
    with pytest.raises(ValueError, match="sharding fsdp2 has no gradient scaler for fp16"):
        run("vqa", given)
