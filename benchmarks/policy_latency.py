"""What one look of a policy takes, by stage, beside the plain path of transformers on the same weights in the same run.

    python -m benchmarks.policy_latency
    python -m benchmarks.policy_latency --head tokens --cameras 1
    python -m benchmarks.policy_latency --device cuda --dtype bfloat16 --towers large --language 7b --cameras 1

A DINOv2 and a SigLIP tower, fused, a Llama, and an action head: OpenVLA-OFT's (parallel) or OpenVLA's (tokens). The plain path
is what their authors' code does, with transformers' modules: each image through each tower's image processor and all
blocks of each tower, one image after another; hidden states of all layers and logits of all tokens; for tokens `generate`.
Actions are compared before anything is timed. "packed" has its weights laid out for the CPU; "graphs" is captured.
"""

import argparse
import copy
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoImageProcessor, AutoModel, LlamaConfig, LlamaForCausalLM

import vlm_vision as vv
from benchmarks.timing import interleaved, machine
from vlm_vision import presets
from vlm_vision.encoder import Origin
from vlm_vision.new_models import word_tokenizer
from vlm_vision.nn.vit import VisionTransformer
from vlm_vision.preprocess.spec import HALF, IMAGENET, Preprocess
from vlm_vision.robot.observation import Observation, PolicySpec
from vlm_vision.robot.statistics import Statistics
from vlm_vision.vla import VisionLanguageActionModel, VLAPolicy

SIDE = 224
SMALL = dict(embed_dim=384, depth=12, num_heads=6, mlp_dim=1536)
TOWERS: dict[str, dict[str, dict[str, Any]]] = {
    "small": {"dinov2_with_registers_small": {}, "siglip_so400m_patch14_224": SMALL},
    "large": {"dinov2_with_registers_large": {}, "siglip_so400m_patch14_224": {}},
}
LANGUAGE = {
    "small": dict(
        hidden_size=576, intermediate_size=1536, num_hidden_layers=12, num_attention_heads=9, num_key_value_heads=3
    ),
    "7b": dict(hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32),
}
INSTRUCTION = "put the red block into the open drawer"
STAGES = ("preprocess", "encode", "prefill", "decode")
Seconds = dict[str, float]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.policy_latency",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--head", default="parallel", choices=["parallel", "tokens"])
    parser.add_argument("--cameras", type=int, default=2)
    parser.add_argument("--towers", default="small", choices=TOWERS)
    parser.add_argument("--language", default="small", choices=LANGUAGE)
    parser.add_argument("--chunk", type=int, default=8, help="of the parallel head")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    args = parser.parse_args()
    policy = made(args)
    seen = observation(args.cameras)
    with tempfile.TemporaryDirectory() as folder:
        plain = Plain(policy, Path(folder), args.device)
    taken: dict[str, list[Seconds]] = {}

    def timed(name: str, act: Callable[[], Seconds]) -> Callable[[], object]:
        taken[name] = []
        return lambda: taken[name].append(act())

    contestants = {
        "plain": timed("plain", lambda: plain(seen)[1]),
        "ours": timed("ours", lambda: policy.act([seen]).seconds),
    }
    if args.device == "cpu":
        packed = copy.deepcopy(policy)
        packed.pack([seen])
        contestants["packed"] = timed("packed", lambda: packed.act([seen]).seconds)
    else:
        graphed = VLAPolicy(policy.model, graphs=1)
        contestants["graphs"] = timed("graphs", lambda: graphed.act([seen]).seconds)
    difference = float(np.abs(policy.act([seen]).values[0] - plain(seen)[0]).max())
    if difference > (1e-3 if args.dtype == "float32" else 0.2):
        raise SystemExit(f"actions differ by {difference:.1e}")
    took = interleaved(contestants, rounds=args.rounds, device=args.device)
    chunk = policy.spec.chunk
    print(f"{machine(args.device)}; {vars(args)}; largest difference of actions {difference:.0e}\n")
    print(f"| | {' | '.join(f'{stage} ms' for stage in STAGES)} | all ms | actions/s | plain / it |")
    print("|---" * (len(STAGES) + 4) + "|")
    for name, whole in took.items():
        stages = [statistics.median(one[stage] for one in taken[name][2:]) * 1e3 for stage in STAGES]
        cells = " | ".join(f"{stage:.1f}" for stage in stages)
        print(f"| {name} | {cells} | {whole * 1e3:.1f} | {chunk / whole:.1f} | {took['plain'] / whole:.2f} |")


def made(args: argparse.Namespace) -> VLAPolicy:
    """The policy, with random weights."""
    torch.manual_seed(0)
    dtype = getattr(torch, args.dtype)
    tokenizer = word_tokenizer([f"what action should the robot take to {INSTRUCTION} ?"])
    config = LlamaConfig(**LANGUAGE[args.language], vocab_size=32064, eos_token_id=tokenizer.eos_token_id)  # type: ignore[arg-type]
    with torch.device(args.device):
        torch.set_default_dtype(dtype)
        llm = LlamaForCausalLM(config)
        encoder = vv.FusedEncoder([tower(name, fields) for name, fields in TOWERS[args.towers].items()])
        torch.set_default_dtype(torch.float32)
    vlm = vv.VisionLanguageModel.attach(
        encoder.to(args.device, dtype), llm.to(args.device, dtype), projector="fused_mlp", tokenizer=tokenizer
    )
    cameras = tuple(f"camera{i}" for i in range(args.cameras))
    chunk = args.chunk if args.head == "parallel" else 1
    spec = PolicySpec(cameras, action_dim=7, chunk=chunk)
    rows = np.random.default_rng(0).normal(size=(100, 7))
    options = (
        {"style": "openvla_oft", "end_id": 2} if args.head == "parallel" else {"vocab_size": 32000, "end_id": None}
    )
    model = VisionLanguageActionModel.attach(
        vlm, args.head, spec=spec, statistics={"made": {"action": Statistics.of(rows)}}, head_options=options
    )
    return VLAPolicy(model.to(args.device))


def tower(name: str, fields: dict[str, Any]) -> vv.Encoder:
    """One encoder of a preset, tapped where OpenVLA taps it."""
    mean, std = IMAGENET if "dinov2" in name else HALF
    config = presets.config(name, image_size=(SIDE, SIDE), **fields)
    spec = Preprocess(
        resize="squash", resize_to=(SIDE, SIDE), resample="bicubic", crop=None, rescale=1 / 255, mean=mean, std=std
    )
    origin = Origin(presets.checkpoint_family(name), "transformers")
    return vv.Encoder(VisionTransformer(config), preprocess=spec, tap=vv.Tap(-2, norm=False), origin=origin).eval()


def observation(cameras: int) -> Observation:
    draw = np.random.default_rng(1)
    images = {f"camera{i}": draw.integers(0, 256, (256, 256, 3), dtype=np.uint8) for i in range(cameras)}
    return Observation(images, INSTRUCTION)


class Plain:
    """The same policy out of transformers' modules."""

    def __init__(self, policy: VLAPolicy, folder: Path, device: str):
        model = policy.model
        self.policy, self.vlm, self.head, self.device = policy, model.plain_vlm, model.head, torch.device(device)
        self.towers: list[Any] = []
        for i, one in enumerate(self.vlm.encoder.towers):  # type: ignore[union-attr]
            one.save_pretrained(folder / str(i), format="hf")
            theirs = AutoModel.from_pretrained(folder / str(i), dtype=one.dtype)
            seen = getattr(theirs, "vision_model", theirs).to(device).eval()
            self.towers.append(
                (seen, AutoImageProcessor.from_pretrained(folder / str(i)), one.config.num_prefix_tokens)
            )

    @torch.no_grad()
    def __call__(self, seen: Observation) -> tuple[np.ndarray, Seconds]:
        """Actions (chunk, 7), and seconds by stage."""
        seconds: Seconds = {}
        since = self._now()

        def took(stage: str) -> None:
            nonlocal since
            now = self._now()
            seconds[stage], since = now - since, now

        images = [Image.fromarray(np.asarray(one)) for one in seen.images.values()]
        pixels = [
            [processor(image, return_tensors="pt")["pixel_values"] for _, processor, _ in self.towers]
            for image in images
        ]
        text = self.policy.model.prompt.format(instruction=seen.instruction)
        ids = self.vlm.processor.tokenizer(text, return_tensors="pt")["input_ids"].to(self.device)  # type: ignore[union-attr]
        took("preprocess")
        tokens = []
        for own in pixels:
            parts = []
            for (model, _, prefix), part in zip(self.towers, own, strict=True):
                out = model(part.to(self.device, self.vlm.dtype), output_hidden_states=True)
                parts.append(out.hidden_states[-2][:, prefix:])
            tokens.append(self.vlm.projector(torch.cat(parts, dim=-1), (16, 16)))
        words: Any = self.vlm.get_input_embeddings()
        sequence = torch.cat([*tokens, words(ids)], dim=1)
        took("encode")
        llm: Any = self.vlm.language_model
        if self.head.name == "tokens":
            given = llm.generate(
                inputs_embeds=sequence, max_new_tokens=7, min_new_tokens=7, do_sample=False, pad_token_id=0
            )
            took("prefill")
            tokens_of: Any = self.head
            normal = tokens_of.tokens.decode(given[:, -7:]).unflatten(1, (1, 7))
        else:
            normal = self._parallel(llm, sequence)
            took("prefill")
            normal = self.head.decode(normal)
        values = self.policy.action.invert(normal).cpu().numpy()[0]
        took("decode")
        return values, seconds

    def _parallel(self, llm: Any, sequence: Tensor) -> Tensor:
        count = self.head.chunk * 7
        end = llm.get_input_embeddings()(torch.full((1, 1), 2, device=self.device))
        whole = torch.cat([sequence, sequence.new_zeros(1, count, sequence.shape[-1]), end], dim=1)
        mask = whole.new_zeros(1, 1, whole.shape[1], whole.shape[1])
        out = llm(inputs_embeds=whole, attention_mask=mask, output_hidden_states=True)
        return out.hidden_states[-1][:, -count - 2 : -2]

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


if __name__ == "__main__":
    main()
