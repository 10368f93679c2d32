"""Policies of OpenVLA and OpenVLA-OFT, against golden tensors and against their computation written out."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn
from transformers import PreTrainedTokenizerFast

from vlm_vision.robot.action_tokens import ActionTokens
from vlm_vision.robot.normalize import Normalizer
from vlm_vision.robot.observation import Observation
from vlm_vision.robot.statistics import read_statistics
from vlm_vision.vla import VLAPolicy, load_policy
from vlm_vision.vla.openvla import load_openvla

WORDS = "In : What action should the robot take to pick up cup ? Out".lower().split()


@pytest.fixture
def folder(shared, tmp_path):
    """The golden OpenVLA with a tokenizer of 320 words, `<s>` first, as Llama's."""
    path = tmp_path / "openvla"
    shutil.copytree(shared / "golden" / "openvla_fused_bf16", path)
    words = ["<unk>", "<s>", "</s>", *WORDS, *(f"w{i}" for i in range(320 - 3 - len(WORDS)))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )
    fast.save_pretrained(path)
    return path


def observation(seed: int = 0, cameras: tuple[str, ...] = ("image",), state: int = 0) -> Observation:
    rng = np.random.default_rng(seed)
    images = {name: rng.integers(0, 256, (90, 70, 3), dtype=np.uint8) for name in cameras}
    return Observation(images, "pick up the cup", rng.normal(size=state) if state else None)


def test_action_ids_become_the_actions_of_the_reference(shared) -> None:
    golden = load_file(shared / "golden" / "openvla_fused_bf16" / "golden.safetensors")
    named = read_statistics(shared / "golden" / "openvla_fused_bf16")
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


def test_a_policy_without_a_tokenizer_is_refused(shared) -> None:
    with pytest.raises(ValueError, match="has no tokenizer"):
        load_policy(shared / "golden" / "openvla_fused_bf16", statistics="set_a")


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


def test_oft_acts_as_its_computation_written_out(folder) -> None:
    torch.manual_seed(0)
    chunk, width, cameras = 2, 48, ("full", "wrist")
    resnet, proprio = (
        Resnet(7 * width, width, 7),
        nn.Sequential(nn.Linear(5, width), nn.GELU(), nn.Linear(width, width)),
    )
    torch.save(
        {f"module.model.{k}": v for k, v in resnet.state_dict().items()}, folder / "action_head--9_checkpoint.pt"
    )
    names = {"0": "fc1", "2": "fc2"}
    state = {f"module.{names[k[0]]}{k[1:]}": v for k, v in proprio.state_dict().items()}
    torch.save(state, folder / "proprio_projector--9_checkpoint.pt")
    config = json.loads((folder / "config.json").read_text())
    for one in config["norm_stats"].values():
        one["proprio"] = {"q01": [-2.0] * 5, "q99": [2.0] * 5}
    (folder / "config.json").write_text(json.dumps(config))

    policy = VLAPolicy(load_openvla(folder, cameras=cameras, chunk=chunk), "set_a")
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
        told = proprio(torch.from_numpy(seen.state / 2).clamp(-1, 1).float())[None, None]
        slots, stop = torch.zeros(1, 7 * chunk, width), words(torch.tensor([[2]]))
        sequence = torch.cat([words(ids[:, :1]), patches, told, words(ids[:, 1:]), slots, stop], dim=1)
        everything = torch.zeros(1, 1, sequence.shape[1], sequence.shape[1])
        out = vlm.language_model(inputs_embeds=sequence, attention_mask=everything, output_hidden_states=True)
        start = patches.shape[1] + 1 + ids.shape[1] - 1
        hidden = out.hidden_states[-1][:, start : start + 7 * chunk]
        normal = resnet(hidden.reshape(1, chunk, 7 * width))[0]
    wanted = Normalizer("quantiles", read_statistics(folder)["set_a"]["action"]).invert(normal)
    np.testing.assert_allclose(found, wanted.numpy(), rtol=1e-4, atol=1e-5)

    policy.model.save_pretrained(folder.parent / "saved")
    again = load_policy(folder.parent / "saved", statistics="set_a")
    np.testing.assert_array_equal(again.act([seen]).values[0], found)

    with pytest.raises(ValueError, match="tells neither its cameras nor its chunk"):
        load_policy(folder, statistics="set_a")
    (folder / "proprio_projector--9_checkpoint.pt").unlink()
    torch.save({"module.model.fc1.weight": torch.zeros(3, 3)}, folder / "action_head--10_checkpoint.pt")
    with pytest.raises(ValueError, match="action_head--10_checkpoint.pt does not fit"):
        load_openvla(folder, cameras=cameras, chunk=chunk)
