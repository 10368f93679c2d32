"""Stage one: the projector alone learns, from images and captions, and stage two begins where it ended."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from support.models import tiny_llm, tiny_tokenizer

import vlm_vision as vv
from recipes import align, vqa
from vlm_vision.data.conversations.collate import Collator
from vlm_vision.data.conversations.read import read_conversations
from vlm_vision.data.conversations.records import Conversation
from vlm_vision.measure.answers import teacher_forced
from vlm_vision.train.conversations import build_model
from vlm_vision.train.start import set_seed

TINY = """
data: {{train: {folder}/train.json, test: {folder}/test.json}}
encoder:
  new: {{image_size: 16, patch_size: 8, embed_dim: 16, depth: 2, num_heads: 2, mlp_dim: 32, class_token: false, pool: none}}
language:
  new: {{model_type: llama, hidden_size: 16, intermediate_size: 32, num_hidden_layers: 1, num_attention_heads: 2,
        num_key_value_heads: 2, tie_word_embeddings: true, initializer_range: 0.3}}
steps: 30
batch_size: 4
micro_batch_size: 2
warmup_steps: 2
checkpoint_every: 20
lr_projector: 0.03
tracker: none
"""
COLORS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Nine plain images and their colors, as LLaVA's stage one writes them."""
    tmp_path = tmp_path_factory.mktemp("align")
    records = []
    for i in range(9):
        name = list(COLORS)[i % 3]
        Image.new("RGB", (20 + i, 16), COLORS[name]).save(tmp_path / f"{i}.png")
        turns = [{"from": "human", "value": "Describe the picture.\n<image>"}, {"from": "gpt", "value": f"all {name}"}]
        records.append({"image": f"{i}.png", "conversations": turns})
    (tmp_path / "train.json").write_text(json.dumps(records))
    (tmp_path / "test.json").write_text(json.dumps(records[:6]))
    (tmp_path / "tiny.yaml").write_text(TINY.format(folder=tmp_path))
    return tmp_path


def settings(folder: Path, out: Path, *changes: str) -> list[str]:
    return ["--config", str(folder / "tiny.yaml"), "--out", str(out), *changes]


@pytest.fixture(scope="module")
def finished(folder) -> tuple[dict, Path]:
    """Metrics and folder of a run."""
    return run(settings(folder, folder / "run")), folder / "run"


def run(arguments: list[str]) -> dict:
    return align.main(align.parse(arguments))


def begun(arguments: list[str]) -> vv.VisionLanguageModel:
    """The model as the run finds it."""
    config = align.parse(arguments)
    set_seed(config.seed)
    return build_model(config, read_conversations(config.data.train))


@pytest.mark.parametrize("layout", ["whole", "anyres"])
def test_the_projector_alone_learns_and_images_help(folder, finished, tmp_path, layout):
    tiles = ["--layout", '{"name": "anyres", "pinpoints": [[16, 32], [32, 16]]}'] * (layout == "anyres")
    arguments = settings(folder, tmp_path, *tiles)
    metrics, out = (run(arguments), tmp_path) if tiles else finished
    before, after = begun(arguments), vv.VisionLanguageModel.from_pretrained(out / "model")
    changed = {
        name.split(".")[0]
        for (name, a), b in zip(before.named_parameters(), after.parameters(), strict=True)
        if not torch.equal(a, b)
    }
    assert "projector" in changed and not changed & {"encoder", "language_model"}
    assert len(changed) == (2 if layout == "anyres" else 1)  # the newline token too
    assert after.processor.chat_template == before.processor.chat_template
    assert metrics["losses"][-1] < 0.8 * metrics["losses"][0]
    kept = json.loads((out / "metrics.json").read_text())
    assert kept["eval_loss/right"] < 0.9 * kept["eval_loss/shuffled"]
    assert kept["eval_loss/right"] < 0.9 * kept["eval_loss/blank"] and kept["final_loss"] == metrics["losses"][-1]


def test_the_figures_are_those_of_the_saved_model(folder, tmp_path):
    metrics = run(settings(folder, tmp_path, "--cache_features", "false"))
    model = vv.VisionLanguageModel.from_pretrained(tmp_path / "model")
    config = align.parse(settings(folder, tmp_path))
    shown = list(align.captions(read_conversations(config.data.test)))
    found = teacher_forced(model, Collator(align.caption_processor(model))(shown))
    assert metrics["eval_loss/right"] == pytest.approx(found.loss_per_token, rel=1e-4)
    assert metrics["eval_accuracy/right"] == pytest.approx(found.accuracy)


def test_a_caption_is_learned_after_its_image_and_nothing_else(encoder):
    model = vv.VisionLanguageModel.attach(encoder, tiny_llm("llama"), tokenizer=tiny_tokenizer())
    asked = [Conversation(("a.png",), (("what is this ?\n<image>", "a red dog"), ("is it ?", "yes")))]
    (one,) = align.captions(asked)
    assert one == Conversation(("a.png",), (("<image>", "a red dog"),))
    example = Collator(align.caption_processor(model)).chat(one, [16])
    tokenizer = model.processor.tokenizer
    wanted = [tokenizer.bos_token_id, *[model.config.image_token_id] * 16]
    answer = tokenizer.convert_tokens_to_ids(["a", "red", "dog", "</s>"])
    assert example.input_ids == wanted + answer and example.labels == [-100] * 17 + answer


def test_a_checkpoint_keeps_nothing_of_the_frozen_parts(finished):
    files = list((finished[1] / "checkpoints/step-00000020").iterdir())
    assert files and sum(file.stat().st_size for file in files) < 100_000


def test_a_finished_run_resumes_at_its_last_checkpoint(folder, finished, tmp_path):
    shutil.copytree(finished[1], tmp_path / "run")
    assert run(settings(folder, tmp_path / "run"))["losses"] == finished[0]["losses"][20:]


def test_stage_two_begins_where_stage_one_ended(folder, finished, tmp_path):
    first = finished[1] / "model"
    given = ["--out", str(tmp_path / "second"), "--start", str(first), "--tracker", "none"]
    given += ["--data.train", str(folder / "train.json"), "--data.test", str(folder / "test.json")]
    given += ["--steps", "2", "--batch_size", "4", "--micro_batch_size", "4", "--lora_rank", "2"]
    config = vqa.parse(given)
    aligned = vv.VisionLanguageModel.from_pretrained(first)
    start = vqa.trainable(config, []).get_base_model()
    assert torch.equal(start.projector.fc1.modules_to_save["default"].weight, aligned.projector.fc1.weight)
    assert len(vqa.main(config)["losses"]) == 2


def test_no_test_data_means_no_measurement(folder, tmp_path):
    metrics = run(settings(folder, tmp_path, "--data.test", "", "--steps", "2", "--eval_every", "1"))
    assert not any(name.startswith("eval") for name in metrics) and (tmp_path / "model").is_dir()
