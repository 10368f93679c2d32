"""Adapters: what trains, what is saved, what is refused, and that merging changes nothing."""

import itertools
import json
import logging

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from support.models import make_image, tiny_llm, tiny_tokenizer

import vlm_vision as vv
from vlm_vision.fused import add_film
from vlm_vision.new_models import new_encoder
from vlm_vision.train.adapters import load_adapter, merge, save_adapter
from vlm_vision.train.optim.groups import parameter_groups
from vlm_vision.train.trainable import group_modules, set_trainable, trainable_table, unwrapped
from vlm_vision.vlm.layout import AnyRes

TOWER = dict(image_size=32, patch_size=8, embed_dim=32, depth=3, num_heads=4, mlp_dim=64, position_prefix=1)
HOWS = ("frozen", "lora", "full")
ADAPTED = [
    (v, p, lang) for v, p, lang in itertools.product(HOWS, ("frozen", "full"), HOWS) if "lora" in (v, lang)
]  # fmt: skip


def fresh(llm: str = "llama", *, dtype=torch.float32, tap=None, **options) -> vv.VisionLanguageModel:
    """The same base every time."""
    torch.manual_seed(0)
    encoder = new_encoder(TOWER, tap=tap or vv.Tap()).eval()
    model = tiny_llm(llm)
    for weight in model.parameters():
        weight.data = weight.data.to(dtype)
    return vv.VisionLanguageModel.attach(encoder, model, tokenizer=tiny_tokenizer(), **options)


def inputs(vlm: vv.VisionLanguageModel) -> dict:
    texts = ["<image> what color is this ?", "is this a cat ?", "<image> <image> the"]
    return vlm.processor(text=texts, images=[make_image(i) for i in range(3)], return_tensors="pt")


def trained(model: vv.VisionLanguageModel, vision="lora", projector="full", language="lora", by: float = 0.1):
    """Wrapped, and everything that trains moved at random."""
    wrapped = set_trainable(model, vision=vision, projector=projector, language=language, lora_rank=2).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in wrapped.parameters():
            if weight.requires_grad:
                weight.add_(by * torch.randn_like(weight))
    return wrapped


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """Relative, in the root mean square."""
    return ((a - b).norm() / b.norm()).item()


@torch.no_grad()
@pytest.mark.parametrize(("vision", "projector", "language"), ADAPTED)
def test_saved_loaded_and_merged_adapters_are_the_same_model(vision, projector, language, tmp_path):
    base = fresh()
    batch, plain = inputs(base), base(**inputs(base)).logits
    wrapped = trained(base, vision, projector, language)
    expected = wrapped(**batch).logits
    assert not torch.allclose(expected, plain, atol=1e-2)
    save_adapter(wrapped, tmp_path / "ours")
    assert sorted(path.name for path in (tmp_path / "ours").iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "vlm_vision_adapter.json",
        "vlm_vision_manifest.json",
    ]
    about = json.loads((tmp_path / "ours" / "vlm_vision_adapter.json").read_text())
    asked = {"vision": vision, "projector": projector, "language": language}
    assert {how: about[how] for how in ("lora", "full")} == {
        how: sorted(name for name, wanted in asked.items() if wanted == how) for how in ("lora", "full")
    }
    assert torch.equal(load_adapter(fresh(), tmp_path / "ours")(**batch).logits, expected)
    wrapped.save_pretrained(tmp_path / "peft")  # without a word about the projector
    assert torch.equal(PeftModel.from_pretrained(fresh(), tmp_path / "peft").eval()(**batch).logits, expected)
    merged = merge(wrapped, batch)
    assert type(merged) is vv.VisionLanguageModel and not any("lora" in name for name, _ in merged.named_modules())
    assert distance(merged(**batch).logits, expected) <= 1e-5
    assert torch.equal(wrapped(**batch).logits, expected)  # left as it was
    merged.save_pretrained(tmp_path / "merged")
    again = vv.VisionLanguageModel.from_pretrained(tmp_path / "merged")
    assert torch.equal(again(**inputs(again)).logits, merged(**batch).logits)


@torch.no_grad()
@pytest.mark.parametrize("llm", ["gpt2", "llama_tied", "gemma"])
@pytest.mark.parametrize("language", ["lora", "full"])
def test_tied_and_transposed_weights_are_saved_and_merged_too(llm, language, tmp_path):
    wrapped = trained(fresh(llm), language=language, by=0.03)
    batch = inputs(unwrapped(wrapped))
    expected = wrapped(**batch).logits
    save_adapter(wrapped, tmp_path)
    assert torch.equal(load_adapter(fresh(llm), tmp_path)(**batch).logits, expected)
    merged = merge(wrapped, batch)
    assert distance(merged(**batch).logits, expected) <= 1e-5
    embeddings, head = merged.get_input_embeddings().weight, merged.get_output_embeddings().weight
    assert embeddings is head


@torch.no_grad()
@pytest.mark.parametrize(
    ("options", "weight"),
    [(dict(projector="perceiver"), "projector.latents"), (dict(layout=AnyRes(((32, 64), (64, 32)))), "newline.weight")],
    ids=["perceiver", "newline"],
)
def test_weights_beside_the_layers_travel_with_the_adapter(options, weight, tmp_path):
    wrapped = trained(fresh(**options))
    model = unwrapped(wrapped)
    batch = inputs(model)
    expected = wrapped(**batch).logits
    save_adapter(wrapped, tmp_path)
    saved = load_file(tmp_path / "adapter_model.safetensors")[f"base_model.model.{weight}"]
    assert not torch.equal(saved, fresh(**options).state_dict()[weight])
    assert torch.equal(load_adapter(fresh(**options), tmp_path)(**batch).logits, expected)
    merged = merge(wrapped, batch)
    assert distance(merged(**batch).logits, expected) <= 1e-5 and torch.equal(merged.state_dict()[weight], saved)
    ours = {id(one) for one in group_modules(wrapped)["projector"].parameters() if one.requires_grad}
    assert (
        id(model.get_submodule(weight.split(".")[0]).get_parameter(f"modules_to_save.default.{weight.split('.')[1]}"))
        in ours
    )


def test_gradients_and_the_optimizer_reach_the_copy_that_trains(tmp_path):
    wrapped = set_trainable(fresh(), vision="full", projector="full", language="lora", lora_rank=2)
    before = {name: weight.clone() for name, weight in wrapped.named_parameters()}
    parts = group_modules(wrapped)
    optimized = parameter_groups([(parts["vision"], 1e-2), (parts["projector"], 1e-2)], weight_decay=0.0)
    optimizer = torch.optim.AdamW(optimized)
    batch = inputs(unwrapped(wrapped))
    wrapped(**batch, labels=batch["input_ids"]).loss.backward()
    optimizer.step()
    changed = {name for name, weight in wrapped.named_parameters() if not torch.equal(weight, before[name])}
    assert any(".projector.fc1.modules_to_save." in name for name in changed)
    assert any(".encoder.model.modules_to_save." in name for name in changed)
    assert not any("original_module" in name or "lora_" in name or ".pool" in name for name in changed)


def test_film_trains_in_full_beside_adapters_and_travels_with_them(tmp_path):
    def steered() -> vv.VisionLanguageModel:
        model = fresh(tap=vv.Tap(-2))
        add_film(model.encoder, 6)
        return model

    batch = inputs(steered()) | {"condition": torch.randn(3, 6)}
    wrapped = set_trainable(steered(), vision="lora", projector="full", language="lora", lora_rank=2)
    before = {name: weight.clone() for name, weight in wrapped.named_parameters()}
    wrapped(**batch, labels=batch["input_ids"]).loss.backward()
    torch.optim.SGD([one for one in wrapped.parameters() if one.requires_grad], lr=1.0).step()
    films = {name: weight for name, weight in wrapped.named_parameters() if ".film." in name}
    assert not any("lora_" in name for name in films)
    moved = {name for name in films if not torch.equal(films[name], before[name])}
    assert moved == {name for name in films if ".modules_to_save." in name} and len(moved) == 2 * 4  # not past the tap
    with torch.no_grad():
        expected = wrapped.eval()(**batch).logits
        save_adapter(wrapped, tmp_path / "adapter")
        assert torch.equal(load_adapter(steered(), tmp_path / "adapter")(**batch).logits, expected)
        merged = merge(wrapped, batch)
        assert distance(merged(**batch).logits, expected) <= 1e-5
        still = merged(**batch | {"condition": torch.zeros(3, 6)}).logits
        assert distance(still, expected) > 1e-4


def test_what_the_tap_does_not_reach_stays_frozen():
    model = fresh(tap=vv.Tap(0, norm=False))
    set_trainable(model, vision="full", projector="full", language="lora", lora_rank=2)
    trains = {name for name, weight in model.encoder.named_parameters() if weight.requires_grad}
    assert trains and not any(".blocks.1." in name or ".blocks.2." in name or ".norm." in name for name in trains)


def test_the_table_says_how_each_group_trains():
    model = fresh()
    sizes = {name: sum(w.numel() for w in group.parameters()) for name, group in group_modules(model).items()}
    assert trainable_table(model).count("full") == 3
    wrapped = set_trainable(model, vision="frozen", projector="full", language="lora", lora_rank=2)
    rows = {line.split()[0]: line.split() for line in trainable_table(wrapped).splitlines()[1:]}
    adapters = sum(w.numel() for name, w in wrapped.named_parameters() if ".lora_" in name)
    assert rows["vision"] == ["vision", "frozen", "0", f"{sizes['vision']:,}", "0.0"]
    assert rows["projector"][1:4] == ["full", f"{sizes['projector']:,}", f"{sizes['projector']:,}"]
    assert rows["language"][1:6] == ["LoRA", "rank", "2", f"{adapters:,}", f"{sizes['language']:,}"]
    with pytest.raises(ValueError, match="has adapters already"):
        set_trainable(model, vision="lora", projector="full", language="lora")


@pytest.mark.parametrize("options", [dict(use_dora=True), dict(use_rslora=True)], ids=["dora", "rslora"])
@torch.no_grad()
def test_other_kinds_of_lora_merge_as_well(options, tmp_path):
    config = LoraConfig(r=2, target_modules=["q_proj", "attn.qkv"], modules_to_save=["projector"], **options)
    wrapped = get_peft_model(fresh(), config).eval()
    for name, weight in wrapped.named_parameters():
        if "lora_B" in name:
            weight.normal_(std=0.1)
    batch = inputs(fresh())
    expected = wrapped(**batch).logits
    assert distance(merge(wrapped, batch)(**batch).logits, expected) <= 1e-5
    save_adapter(wrapped, tmp_path)
    assert torch.equal(load_adapter(fresh(), tmp_path)(**batch).logits, expected)


@torch.no_grad()
def test_a_half_precision_base_is_merged_with_one_rounding_and_its_figures_are_told(caplog):
    wrapped = trained(fresh(dtype=torch.bfloat16), "frozen", "frozen")
    base = dict(fresh(dtype=torch.bfloat16).named_parameters())
    layers = {name: m for name, m in unwrapped(wrapped).named_modules() if hasattr(m, "lora_A")}
    with caplog.at_level(logging.INFO):
        merged = merge(wrapped, inputs(fresh()))
    assert "merging changes the logits by" in caplog.text
    assert merged.encoder.dtype == torch.float32 and merged.language_model.dtype == torch.bfloat16
    assert merged.language_model.model.rotary_emb.inv_freq.dtype == torch.float32
    for name, layer in layers.items():
        delta = layer.lora_B["default"].weight @ layer.lora_A["default"].weight * layer.scaling["default"]
        expected = (base[f"{name}.weight"].float() + delta).bfloat16()
        assert torch.equal(merged.get_submodule(name).weight, expected)


@torch.no_grad()
def test_a_merge_that_rounds_the_adapters_away_is_refused():
    wrapped = trained(fresh(dtype=torch.bfloat16), "frozen", "frozen", by=0.0)
    for name, weight in wrapped.named_parameters():
        if "lora_B" in name:
            weight.normal_(std=1e-4)
    batch = inputs(fresh())
    expected = wrapped(**batch).logits
    with pytest.raises(
        ValueError, match="merging changes the logits by .* is too coarse for the adapters: load the base in float32"
    ):
        merge(wrapped, batch)
    assert torch.equal(wrapped(**batch).logits, expected)


@torch.no_grad()
def test_adapters_that_are_no_numbers_are_refused():
    wrapped = trained(fresh())
    unwrapped(wrapped).projector.fc1.weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"projector\.fc1\.weight holds values that are not finite"):
        merge(wrapped, inputs(fresh()))


@pytest.fixture
def saved(tmp_path):
    wrapped = trained(fresh())
    save_adapter(wrapped, tmp_path / "adapter")
    return wrapped, tmp_path / "adapter"


def test_another_base_and_one_that_is_merged_already_are_refused(saved):
    wrapped, folder = saved
    other = fresh()
    with torch.no_grad():
        other.language_model.model.layers[1].mlp.up_proj.weight[0, 0] += 1
    with pytest.raises(ValueError, match="was trained on other weights than this model has"):
        load_adapter(other, folder)
    with pytest.raises(ValueError, match="without these adapters merged into it"):
        load_adapter(merge(wrapped, inputs(fresh())), folder)
    with pytest.raises(ValueError, match="has adapters already"):
        load_adapter(unwrapped(wrapped), folder)
    with pytest.raises(ValueError, match="other preprocessing, tap or image layout"):
        load_adapter(fresh(tap=vv.Tap(-2)), folder)


def test_a_base_in_another_precision_is_the_same_base(tmp_path):
    save_adapter(trained(fresh(dtype=torch.bfloat16)), tmp_path)
    base = fresh(dtype=torch.bfloat16)
    base.language_model.float()
    load_adapter(base, tmp_path)


@pytest.mark.parametrize("damage", ["missing", "unused", "shape", "cut", "config"])
def test_a_folder_that_does_not_fit_is_refused_and_the_model_left_as_it_was(saved, damage):
    _, folder = saved
    file = folder / "adapter_model.safetensors"
    weights = load_file(file)
    name = next(name for name in weights if "lora_A" in name)
    if damage == "missing":
        del weights[name]
    elif damage == "unused":
        weights["base_model.model.extra.weight"] = torch.zeros(1)
    elif damage == "shape":
        weights[name] = weights[name][:, 1:].clone()
    save_file(weights, file, metadata={"format": "pt"})
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-20])
    if damage == "config":
        config = json.loads((folder / "adapter_config.json").read_text())
        config["target_modules"] = config["target_modules"][1:]
        (folder / "adapter_config.json").write_text(json.dumps(config))
    model = fresh()
    names, before = [name for name, _ in model.named_parameters()], model(**inputs(model)).logits
    with pytest.raises(ValueError, match="does not fit this model"):
        load_adapter(model, folder)
    assert [name for name, weight in model.named_parameters() if weight.requires_grad] == names
    assert torch.equal(model(**inputs(model)).logits, before)


def test_a_model_without_adapters_has_none_to_save(tmp_path):
    model = fresh()
    assert merge(model, {}) is model
    with pytest.raises(ValueError, match="expected the model with adapters .* got a VisionLanguageModel"):
        save_adapter(model, tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()
