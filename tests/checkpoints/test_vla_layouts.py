"""Towers and projectors out of policies, in each layout that they are published in: exact, strict, and only their bytes."""

import json
import math
import re
import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from support.golden import TOLERANCE, error, golden_case
from support.hf_models import TEXT, VISION, make, prismatic_own_file

import vlm_vision as vv
from vlm_vision.checkpoints.weights import WeightFiles

LANGUAGE_MODEL = torch.zeros(2048, 2048)
"""16 MB that nobody asked for."""


class Read:
    """What is read of weights while it is in force: bytes asked for by name, and the most of a file that was in memory."""

    def __init__(self, monkeypatch):
        self.asked, self.mapped, self.names = 0, 0, []
        get = WeightFiles.get

        def counted(files, name, **how):
            value = get(files, name, **how)
            self.names.append(name)
            self.asked += value.nbytes
            if len(self.names) % 16 == 0:  # to ask is slow
                self.mapped = max(self.mapped, *(_mapped(file) for file in set(files.files.values())))
            return value

        monkeypatch.setattr(WeightFiles, "get", counted)


def _mapped(file: Path) -> int:
    """Bytes of a mapped file that this process has touched."""
    found, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            inside = line.endswith(str(file.resolve()))
        elif inside and line.startswith("Rss:"):
            found += int(line.split()[1]) * 1024
    return found


@pytest.fixture
def read(monkeypatch) -> Read:
    if not Path("/proc/self/smaps").is_file():
        pytest.skip("this system does not tell what of a file is in memory")
    return Read(monkeypatch)


def write(folder: Path, tensors: dict, config: dict | None) -> Path:
    folder.mkdir(exist_ok=True)
    tensors = {name: value.contiguous().clone() for name, value in tensors.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    """Copies, so that the file is not in memory on the test's own account."""
    return {name: value.clone() for name, value in load_file(folder / "model.safetensors").items()}


def nbytes(tensors: dict, *prefixes: str) -> int:
    return sum(value.nbytes for name, value in tensors.items() if name.startswith(prefixes))


# ---------------------------------------------------------------------------------------------- OpenVLA, OFT


@pytest.fixture
def openvla(tmp_path) -> Path:
    """The golden OpenVLA with a language model of 16 MB."""
    golden = golden_case("openvla_fused_bf16")
    stored = load_file(golden / "model.safetensors") | {"language_model.model.big.weight": LANGUAGE_MODEL}
    return write(tmp_path / "openvla", stored, json.loads((golden / "config.json").read_text()))


@pytest.fixture
def expected() -> dict[str, torch.Tensor]:
    return load_file(golden_case("openvla_fused_bf16") / "golden.safetensors")


def own_run(folder: Path) -> Path:
    """As OpenVLA's own training leaves it: the base's name in config.json, steps under checkpoints/."""
    folder.mkdir()
    prismatic_own_file(folder)
    latest = folder / "checkpoints" / "latest-checkpoint.pt"
    state = torch.load(latest, weights_only=True)
    state["model"]["llm_backbone"] = {"llm.big.weight": LANGUAGE_MODEL}
    latest.unlink()
    torch.save(state, folder / "checkpoints" / "step-000200-epoch-01-loss=0.5000.pt")
    (folder / "checkpoints" / "step-000100-epoch-00-loss=0.9000.pt").write_bytes(b"older")
    own = json.loads((folder / "config.json").read_text())["model"]
    tiny = {name: own[name] for name in ("timm_model_args", "image_sizes")}
    described = {"vla": {"type": "prism-dinosiglip-224px+mx-bridge", "base_vlm": "prism-dinosiglip-224px+7b"}}
    (folder / "config.json").write_text(json.dumps(described | tiny))
    return folder


@pytest.mark.parametrize("form", ["huggingface", "own run", "own file", "merged OFT"])
@torch.inference_mode()
def test_openvla_in_every_form_gives_its_towers_and_projector(openvla, expected, tmp_path, read, form):
    stored = tensors_of(openvla)
    if form.startswith("own"):
        source = own_run(tmp_path / "run")
        source = source / "checkpoints" / "step-000200-epoch-01-loss=0.5000.pt" if form == "own file" else source
    else:
        source = openvla
    if form == "merged OFT":
        (source / "lora_adapter").mkdir()
        for name in (
            "lora_adapter/adapter_config.json",
            "action_head--150000_checkpoint.pt",
            "dataset_statistics.json",
        ):
            (source / name).write_text("not read")
    encoder = vv.load(source)
    assert read.asked == nbytes(stored, "vision_backbone.") and read.mapped < LANGUAGE_MODEL.nbytes // 4
    read.asked = 0
    out = encoder(expected["pixel_values"])
    assert error(out.patch_tokens, expected["patch_features"]) < TOLERANCE
    projected = vv.load_projector(source)(out.patch_tokens, out.grid)
    assert read.asked == nbytes(stored, "projector.") and read.mapped < LANGUAGE_MODEL.nbytes // 4
    assert error(projected, expected["projected"]) < TOLERANCE
    assert encoder.preprocess.towers[0].resize == "squash"


def test_a_weight_of_a_tower_too_few_or_too_many_is_named(openvla):
    stored = tensors_of(openvla)
    lost = "vision_backbone.fused_featurizer.blocks.0.mlp.fc1.weight"
    write(openvla, {n: w for n, w in stored.items() if n != lost.replace("weight", "bias")}, None)
    with pytest.raises(ValueError, match=r"lacks the weight blocks\.0\.mlp\.fc1\.bias|holds the weight blocks"):
        vv.load(openvla)
    write(openvla, stored | {"vision_backbone.featurizer.adapter.weight": torch.zeros(2)}, None)
    with pytest.raises(ValueError, match=r"holds the weight adapter\.weight"):
        vv.load(openvla)


def test_an_unknown_base_of_a_run_is_refused(tmp_path):
    folder = own_run(tmp_path / "run")
    (folder / "config.json").write_text(json.dumps({"vla": {"base_vlm": "runs/mine"}}))
    with pytest.raises(ValueError, match="has the base_vlm 'runs/mine': expected one of siglip-224px"):
        vv.load(folder)


def factors(stored: dict, rank: int = 4) -> dict[str, torch.Tensor]:
    """LoRA of every linear layer of towers and projector, by the names of the layers."""
    found = {}
    for name, weight in stored.items():
        if name.endswith(".weight") and weight.ndim == 2 and name.startswith(("vision_backbone.", "projector.")):
            layer = name.removesuffix(".weight")
            found[f"{layer}.lora_A"] = torch.randn(rank, weight.shape[1]) / 4
            found[f"{layer}.lora_B"] = torch.randn(weight.shape[0], rank) / 4
    return found


def merged(stored: dict, lora: dict, scale: float) -> dict[str, torch.Tensor]:
    added = {name: value.float() for name, value in stored.items()}
    for name in [name for name in lora if name.endswith("lora_A")]:
        layer = name.removesuffix(".lora_A")
        added[f"{layer}.weight"] = added[f"{layer}.weight"] + scale * lora[f"{layer}.lora_B"] @ lora[name]
    return added


def adapter(folder: Path, base: Path, tensors: dict, **config) -> Path:
    """A run of OFT that was not merged."""
    (folder / "lora_adapter").mkdir(parents=True)
    save_file(tensors, folder / "lora_adapter" / "adapter_model.safetensors")
    described = {"peft_type": "LORA", "r": 4, "lora_alpha": 2, "base_model_name_or_path": str(base)} | config
    (folder / "lora_adapter" / "adapter_config.json").write_text(json.dumps(described))
    return folder


@torch.inference_mode()
def test_an_adapter_that_is_not_merged_is_added_to_its_base(openvla, expected, tmp_path, read):
    stored = tensors_of(openvla)
    lora = factors(stored)
    run = adapter(tmp_path / "run", openvla, {f"base_model.model.{name}.weight": value for name, value in lora.items()})
    whole = write(tmp_path / "whole", merged(stored, lora, 0.5), json.loads((openvla / "config.json").read_text()))
    by_hand, projector = vv.load(whole), vv.load_projector(whole)
    read.asked = 0
    encoder = vv.load(run)
    assert read.asked == nbytes(stored | lora, "vision_backbone.") and read.mapped < LANGUAGE_MODEL.nbytes // 4
    out = encoder(expected["pixel_values"])
    wanted = by_hand(expected["pixel_values"])
    assert error(out.patch_tokens, wanted.patch_tokens) < TOLERANCE
    assert error(out.patch_tokens, expected["patch_features"]) > 0.01
    read.asked = 0
    projected = vv.load_projector(run)(out.patch_tokens, out.grid)
    assert read.asked == nbytes(stored | lora, "projector.")
    assert error(projected, projector(wanted.patch_tokens, wanted.grid)) < TOLERANCE


def test_an_adapter_that_cannot_be_added_is_refused(openvla, tmp_path):
    shape = dict(A=torch.zeros(4, 3), B=torch.zeros(3, 4))
    pair = {f"base_model.model.vision_backbone.featurizer.head.lora_{s}.weight": v for s, v in shape.items()}
    cases = [
        (pair, {}, "factors of vision_backbone.featurizer.head.weight, but not the layer: it is for another model"),
        (dict(list(pair.items())[:1]), {}, "but not lora_B for it"),
        ({"base_model.model.projector.modules_to_save.fc1.weight": torch.zeros(1)}, {}, "is not a factor of LoRA"),
        ({}, {"use_dora": True}, "has use_dora: expected plain LoRA"),
        ({}, {"peft_type": "IA3"}, "has peft_type 'IA3'"),
        ({}, {"base_model_name_or_path": "/nowhere"}, "is an adapter of /nowhere, which cannot be loaded"),
    ]
    for i, (tensors, config, says) in enumerate(cases):
        with pytest.raises(ValueError, match=says):
            vv.load(adapter(tmp_path / str(i), openvla, tensors, **config))


def filmed(stored: dict, lora: dict, width: int) -> dict[str, torch.Tensor]:
    """The vision backbone as OFT saves it with FiLM: blocks wrapped, linear layers wrapped by peft."""
    state = {}
    for name, value in stored.items():
        if not name.startswith("vision_backbone."):
            continue
        wrapped = re.sub(r"(blocks\.\d+\.)", r"\1block.", name)
        layer, _, kind = wrapped.rpartition(".")
        if f"{name.rpartition('.')[0]}.lora_A" in lora:
            state[f"{layer}.base_layer.{kind}"] = value
        else:
            state[wrapped] = value
        if name.endswith("norm1.weight"):
            block = wrapped.split(".block.")[0]
            for part in ("scale", "shift"):
                state[f"{block}.{part}.weight"] = torch.randn(len(value), width) / 10
                state[f"{block}.{part}.bias"] = torch.randn(len(value)) / 10
    for name, value in lora.items():
        if name.startswith("vision_backbone."):
            state[re.sub(r"(blocks\.\d+\.)", r"\1block.", name) + ".default.weight"] = value
    return state


def linear(x: torch.Tensor, weights: dict, name: str) -> torch.Tensor:
    return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])


def normed(x: torch.Tensor, weights: dict, name: str) -> torch.Tensor:
    return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], eps=1e-6)


def features(state: dict, film: dict, prefix: str, pixels: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
    """timm's ViT with OFT's FiLM, to the block before the last, from plain weights. Heads of 64."""
    own = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    proj = own["patch_embed.proj.weight"]
    x = F.conv2d(pixels, proj, own["patch_embed.proj.bias"], stride=proj.shape[-1]).flatten(2).transpose(1, 2)
    x = x + own["pos_embed"]
    extra = [own[name].expand(len(x), -1, -1) for name in ("cls_token", "reg_token") if name in own]
    x = torch.cat([*extra, x], dim=1)
    depth = 1 + max(int(name.split(".")[1]) for name in own if name.startswith("blocks."))
    for i in range(depth - 1):
        block = {n.removeprefix(f"blocks.{i}."): w for n, w in own.items() if n.startswith(f"blocks.{i}.")}
        q, k, v = linear(normed(x, block, "norm1"), block, "attn.qkv").unflatten(-1, (3, -1, 64)).permute(2, 0, 3, 1, 4)
        seen = ((q @ k.transpose(-1, -2)) / math.sqrt(64)).softmax(-1) @ v
        x = x + linear(seen.transpose(1, 2).flatten(2), block, "attn.proj") * block.get("ls1.scale_factor", 1)
        gamma, beta = (linear(condition, film, f"{prefix}blocks.{i}.{part}") for part in ("scale", "shift"))
        x = x * (1 + gamma[:, None]) + beta[:, None]
        hidden = F.gelu(linear(normed(x, block, "norm2"), block, "mlp.fc1"))
        x = x + linear(hidden, block, "mlp.fc2") * block.get("ls2.scale_factor", 1)
    return x[:, sum(one.shape[1] for one in extra) :]


@pytest.mark.parametrize("unmerged", [False, True])
@torch.inference_mode()
def test_towers_with_film_come_from_their_own_file_and_take_the_instruction(
    openvla, expected, tmp_path, read, unmerged
):
    stored = tensors_of(openvla)
    lora, width = factors(stored), 24
    film = filmed(stored, lora, width)
    folder = adapter(tmp_path / "run", openvla, {}) if unmerged else openvla
    torch.save(film, folder / "vision_backbone--10000_checkpoint.pt")
    encoder = vv.load(folder)
    assert read.asked == sum(value.nbytes for value in film.values())
    assert encoder.config.towers[0].film_dim == encoder.config.towers[1].film_dim == width
    scale = 0.5 if unmerged else 1.0  # lora_alpha / r as the adapter says, or min(4, 16) / 4
    plain, pixels, words = merged(stored, lora, scale), expected["pixel_values"], torch.randn(2, width)
    wanted = torch.cat(
        [
            features(plain, film, f"vision_backbone.{name}.", pixels[:, 3 * i : 3 * i + 3], words)
            for i, name in enumerate(("featurizer", "fused_featurizer"))
        ],
        dim=-1,
    )
    assert error(encoder(pixels, condition=words).patch_tokens, wanted) < TOLERANCE
    assert error(encoder(pixels, condition=words + 1).patch_tokens, wanted) > 0.01
    with pytest.raises(ValueError, match=r"condition has shape None: expected \(2, 24\), for OpenVLA-OFT the mean"):
        encoder(pixels)
    with pytest.raises(ValueError, match="sees batches, not packed images"):
        encoder.towers[0].packed([pixels[0, :3]])
    again = vv.FusedEncoder.from_dict(encoder.to_dict())
    again.load_state_dict(encoder.state_dict())
    assert torch.equal(again(pixels, condition=words).patch_tokens, encoder(pixels, condition=words).patch_tokens)
    with pytest.raises(ValueError, match="has no place for|cannot express"):
        encoder.save_pretrained(tmp_path / "saved")
    (folder / "vision_backbone--20000_checkpoint.pt").write_bytes(b"")
    with pytest.raises(
        ValueError, match="vision_backbone--10000_checkpoint.pt, vision_backbone--20000.*keep only the one"
    ):
        vv.load(folder)


@torch.inference_mode()
def test_film_that_says_nothing_changes_nothing(openvla, expected):
    stored = tensors_of(openvla)
    plain = vv.load(openvla)
    film = filmed(stored, {}, 8)
    film = {n: torch.zeros_like(v) if re.search(r"\d\.(scale|shift)\.", n) else v for n, v in film.items()}
    torch.save(film, openvla / "vision_backbone--1_checkpoint.pt")
    out = vv.load(openvla)(expected["pixel_values"], condition=torch.randn(2, 8))
    assert torch.equal(out.patch_tokens, plain(expected["pixel_values"]).patch_tokens)
    with pytest.raises(ValueError, match="this encoder has no FiLM: leave condition= out"):
        plain(expected["pixel_values"], condition=torch.randn(2, 8))


# ---------------------------------------------------------------------------------------------- pi0, SmolVLA

OLD, NEW = "vision_tower.vision_model.", "vision_tower."
PI0 = {
    "LeRobot, first": ({"type": "pi0", "resize_imgs_with_padding": [224, 224]}, "model.paligemma_with_expert.paligemma.", OLD),
    "LeRobot": ({"type": "pi0"}, "model.paligemma_with_expert.paligemma.model.", OLD),
    "LeRobot on transformers 5": ({"type": "pi05"}, "model.paligemma_with_expert.paligemma.model.", NEW),
    "LeRobot pi0fast": ({"type": "pi0fast", "resize_imgs_with_padding": [224, 224]}, "model.pi0_paligemma.", OLD),
    "openpi, converted": ({"paligemma_variant": "gemma_2b", "precision": "bfloat16"}, "paligemma_with_expert.paligemma.model.", OLD),
    "openpi, trained": (None, "paligemma_with_expert.paligemma.model.", OLD),
}  # fmt: skip


@pytest.mark.parametrize("name", PI0)
@torch.inference_mode()
def test_pi0_in_every_form_gives_its_tower_and_projector(name, tmp_path, read):
    config, prefix, tower = PI0[name]
    theirs = make("siglip_vision_model", **VISION, vision_use_head=False)
    mine = {f"{prefix}{tower}{key}": value for key, value in theirs.state_dict().items()}
    connector = {f"{prefix}multi_modal_projector.linear.weight": torch.randn(20, 32)}
    connector[f"{prefix}multi_modal_projector.linear.bias"] = torch.randn(20)
    others = {f"{prefix}language_model.embed_tokens.weight": LANGUAGE_MODEL, "action_in_proj.weight": torch.randn(4, 4)}
    folder = write(tmp_path / "policy", mine | connector | others, config)
    encoder = vv.load(folder, num_heads=2)
    assert isinstance(encoder, vv.Encoder) and encoder.tap == vv.Tap()
    assert read.asked == nbytes(mine, prefix) and read.mapped < LANGUAGE_MODEL.nbytes // 4
    pixels = torch.randn(1, 3, 16, 16)
    out = encoder(pixels)
    assert error(out.patch_tokens, theirs(pixels).last_hidden_state) < TOLERANCE
    read.asked = 0
    projected = vv.load_projector(folder)(out.patch_tokens, out.grid)
    assert read.asked == nbytes(connector, prefix) and read.mapped < LANGUAGE_MODEL.nbytes // 4
    weight, bias = (connector[f"{prefix}multi_modal_projector.linear.{part}"] for part in ("weight", "bias"))
    assert error(projected, F.linear(out.patch_tokens, weight, bias)) < TOLERANCE
    assert encoder.preprocess.output_size == (224, 224) and encoder.preprocess(torch.zeros(3, 9, 9).byte()).eq(-1).all()
    lost = f"{prefix}{tower}encoder.layers.0.mlp.fc2.bias"
    write(folder, {n: w for n, w in (mine | connector).items() if n != lost}, config)
    with pytest.raises(ValueError, match=r"lacks the weight encoder\.layers\.0\.mlp\.fc2\.bias"):
        vv.load(folder, num_heads=2)


@torch.inference_mode()
def test_transformers_own_pi0_gives_its_tower_and_projector(tmp_path, read):
    from transformers import PI0Config, PI0ForConditionalGeneration

    vision = VISION | {"model_type": "siglip_vision_model", "vision_use_head": False}
    text = TEXT | {"model_type": "gemma", "head_dim": 12}
    vlm = dict(model_type="paligemma", vision_config=vision, text_config=text, projection_dim=24, image_token_id=39)
    theirs = PI0ForConditionalGeneration(PI0Config(vlm_config=vlm, dit_config=text)).eval()
    theirs.save_pretrained(tmp_path)
    encoder, pixels = vv.load(tmp_path), torch.randn(2, 3, 16, 16)
    assert all(".vision_tower." in name for name in read.names)
    out = encoder(pixels)
    seen = theirs.model.vlm.get_image_features(pixels)
    assert error(out.patch_tokens, seen.last_hidden_state) < TOLERANCE
    assert error(vv.load_projector(tmp_path)(out.patch_tokens, out.grid), seen.pooler_output) < TOLERANCE
    assert encoder.preprocess.crop_place == "top_left" and encoder.preprocess.output_size == (224, 224)


@torch.inference_mode()
def test_smolvla_reads_tower_and_connector_alone(tmp_path, read):
    theirs = make("siglip_vision_model", **VISION, vision_use_head=False)
    stem = "model.vlm_with_expert.vlm.model."
    mine = {f"{stem}vision_model.{key}": value for key, value in theirs.state_dict().items()}
    connector = {f"{stem}connector.modality_projection.proj.weight": torch.randn(20, 32 * 4)}
    others = {f"{stem}text_model.embed_tokens.weight": LANGUAGE_MODEL, "model.lm_expert.weight": torch.randn(2, 2)}
    folder = write(tmp_path / "policy", mine | connector | others, {"type": "smolvla"})
    encoder = vv.load(folder, num_heads=2)
    assert read.asked == nbytes(mine, stem) and read.mapped < LANGUAGE_MODEL.nbytes // 4
    read.asked = 0
    out = encoder(torch.randn(1, 3, 16, 16))
    assert vv.load_projector(folder)(out.patch_tokens, out.grid).shape == (1, 4, 20)
    assert read.asked == nbytes(connector, stem) and read.mapped < LANGUAGE_MODEL.nbytes // 4


def test_evaluation_is_chosen_on_the_encoder_and_kept_by_it(openvla, tmp_path):
    encoder = vv.load(openvla, image_size=56)
    image = torch.randint(0, 256, (3, 48, 64), dtype=torch.uint8)
    plain = encoder.preprocess(image)
    encoder.preprocess = encoder.preprocess.with_evaluation("openvla", crop=True)
    assert not torch.equal(encoder.preprocess(image), plain)
    again = vv.FusedEncoder.from_dict(encoder.to_dict())
    assert again.preprocess == encoder.preprocess and torch.equal(again.preprocess(image), encoder.preprocess(image))
    with pytest.raises(ValueError, match="has 2 towers: expected a FusedPreprocess with one for each"):
        encoder.preprocess = encoder.preprocess.towers[0]
    shutil.rmtree(openvla)
