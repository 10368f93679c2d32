"""Folders whose weights or settings would be used as they are not meant: adapters, whole numbers, NaN, links to nothing."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.policies import made
from support.tiny_vlm import join

import vlm_vision as vv
from vlm_vision.preprocess.spec import Preprocess


def change(folder, name: str, value, file: str = "model.safetensors") -> str:
    """Another first tensor whose name ends so. Returns its name."""
    weights = load_file(folder / file)
    key = next(key for key in sorted(weights) if key.endswith(name))
    weights[key] = value(weights[key])
    save_file(weights, folder / file, metadata={"format": "pt"})
    return key


def nan(weight: torch.Tensor) -> torch.Tensor:
    return torch.full_like(weight, float("nan"))


def test_an_adapter_next_to_its_base_is_not_left_out(encoder, tmp_path):
    encoder.save_pretrained(tmp_path / "tower")
    join().save_pretrained(tmp_path / "vlm")
    for folder, load in (("tower", vv.load), ("vlm", vv.VisionLanguageModel.from_pretrained)):
        (tmp_path / folder / "adapter_config.json").write_text('{"base_model_name_or_path": "owner/base"}')
        with pytest.raises(
            ValueError, match=r"holds an adapter \(adapter_config.json, of owner/base\) .* merge it with peft's"
        ):
            load(tmp_path / folder)
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone/adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match="holds an adapter of peft without its base model: load the base, then put"):
        vv.load(tmp_path / "alone")


def test_weights_that_are_not_finite_or_whole_numbers_are_refused(encoder, tmp_path):
    encoder.save_pretrained(tmp_path / "tower")
    name = change(tmp_path / "tower", "query.bias", nan)
    with pytest.raises(ValueError, match=f"{name} holds values that are not finite"):
        vv.load(tmp_path / "tower")
    join().save_pretrained(tmp_path / "vlm")
    for value, says in (
        (nan, "holds values that are not finite"),
        (torch.Tensor.int, "holds torch.int32, expected floating"),
    ):
        name = change(tmp_path / "vlm", "q_proj.weight", value)
        with pytest.raises(ValueError, match=f"{name} {says}"):
            vv.VisionLanguageModel.from_pretrained(tmp_path / "vlm")


def test_values_that_a_smaller_type_cannot_hold_are_named(encoder, tmp_path):
    encoder.save_pretrained(tmp_path)
    change(tmp_path, "bias", lambda weight: torch.full_like(weight, 1e6))
    with pytest.raises(ValueError, match="holds values too large for torch.float16"):
        vv.load(tmp_path, dtype=torch.float16)
    vv.load(tmp_path)


def test_a_link_to_nothing_is_not_an_absent_file(encoder, tmp_path):
    encoder.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").unlink()
    (tmp_path / "preprocessor_config.json").symlink_to(tmp_path / "blobs" / "gone")
    with pytest.raises(ValueError, match="preprocessor_config.json is a link to a file that is missing"):
        vv.load(tmp_path)


def test_a_policy_without_its_chunk_does_not_act(tmp_path):
    made("parallel").save_pretrained(tmp_path)
    policy = json.loads((tmp_path / "policy.json").read_text())
    for name in ("chunk", "state_dim", "action_dim", "cameras"):
        spec = {key: value for key, value in policy["spec"].items() if key != name}
        (tmp_path / "policy.json").write_text(json.dumps(policy | {"spec": spec}))
        with pytest.raises(ValueError, match=f"policy.json is damaged .its spec lacks {name}.: restore the file"):
            vv.load_policy(tmp_path)
    (tmp_path / "policy.json").write_text(json.dumps(policy))
    file = next(path.name for path in tmp_path.glob("*.safetensors") if path.name != "model.safetensors")
    change(tmp_path, "weight", nan, file)
    with pytest.raises(ValueError, match="holds other values than finite floating point numbers"):
        vv.load_policy(tmp_path)


@pytest.mark.parametrize("changes", [{"mean": (5e8, 0, 0)}, {"std": (-0.5, 0.5, 0.5)}, {"std": (1e-30, 1, 1)}])
def test_preprocessing_numbers_out_of_all_bounds_are_refused(changes):
    spec = dict(
        resize="squash",
        resize_to=(8, 8),
        resample="bicubic",
        crop=None,
        rescale=1 / 255,
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
    )
    with pytest.raises(ValueError, match=f"{next(iter(changes))} is .*: expected 3 finite numbers from"):
        Preprocess(**(spec | changes))


def test_an_adapter_that_transformers_loaded_is_merged_by_attach(encoder, caplog):
    from peft import LoraConfig, inject_adapter_in_model
    from support.models import tiny_llm, tiny_tokenizer

    llm = tiny_llm("llama")
    inject_adapter_in_model(LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False), llm)
    llm.eval()
    ids = torch.tensor([[3, 4, 5]])
    wanted = llm(ids).logits
    with caplog.at_level("INFO"):
        vlm = vv.VisionLanguageModel.attach(encoder, llm, tokenizer=tiny_tokenizer())
    torch.testing.assert_close(vlm(ids).logits[..., : wanted.shape[-1]], wanted, atol=1e-5, rtol=1e-4)
    assert "was merged into its weights, 2 layers" in caplog.text and not any(
        "lora" in name for name in vlm.state_dict()
    )
    other = tiny_llm("llama")
    inject_adapter_in_model(LoraConfig(r=2, target_modules=["embed_tokens"]), other)
    with pytest.raises(ValueError, match="has an adapter on model.embed_tokens, a Embedding: merge it with peft"):
        vv.VisionLanguageModel.attach(encoder, other, tokenizer=tiny_tokenizer())


def test_an_adapter_of_peft_says_why_it_is_not_checked(tmp_path):
    from vlm_vision.train.adapters import load_adapter

    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(
        ValueError, match="has no vlm_vision_adapter.json, which save_adapter writes .* PeftModel.from_pretrained"
    ):
        load_adapter(join(), tmp_path)
