"""A tuned tower and projector in the folder of their whole model, which unmodified transformers loads."""

import hashlib
import json
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from support.census.build import build
from support.census.inputs import flat_patches
from support.golden import golden_case
from support.models import tiny_llm, tiny_tokenizer
from torch import Tensor, nn

import vlm_vision as vv
from projectors import Projector
from vlm_vision.cli.main import main

IMAGE = 5
"""Id of the token that stands for a part of an image."""


@dataclass(frozen=True, kw_only=True)
class Whole:
    """A whole model of transformers, and how it is asked."""

    model: str
    changes: dict[str, Any] = field(default_factory=dict)
    tap: vv.Tap = vv.Tap()
    tokens: int
    """Tokens of one image."""
    pixels: Callable[[Tensor], dict[str, Tensor]] = lambda x: {"pixel_values": x}
    """Arguments of the model for images (B, C, H, W)."""


def native(x: Tensor) -> dict[str, Tensor]:
    rows, grid = flat_patches(x, 8, 2, 2)
    return {"pixel_values": rows, "image_grid_thw": grid}


_WINDOWS = dict(window_size=32, fullatt_block_indexes=[1], depth=4)
_DEEP = dict(num_position_embeddings=36, deepstack_visual_indexes=[0, 2])
_ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}}
_QWEN = dict(image_token_id=IMAGE, video_token_id=6, vision_start_token_id=7, vision_end_token_id=8, text_config=_ROPE)

WHOLE = {
    "llava": Whole(
        model="LlavaForConditionalGeneration",
        changes=dict(image_token_id=IMAGE, image_token_index=IMAGE),
        tap=vv.Tap(-2, norm=False),
        tokens=64,
    ),
    "internvl": Whole(model="InternVLForConditionalGeneration", changes=dict(image_token_id=IMAGE), tokens=16),
    "gemma3": Whole(
        model="Gemma3ForConditionalGeneration",
        changes=dict(image_token_id=IMAGE, image_token_index=IMAGE, mm_tokens_per_image=16),
        tokens=16,
    ),
    "mistral3": Whole(
        model="Mistral3ForConditionalGeneration",
        changes=dict(image_token_id=IMAGE, image_token_index=IMAGE),
        tokens=16,
        pixels=lambda x: {"pixel_values": x, "image_sizes": torch.tensor([x.shape[-2:]] * len(x))},
    ),
    "qwen2_5_vl": Whole(
        model="Qwen2_5_VLForConditionalGeneration",
        changes=_QWEN | {"vision_config": _WINDOWS},
        tokens=16,
        pixels=native,
    ),
    "qwen3_vl": Whole(
        model="Qwen3VLForConditionalGeneration", changes=_QWEN | {"vision_config": _DEEP}, tokens=16, pixels=native
    ),
}


def saved(kind: str, folder: Path, **options: Any) -> nn.Module:
    case = WHOLE[kind]
    whole = build(kind, case.changes, case.model)
    whole.save_pretrained(folder, **options)
    return whole


def tuned(*modules: nn.Module) -> None:
    torch.manual_seed(3)
    with torch.no_grad():
        for weight in [weight for module in modules for weight in module.parameters()]:
            weight.add_(0.1 * weight.abs().mean() * torch.randn_like(weight))


def contents(folder: Path) -> dict[str, str]:
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in folder.rglob("*")
        if file.is_file()
    }


def logits(kind: str, whole: nn.Module, x: Tensor) -> Tensor:
    case = WHOLE[kind]
    ids = torch.tensor([[1, 7, *[IMAGE] * case.tokens, 8, 9, 10]] * len(x))
    kinds = (ids == IMAGE).int()
    more = {"mm_token_type_ids": kinds} if "image_grid_thw" in case.pixels(x) else {}
    return whole(input_ids=ids, attention_mask=torch.ones_like(ids), **more, **case.pixels(x)).logits


def joined(kind: str, whole: Any, encoder: vv.Encoder, projector: Projector, x: Tensor) -> Tensor:
    """Logits of transformers' language model for what our tower and projector make of the images."""
    out = encoder(x, tap=WHOLE[kind].tap)
    features = projector(out.patch_tokens, out.grid)
    theirs = whole.model.get_image_features

    def ours(*args: Any, **kwargs: Any) -> Any:
        seen = theirs(*args, **kwargs)
        seen.pooler_output = features if isinstance(seen.pooler_output, Tensor) else list(features)
        if out.deepstack:
            seen.deepstack_features = [tuple(deep) for deep in out.deepstack]
        return seen

    whole.model.get_image_features = ours
    answer = logits(kind, whole, x)
    del whole.model.get_image_features
    return answer


@pytest.mark.parametrize("kind", WHOLE)
@torch.inference_mode()
def test_transformers_loads_a_tuned_tower_and_projector(kind, tmp_path):
    case = WHOLE[kind]
    whole = saved(kind, tmp_path / "whole")
    encoder = vv.load(tmp_path / "whole")
    projector = vv.load_projector(tmp_path / "whole")
    before = contents(tmp_path / "whole")
    tuned(encoder, projector)
    encoder.save_pretrained(tmp_path / "new", into=tmp_path / "whole", projector=projector)
    assert contents(tmp_path / "whole") == before and contents(tmp_path / "new").keys() == before.keys()
    again, loading = getattr(transformers, case.model).from_pretrained(tmp_path / "new", output_loading_info=True)
    assert not any(loading[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    torch.manual_seed(4)
    x = torch.randn(2, 3, 64, 64)
    theirs, ours = logits(kind, again.eval(), x), joined(kind, whole, encoder, projector, x)
    assert (theirs - ours).abs().max() <= 1e-5 * theirs.abs().max()
    assert (theirs - logits(kind, whole, x)).abs().max() > 1e-3 * theirs.abs().max()


@torch.inference_mode()
def test_transformers_loads_a_tuned_tower_of_a_pair(tmp_path):
    whole = build("clip", {})
    whole.save_pretrained(tmp_path / "whole")
    pair = vv.load_pair(tmp_path / "whole")
    tuned(pair.image)
    pair.image.save_pretrained(tmp_path / "new", into=tmp_path / "whole")
    again = transformers.CLIPModel.from_pretrained(tmp_path / "new")
    x, ids = torch.randn(2, 3, 64, 64), torch.randint(3, 100, (3, 9))
    theirs = again(input_ids=ids, pixel_values=x).logits_per_image
    assert (theirs - pair(x, ids).logits_per_image).abs().max() <= 1e-5 * theirs.abs().max()
    assert (theirs - whole(input_ids=ids, pixel_values=x).logits_per_image).abs().max() > 1e-3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_an_untouched_tower_changes_no_byte_of_a_sharded_folder(dtype, tmp_path):
    whole = build("qwen2_5_vl", WHOLE["qwen2_5_vl"].changes, WHOLE["qwen2_5_vl"].model).to(dtype)
    whole.save_pretrained(tmp_path / "whole", max_shard_size="60KB")
    assert (tmp_path / "whole/model.safetensors.index.json").is_file()
    (tmp_path / "whole/chat_template.jinja").write_text("{{ messages }}")
    (tmp_path / "whole/extra").mkdir()
    (tmp_path / "whole/extra/notes.bin").write_bytes(b"\0\1")
    (tmp_path / "whole").chmod(0o555)
    encoder, projector = vv.load(tmp_path / "whole"), vv.load_projector(tmp_path / "whole")
    encoder.save_pretrained(tmp_path / "new", into=tmp_path / "whole", projector=projector)
    assert contents(tmp_path / "new") == contents(tmp_path / "whole")
    narrow = vv.load(tmp_path / "whole", dtype=torch.bfloat16)
    narrow.save_pretrained(tmp_path / "narrow", into=tmp_path / "whole")
    assert contents(tmp_path / "narrow") == contents(tmp_path / "whole")
    tuned(encoder, projector)
    encoder.save_pretrained(tmp_path / "tuned", into=tmp_path / "whole", projector=projector)
    again, merger = vv.load(tmp_path / "tuned", dtype=dtype), vv.load_projector(tmp_path / "tuned", dtype=dtype)
    for mine, theirs in ((encoder, again), (projector, merger)):
        for name, weight in mine.state_dict().items():
            assert torch.equal(weight.to(dtype), theirs.state_dict()[name]), name
    for file in (tmp_path / "whole").glob("*.safetensors"):
        before, after = load_file(file), load_file(tmp_path / "tuned" / file.name)
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before if "visual" not in name)
        assert all(before[name].dtype == after[name].dtype == dtype for name in before)


def test_shards_of_pytorch_keep_the_weights_that_were_not_tuned(tmp_path):
    whole = saved("llava", tmp_path / "whole")
    folder = tmp_path / "bin"
    shutil.copytree(tmp_path / "whole", folder)
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    vision = {name: value for name, value in state.items() if "vision_tower" in name}
    shards = {"one.bin": vision, "two.bin": {name: state[name] for name in state.keys() - vision.keys()}}
    for file, tensors in shards.items():
        torch.save(tensors, folder / file)
    weight_map = {name: file for file, tensors in shards.items() for name in tensors}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    encoder, projector = vv.load(folder), vv.load_projector(folder)
    encoder.save_pretrained(tmp_path / "same", into=folder, projector=projector)
    assert contents(tmp_path / "same") == contents(folder)
    tuned(encoder)
    encoder.save_pretrained(tmp_path / "new", into=folder)
    before, after = contents(folder), contents(tmp_path / "new")
    assert before.keys() == after.keys() and [name for name in before if before[name] != after[name]] == ["one.bin"]
    again = type(whole).from_pretrained(tmp_path / "new").state_dict()
    written = torch.load(tmp_path / "new/one.bin")
    assert written.keys() == vision.keys()
    mine = vv.load(tmp_path / "new").state_dict()
    assert all(torch.equal(weight, mine[name]) for name, weight in encoder.state_dict().items())
    assert all(
        torch.equal(again[name], value) for name, value in whole.state_dict().items() if "vision_tower" not in name
    )


def test_numbers_that_were_not_changed_keep_their_bits_where_ours_are_rounded(tmp_path):
    whole = build("gemma3", WHOLE["gemma3"].changes)  # our scale of its norm is theirs plus one
    with torch.no_grad():
        whole.multi_modal_projector.mm_soft_emb_norm.weight.normal_(std=1e-6)
    whole.save_pretrained(tmp_path / "whole")
    encoder, projector = vv.load(tmp_path / "whole"), vv.load_projector(tmp_path / "whole")
    encoder.save_pretrained(tmp_path / "same", into=tmp_path / "whole", projector=projector)
    assert contents(tmp_path / "same") == contents(tmp_path / "whole")
    with torch.no_grad():
        projector.norm.weight[3] = 0.5
    encoder.save_pretrained(tmp_path / "new", into=tmp_path / "whole", projector=projector)
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "new"))
    name = next(name for name in before if name.endswith("mm_soft_emb_norm.weight"))
    assert (before.pop(name) != after[name]).nonzero().tolist() == [[3]] and after.pop(name)[3] == -0.5
    assert all(torch.equal(before[other], after[other]) for other in before)


def test_a_folder_is_changed_in_place_only_when_it_is_both(tmp_path):
    saved("llava", tmp_path / "whole")
    encoder = vv.load(tmp_path / "whole")
    tuned(encoder)
    before = contents(tmp_path / "whole")
    (tmp_path / "link").symlink_to("whole")
    encoder.save_pretrained(tmp_path / "link", into=tmp_path / "whole")
    after = contents(tmp_path / "whole")
    assert [name for name in before if before[name] != after[name]] == ["model.safetensors"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "whole"]
    again = vv.load(tmp_path / "whole").state_dict()
    assert all(torch.equal(weight, again[name]) for name, weight in encoder.state_dict().items())


def test_both_towers_of_openvla_are_written(tmp_path):
    folder = tmp_path / "openvla"
    shutil.copytree(golden_case("openvla_fused_bf16"), folder, ignore=lambda _, names: {"golden.safetensors"})
    fused, projector = vv.load(folder), vv.load_projector(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fused.save_pretrained(tmp_path / "same", into=folder, projector=projector)
    assert contents(tmp_path / "same") == contents(folder)
    tuned(fused, projector)
    fused.save_pretrained(tmp_path / "new", into=folder, projector=projector)
    again = vv.load(tmp_path / "new", dtype=torch.bfloat16).state_dict()
    assert all(torch.equal(weight.bfloat16(), again[name]) for name, weight in fused.state_dict().items())


def test_what_does_not_fit_is_one_sentence_and_nothing_is_written(tmp_path):
    saved("llava", tmp_path / "whole")
    encoder, projector = vv.load(tmp_path / "whole"), vv.load_projector(tmp_path / "whole")
    build("qwen2_5_vl", WHOLE["qwen2_5_vl"].changes).save_pretrained(tmp_path / "qwen")
    build("llava", {"vision_config": {"hidden_act": "gelu", "image_size": 32}}).save_pretrained(tmp_path / "other")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/a.txt").touch()
    new = tmp_path / "new"
    refused = [
        ("family qwen2_5_vl.*expected clip_vision_model", dict(into=tmp_path / "qwen")),
        ("image_size is .64, 64. in the encoder and .32, 32. there, mlp is", dict(into=tmp_path / "other")),
        ("which is no folder", dict(into=tmp_path / "none")),
        ("has no config.json", dict(into=tmp_path / "full")),
        ("full already exists", dict(into=tmp_path / "whole", folder=tmp_path / "full")),
        ("which is copied", dict(into=tmp_path / "whole", folder=tmp_path / "whole/new")),
        ("format is 'timm' with into=", dict(into=tmp_path / "whole", format="timm")),
        ("needs into=", dict(projector=projector)),
        ("needs into=", dict(part="vision_tower")),
        ("another projector: name", dict(into=tmp_path / "whole", projector=vv.load_projector(tmp_path / "qwen"))),
    ]
    for says, arguments in refused:
        with pytest.raises(ValueError, match=says):
            encoder.save_pretrained(**{"folder": new} | arguments)
        assert not new.exists() and not (tmp_path / "whole/new").exists()
    half = tmp_path / "half"
    shutil.copytree(tmp_path / "whole", half)
    state = {name: value.half() for name, value in load_file(half / "model.safetensors").items()}
    save_file(state, half / "model.safetensors", metadata={"format": "pt"})
    with torch.no_grad():
        encoder.model.norm.weight[0] = 1e6
    with pytest.raises(ValueError, match="past the range of torch.float16"):
        encoder.save_pretrained(new, into=half)
    assert not new.exists()


def test_a_copy_of_the_weights_in_another_format_and_other_preprocessing_are_named(tmp_path):
    saved("llava", tmp_path / "whole")
    (tmp_path / "whole/pytorch_model.bin").write_bytes(b"of long ago")
    with pytest.warns(UserWarning, match="new also holds pytorch_model.bin, which may have the tower as it was"):
        vv.load(tmp_path / "whole").save_pretrained(tmp_path / "new", into=tmp_path / "whole")
    (tmp_path / "whole/pytorch_model.bin").unlink()
    with pytest.warns(UserWarning, match="differs from the encoder's in resize_to, crop"):
        vv.load(tmp_path / "whole", image_size=128).save_pretrained(tmp_path / "more", into=tmp_path / "whole")


def test_one_of_two_towers_is_written(tmp_path):
    build("video_llava", {}).save_pretrained(tmp_path / "whole")
    encoder = vv.load(tmp_path / "whole", part="image_tower")
    tuned(encoder)
    with pytest.raises(ValueError, match='holds 2 clip_vision_model towers .*part="..."'):
        encoder.save_pretrained(tmp_path / "new", into=tmp_path / "whole")
    encoder.save_pretrained(tmp_path / "new", into=tmp_path / "whole", part="image_tower")
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "new"))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all("image_tower" in name for name in changed)


def test_the_command_writes_a_tower_and_a_projector(tmp_path, capsys):
    saved("internvl", tmp_path / "whole")
    encoder, projector = vv.load(tmp_path / "whole"), vv.load_projector(tmp_path / "whole")
    tuned(encoder, projector)
    encoder.save_pretrained(tmp_path / "tower")
    encoder.save_pretrained(tmp_path / "tuned", into=tmp_path / "whole", projector=projector)
    tower, whole, merger = (str(tmp_path / name) for name in ("tower", "whole", "tuned"))
    command = ["convert", tower, "--projector", merger, "--into", whole, "--out", str(tmp_path / "new")]
    assert main(command) == 0
    assert f"new: {whole} with the tower and projector of {tower}" in capsys.readouterr().out
    assert contents(tmp_path / "new") == contents(tmp_path / "tuned")
    for wrong, says in {
        "one folder to write": [tower, "--into", whole],
        "either --to": [tower, str(tmp_path / "a"), "--into", whole, "--to", "hf"],
        "need --into": [tower, str(tmp_path / "a"), "--to", "hf", "--projector", merger],
        "already exists": [tower, whole + "/../tuned", "--into", whole],
    }.items():
        assert main(["convert", *says]) == 2
        assert wrong in capsys.readouterr().err


def test_the_command_takes_the_tower_of_a_model_of_ours(tmp_path):
    build("llava", {"text_config": {"hidden_size": 32}}).save_pretrained(tmp_path / "whole")
    parts = vv.load(tmp_path / "whole", tap=vv.Tap(-2, norm=False)), vv.load_projector(tmp_path / "whole")
    vlm = vv.VisionLanguageModel.attach(parts[0], tiny_llm("llama"), projector=parts[1], tokenizer=tiny_tokenizer())
    tuned(vlm.encoder, vlm.projector)
    vlm.save_pretrained(tmp_path / "ours")
    ours, new = str(tmp_path / "ours"), tmp_path / "new"
    assert main(["convert", ours, str(new), "--into", str(tmp_path / "whole"), "--projector", ours]) == 0
    again, merger = vv.load(new).state_dict(), vv.load_projector(new).state_dict()
    assert all(torch.equal(weight, again[name]) for name, weight in vlm.encoder.state_dict().items())
    assert all(torch.equal(weight, merger[name]) for name, weight in vlm.projector.state_dict().items())
