"""Policies of OpenVLA and OpenVLA-OFT, against golden tensors and against their computation written out."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from support.golden import golden_case
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import nn
from transformers import PreTrainedTokenizerFast

from vlm_vision.robot.action_tokens import ActionTokens
from vlm_vision.robot.normalize import Normalizer
from vlm_vision.robot.observation import Observation
from vlm_vision.robot.statistics import Statistics, read_statistics
from vlm_vision.vla import VLAPolicy, load_policy
from vlm_vision.vla.openvla import load_openvla

WORDS = "In : What action should the robot take to pick up cup ? Out".lower().split()


@pytest.fixture
def folder(tmp_path):
    """The golden OpenVLA with a tokenizer of 320 words, `<s>` first, as Llama's."""
    path = tmp_path / "openvla"
    shutil.copytree(golden_case("openvla_fused_bf16"), path)
    words = ["<unk>", "<s>", "</s>", *WORDS, *(f"w{i}" for i in range(320 - 3 - len(WORDS)))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )
    fast.save_pretrained(path)
    return path


@pytest.mark.parametrize("legacy", [False, True])
def test_the_prompt_behind_the_image_keeps_the_words_of_openvlas_own(folder, legacy: bool) -> None:
    """Llama's words begin with a space, the first of a text too; `In` there is another word than `In` within one."""
    letters = sorted(set("▁In:Whataconshuldtherobottaketopickupthecup?Out:"))
    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *letters, "▁I", "▁In", "In"]
    model = models.BPE(
        {word: i for i, word in enumerate(words)},
        [("▁", "I"), ("▁I", "n"), ("I", "n")],
        fuse_unk=True,
        byte_fallback=True,
        unk_token="<unk>",
    )
    llama = Tokenizer(model)  # as the published tokenizer.json
    llama.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    llama.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    llama.add_special_tokens(["<unk>", "<s>", "</s>"])
    llama.save(str(folder / "tokenizer.json"))
    described = {"tokenizer_class": "LlamaTokenizer", "legacy": legacy, "pad_token": "</s>"}
    described |= {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(described))

    policy = load_policy(folder, statistics="set_a")
    ids = policy.read(["Pick up the cup"], [[Image.fromarray(observation().images["image"])]])["input_ids"][0]
    wanted = llama.encode("In: What action should the robot take to pick up the cup?\nOut:")
    assert wanted.tokens[:2] == ["<s>", "▁In"]
    assert ids[ids != policy.model.plain_vlm.config.image_token_id].tolist() == wanted.ids


def observation(seed: int = 0, cameras: tuple[str, ...] = ("image",), state: int = 0) -> Observation:
    rng = np.random.default_rng(seed)
    images = {name: rng.integers(0, 256, (90, 70, 3), dtype=np.uint8) for name in cameras}
    return Observation(images, "pick up the cup", rng.normal(size=state) if state else None)


def test_action_ids_become_the_actions_of_the_reference() -> None:
    golden = load_file(golden_case("openvla_fused_bf16") / "golden.safetensors")
    named = read_statistics(golden_case("openvla_fused_bf16"))
    actions = ActionTokens(320).decode(golden["action_ids"])
    for name in ("set_a", "set_b"):
        found = Normalizer("quantiles", named[name]["action"]).invert(actions)
        torch.testing.assert_close(found, golden[f"action.{name}"], rtol=1e-6, atol=1e-7)


def test_openvla_acts_as_it_writes(folder) -> None:
    policy = load_policy(folder, statistics="set_a")
    assert policy.spec.cameras == ("image",) and (policy.spec.action_dim, policy.spec.chunk) == (7, 1)
    vlm = policy.model.plain_vlm
    seen = observation()
    prompt = "<image>In: What action should the robot take to pick up the cup?\nOut:"
    batch = vlm.processor(text=prompt, images=[seen.images["image"]])
    ids = vlm.generate(**batch, max_new_tokens=7, min_new_tokens=7, do_sample=False, eos_token_id=None)[:, -7:]
    wanted = policy.action.invert(ActionTokens(320).decode(ids))
    np.testing.assert_allclose(policy.act([seen]).values[0], wanted.numpy(), rtol=1e-6)
    policy.model.save_pretrained(folder.parent / "saved")
    again = load_policy(folder.parent / "saved", statistics="set_a")
    np.testing.assert_array_equal(again.act([seen]).values, policy.act([seen]).values)
    with pytest.raises(ValueError, match="several data sets: choose one of 'set_a', 'set_b'"):
        load_policy(folder)
    with pytest.raises(ValueError, match="'bridge_orig' are not known: choose one of 'set_a', 'set_b'"):
        load_policy(folder, statistics="bridge_orig")


def test_a_policy_without_a_tokenizer_is_refused() -> None:
    with pytest.raises(ValueError, match="has no tokenizer"):
        load_policy(golden_case("openvla_fused_bf16"), statistics="set_a")


class Resnet(nn.Module):
    """The L1 head's MLP under the names of its authors."""

    def __init__(self, width: int, hidden: int, out: int):
        super().__init__()
        self.layer_norm1, self.fc1 = nn.LayerNorm(width), nn.Linear(width, hidden)
        ffns = [nn.Sequential(nn.LayerNorm(hidden), nn.Linear(hidden, hidden), nn.ReLU()) for _ in range(2)]
        self.mlp_resnet_blocks = nn.ModuleList(nn.ModuleDict({"ffn": ffn}) for ffn in ffns)
        self.layer_norm2, self.fc2 = nn.LayerNorm(hidden), nn.Linear(hidden, out)

    def forward(self, x):
        x = self.fc1(self.layer_norm1(x)).relu()
        for block in self.mlp_resnet_blocks:
            x = block["ffn"](x) + x
        return self.fc2(self.layer_norm2(x))


CHUNK, WIDTH = 2, 48


@pytest.fixture
def oft(folder):
    """The folder with an L1 head and a state of 5 numbers; and these modules."""
    torch.manual_seed(0)
    resnet = Resnet(7 * WIDTH, WIDTH, 7)
    proprio = nn.Sequential(nn.Linear(5, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH))
    torch.save(
        {f"module.model.{k}": v for k, v in resnet.state_dict().items()}, folder / "action_head--9_checkpoint.pt"
    )
    names = {"0": "fc1", "2": "fc2"}
    state = {f"module.{names[k[0]]}{k[1:]}": v for k, v in proprio.state_dict().items()}
    torch.save(state, folder / "proprio_projector--9_checkpoint.pt")
    rows = np.random.default_rng(5).normal(size=(400, 5))
    tell(folder, lambda named: [one.update(proprio=Statistics.of(rows).to_dict()) for one in named.values()])
    return folder, resnet, proprio


def tell(folder, change) -> None:
    """Change the statistics of a folder."""
    config = json.loads((folder / "config.json").read_text())
    change(config["norm_stats"])
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("kind", ["quantiles", "min_max"])
def test_oft_acts_as_its_computation_written_out(oft, kind) -> None:
    folder, resnet, proprio = oft
    chunk, width, cameras = CHUNK, WIDTH, ("full", "wrist")
    policy = VLAPolicy(load_openvla(folder, cameras=cameras, chunk=chunk, normalization=kind), "set_a")
    assert (policy.spec.chunk, policy.spec.state_dim) == (chunk, 5)
    seen = observation(3, cameras, state=5)
    found = policy.act([seen]).values[0]

    vlm = policy.model.plain_vlm
    words = vlm.get_input_embeddings()
    ids = vlm.processor.tokenizer(
        "In: What action should the robot take to pick up the cup?\nOut:", return_tensors="pt"
    )
    ids = ids["input_ids"]
    with torch.no_grad():
        pixels = vlm.encoder.preprocess([seen.images[name] for name in cameras])
        patches = vlm.projector(vlm.encoder(pixels).patch_tokens, (5, 5)).flatten(0, 1)[None]
        of_state = read_statistics(folder)["set_a"]["proprio"]
        low, high = (of_state.q01, of_state.q99) if kind == "quantiles" else (of_state.min, of_state.max)
        normal = 2 * (seen.state - low) / (high - low + 1e-8) - 1
        told = proprio(torch.from_numpy(normal).clamp(-1, 1).float())[None, None]
        slots, stop = torch.zeros(1, 7 * chunk, width), words(torch.tensor([[2]]))
        sequence = torch.cat([words(ids[:, :1]), patches, told, words(ids[:, 1:]), slots, stop], dim=1)
        everything = torch.zeros(1, 1, sequence.shape[1], sequence.shape[1])
        out = vlm.language_model(inputs_embeds=sequence, attention_mask=everything, output_hidden_states=True)
        start = patches.shape[1] + 1 + ids.shape[1] - 1
        hidden = out.hidden_states[-1][:, start : start + 7 * chunk]
        normal = resnet(hidden.reshape(1, chunk, 7 * width))[0]
    of_action = read_statistics(folder)["set_a"]["action"]
    low, high = (of_action.q01, of_action.q99) if kind == "quantiles" else (of_action.min, of_action.max)
    wanted = np.where(of_action.mask, 0.5 * (normal.numpy() + 1) * (high - low) + low, normal.numpy())
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)

    policy.model.save_pretrained(folder.parent / "saved")
    again = load_policy(folder.parent / "saved", statistics="set_a")
    np.testing.assert_array_equal(again.act([seen]).values[0], found)


def test_what_ofts_folder_does_not_tell_is_asked_for(oft) -> None:
    folder, given = oft[0], dict(cameras=("full", "wrist"), chunk=CHUNK, normalization="quantiles")
    for name in given:
        with pytest.raises(ValueError, match="states neither cameras nor chunk nor normalization: pass"):
            load_policy(folder, statistics="set_a", **{k: v for k, v in given.items() if k != name})
    path = folder / "proprio_projector--9_checkpoint.pt"
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match="proprio_projector--9_checkpoint.pt is not a PyTorch file"):
        load_openvla(folder, **given)
    path.unlink()
    torch.save({"module.model.fc1.weight": torch.zeros(3, 3)}, folder / "action_head--10_checkpoint.pt")
    with pytest.raises(ValueError, match="action_head--10_checkpoint.pt does not fit"):
        load_openvla(folder, **given)


def test_statistics_that_are_not_of_this_robot_are_named(folder) -> None:
    short = Statistics.of(np.random.default_rng(0).normal(size=(9, 3))).to_dict()
    tell(folder, lambda named: named.update(other={"action": short}))
    with pytest.raises(ValueError, match="of several sizes .7 of 'set_a', 7 of 'set_b', 3 of 'other'.: keep those"):
        load_policy(folder, statistics="other")
    tell(folder, lambda named: [one.update(proprio=one.pop("action")) for one in named.values()])
    with pytest.raises(ValueError, match="statistics of 'other', 'set_a', 'set_b' without those of the action"):
        load_policy(folder, statistics="set_a")
