"""Trainer, accelerate, peft and torch.compile take a `VisionLanguageModel` as they take any model of transformers."""

import json

import accelerate
import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from support.models import make_image
from support.tiny_vlm import GREEDY, LAYOUTS, inputs, join
from transformers import AutoProcessor, Trainer, TrainingArguments

import vlm_vision as vv
from vlm_vision.data.conversations.collate import Collator
from vlm_vision.data.conversations.records import Conversation


@pytest.fixture
def talk(tmp_path) -> list[Conversation]:
    """Eight images and a question about each; answers of unlike length."""
    paths = [str(tmp_path / f"{i}.png") for i in range(8)]
    for i, path in enumerate(paths):
        make_image(i, 40 + 7 * i, 36).save(path)
    answers = ["red", "blue cat", "a green dog", "no"]
    return [Conversation((path,), (("<image> what color is this ?", answers[i % 4]),)) for i, path in enumerate(paths)]


def trainer(vlm, folder, talk, **options) -> Trainer:
    parts = {name: options.pop(name) for name in ("eval_dataset", "compute_metrics") if name in options}
    defaults = dict(per_device_train_batch_size=2, num_train_epochs=2, learning_rate=3e-3, logging_steps=1)
    defaults |= dict(use_cpu=True, report_to=[], disable_tqdm=True, lr_scheduler_type="constant", save_strategy="no")
    arguments = TrainingArguments(str(folder), **(defaults | options))
    processor = unwrapped(vlm).processor
    collator = Collator(processor)
    return Trainer(vlm, arguments, train_dataset=talk, data_collator=collator, processing_class=processor, **parts)


def unwrapped(model) -> vv.VisionLanguageModel:
    return model if isinstance(model, vv.VisionLanguageModel) else model.get_base_model()


def losses(trained: Trainer) -> list[float]:
    return [entry["loss"] for entry in trained.state.log_history if "loss" in entry]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_trainer_trains_saves_and_resumes_exactly(layout, talk, tmp_path):
    saving = dict(save_strategy="steps", save_steps=4)
    whole = trainer(join(layout=layout), tmp_path / "out", talk, **saving)
    whole.train()
    found = losses(whole)
    assert len(found) == 8 and sum(found[-4:]) < 0.8 * sum(found[:4])
    resumed = trainer(join(layout=layout), tmp_path / "again", talk, **saving)
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-4"))
    assert losses(resumed) == found
    folder = tmp_path / "out" / "checkpoint-8"
    again, processor = vv.VisionLanguageModel.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    batch = inputs(whole.model.eval())
    assert torch.equal(again(**inputs(again)).logits, whole.model(**batch).logits)
    assert processor.image_processor.to_dict() == again.processor.image_processor.to_dict()


def test_accumulated_micro_batches_are_one_batch_weighted_by_token(talk, tmp_path):
    runs = []
    for size, steps in (8, 1), (2, 4), (1, 8):
        vlm = join()
        options = dict(num_train_epochs=1, max_grad_norm=0.0, optim="sgd", learning_rate=0.1)
        one = trainer(
            vlm, tmp_path, talk, per_device_train_batch_size=size, gradient_accumulation_steps=steps, **options
        )
        assert one.model_accepts_loss_kwargs
        one.train()
        runs.append((losses(one), dict(vlm.named_parameters())))
    for found, weights in runs[1:]:
        assert found == pytest.approx(runs[0][0], rel=1e-4)
        for name, weight in weights.items():
            torch.testing.assert_close(weight, runs[0][1][name], rtol=1e-4, atol=1e-6)


def test_evaluation_and_prediction_give_logits_and_labels(talk, tmp_path):
    def right(seen) -> dict[str, float]:
        answers = seen.label_ids[:, 1:] != -100
        return {"right": float((seen.predictions.argmax(-1)[:, :-1] == seen.label_ids[:, 1:])[answers].mean())}

    vlm = join()
    one = trainer(vlm, tmp_path, talk, eval_dataset=talk[:5], compute_metrics=right, per_device_eval_batch_size=2)
    measured, seen = one.evaluate(), one.predict(talk[:5])
    batches = [Collator(vlm.processor)([conversation]) for conversation in talk[:5]]
    with torch.no_grad():
        outs = [vlm(**batch) for batch in batches]
    assert np.isfinite(measured["eval_loss"]) and seen.predictions.shape[0] == 5
    hits = [
        (out.logits.argmax(-1)[:, :-1] == batch["labels"][:, 1:])[batch["labels"][:, 1:] != -100]
        for out, batch in zip(outs, batches, strict=True)
    ]
    assert measured["eval_right"] == seen.metrics["test_right"] == pytest.approx(torch.cat(hits).float().mean().item())


def test_the_trainer_takes_adapters_and_checkpointing(talk, tmp_path):
    runs = []
    for checkpointing in (False, True):
        vlm = get_peft_model(join(), LoraConfig(r=2, target_modules="all-linear"))
        options = dict(gradient_checkpointing=True, gradient_checkpointing_kwargs={"use_reentrant": False})
        one = trainer(vlm, tmp_path / str(checkpointing), talk, **(options if checkpointing else {}))
        one.train()
        runs.append(losses(one))
    assert runs[0] == pytest.approx(runs[1], rel=1e-4) and runs[0][-1] < runs[0][0]


def test_a_step_prepared_by_accelerate_is_a_plain_step(talk):
    runs = []
    for prepared in (False, True):
        vlm = join().train()
        model, optimizer, batch = vlm, torch.optim.AdamW(vlm.parameters(), 1e-3), Collator(vlm.processor)(talk[:4])
        if prepared:
            accelerator = accelerate.Accelerator(cpu=True)
            model, optimizer = accelerator.prepare(model, optimizer)
            accelerator.backward(model(**batch).loss)
        else:
            model(**batch).loss.backward()
        optimizer.step()
        runs.append(vlm.state_dict())
    assert all(torch.equal(weight, runs[1][name]) for name, weight in runs[0].items())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_beside_adapters_changes_no_gradient(layout, reentrant):
    runs = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        lora = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
        model = get_peft_model(join(layout=layout), lora).train()
        vlm = unwrapped(model)
        calls = []
        vlm.language_model.model.layers[0].mlp.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        if checkpointing:
            model.enable_input_require_grads()
            vlm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
        batch = inputs(vlm)
        model(**batch, labels=batch["input_ids"], use_cache=False).loss.backward()
        assert len(calls) == 1 + checkpointing  # once more in the backward
        runs.append({name: weight.grad for name, weight in model.named_parameters() if weight.requires_grad})
        vlm.gradient_checkpointing_disable()
        assert not vlm.encoder.model.gradient_checkpointing
    for name, gradient in runs[0].items():
        torch.testing.assert_close(runs[1][name], gradient, msg=name)


@torch.no_grad()
def test_a_compiled_model_computes_the_same():
    """Counting image tokens breaks the graph twice: before and after it, three graphs in all."""
    vlm = join()
    batch = inputs(vlm)
    try:
        graphs = []
        compiled = torch.compile(vlm, backend=lambda graph, _: graphs.append(graph) or graph.forward)
        torch.testing.assert_close(compiled(**batch).logits, vlm(**batch).logits)
        assert 1 <= len(graphs) <= 3
    finally:
        torch._dynamo.reset()


# ---- where the weights are


@pytest.mark.parametrize("where", ["cpu", {"": "cpu"}, "auto"], ids=str)
def test_a_device_map_of_one_device_is_no_device_map(where, tmp_path):
    vlm = join()
    vlm.save_pretrained(tmp_path)
    again = vv.VisionLanguageModel.from_pretrained(tmp_path, device_map=where, dtype=torch.float32)
    assert torch.equal(again(**inputs(again)).logits, vlm(**inputs(vlm)).logits)


@pytest.mark.filterwarnings("ignore:Attempting to save a model with offloaded modules")
@pytest.mark.parametrize("off", ["language_model", "encoder", "projector"])
@pytest.mark.parametrize("layout", ["whole", "anyres"])
@torch.no_grad()
def test_parts_may_stay_on_disk(layout, off, tmp_path):
    vlm = join(layout=layout)
    vlm.save_pretrained(tmp_path / "model")
    parts = {name: "cpu" for name, _ in vlm.named_children()} | {off: "disk"}
    again = vv.VisionLanguageModel.from_pretrained(
        tmp_path / "model", device_map=parts, offload_folder=str(tmp_path / "offload")
    )
    assert any(weight.is_meta for weight in again.get_submodule(off).parameters())
    assert torch.equal(again(**inputs(again)).logits, vlm(**inputs(vlm)).logits)
    assert torch.equal(again.generate(**inputs(again), **GREEDY), vlm.generate(**inputs(vlm), **GREEDY))
    again.save_pretrained(tmp_path / "saved")
    saved = vv.VisionLanguageModel.from_pretrained(tmp_path / "saved")
    assert torch.equal(saved(**inputs(saved)).logits, vlm(**inputs(vlm)).logits)


@pytest.mark.parametrize("layout", ["whole", "native", "anyres"])
@torch.no_grad()
def test_blocks_are_not_split_between_devices(layout, tmp_path):
    vlm = join(layout=layout)
    batch, length = inputs(vlm), sum(weight.nbytes for weight in vlm.parameters())
    expected = vlm(**batch).logits
    places = accelerate.infer_auto_device_map(
        vlm, max_memory={"cpu": int(0.8 * length), "disk": 2 * length}, no_split_module_classes=vlm._no_split_modules
    )
    assert set(places.values()) == {"cpu", "disk"}
    blocks = (f"{part}.{i}." for part in ("encoder.model.blocks", "language_model.model.layers") for i in range(3))
    assert not any(place.startswith(block) for block in blocks for place in places)
    placed = accelerate.dispatch_model(vlm, places, main_device="cpu", offload_dir=str(tmp_path), force_hooks=True)
    assert any(weight.is_meta for weight in placed.parameters()) and torch.equal(placed(**batch).logits, expected)


@torch.no_grad()
def test_an_empty_model_is_filled_by_accelerate(tmp_path):
    vlm = join()
    vlm.save_pretrained(tmp_path, max_shard_size="50KB")
    assert len(json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]) > 10
    with accelerate.init_empty_weights():
        shell = vv.VisionLanguageModel(vlm.config)
    shell = accelerate.load_checkpoint_and_dispatch(shell, str(tmp_path), device_map={"": "cpu"}).eval()
    assert torch.equal(shell(**inputs(vlm)).logits, vlm(**inputs(vlm)).logits)
