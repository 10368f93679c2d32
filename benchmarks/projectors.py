"""Every projector on one task: what it costs, and what a language model learns through it.

    python -m benchmarks.projectors --encoder FOLDER

Cost: on the 24 x 24 grid of a large tower (1024 channels) into a language model 2048 wide; milliseconds of one image's
forward. Task: easy-VQA with the tokens of a real frozen tower, encoded once, and a small Llama from nothing that learns
together with the projector; every row sees the same batches. Answers count as right when greedy decoding gives them;
"shuffled" is the same model shown other images.
"""

import argparse
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

import torch
from tqdm.auto import tqdm

import projectors
import vlm_vision as vv
from benchmarks.timing import interleaved, machine
from vlm_vision.data.conversations.collate import Collator
from vlm_vision.data.conversations.records import Conversation, easy_vqa
from vlm_vision.measure.answers import TeacherForcedCounts, shuffled_images, teacher_forced
from vlm_vision.new_models import new_language_model, word_tokenizer
from vlm_vision.tokens.training.build import build_features
from vlm_vision.tokens.training.features import StoredFeatures
from vlm_vision.train.loop.sampler import StepBatches
from vlm_vision.train.loss import answer_loss, num_answer_tokens
from vlm_vision.train.optim.groups import parameter_groups, warmup_cosine

OPTIONS = {
    "perceiver": {"num_latents": 16, "num_heads": 4, "num_kv_heads": 4, "head_dim": 32},
    "qformer": {"num_queries": 16, "width": 128, "depth": 4},
    "c_abstractor": {"num_queries": 16, "hidden_dim": 128, "depth": 1},
}
"""For the task, whose language model is 128 wide: 16 tokens, as of those that take a fourth of 64, and sizes to match."""
KINDS = ("color", "shape", "yes/no")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.projectors", description=__doc__)
    parser.add_argument(
        "--encoder", required=True, help="folder or hub id of the tower; a DINOv2 ViT-S/14 for the figures"
    )
    parser.add_argument("--layer", type=int, default=8, help="block whose tokens are used, without norm")
    parser.add_argument("--side", type=int, default=112, help="pixels")
    parser.add_argument("--features", default="runs/features", help="where the tower's tokens are kept")
    parser.add_argument("--steps", type=int, default=400, help="0 for the cost alone")
    parser.add_argument("--batch", type=int, default=64, help="questions of a step")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--test", type=int, default=2000, help="test questions")
    parser.add_argument("--names", nargs="+", default=list(projectors.PROJECTORS), choices=list(projectors.PROJECTORS))
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    print(f"{machine(options.device)}\n")
    costs(options.names, options.device)
    if not options.steps:
        return
    encoder = vv.load(options.encoder, tap=vv.Tap(options.layer, norm=False), image_size=options.side)
    train, test = easy_vqa("train"), easy_vqa("test")
    test = test[:: max(1, len(test) // options.test)][: options.test]
    paths = [path for one in (*train, *test) for path in one.images]
    features = build_features(Path(options.features), encoder.to(options.device), paths)
    print(f"\n{options.steps} steps of {options.batch} questions, {len(test)} test questions\n")
    print(
        "| projector | tokens of 64 | parameters | color | shape | yes/no | all | all, shuffled |\n|---|---|---|---|---|---|---|---|"
    )
    for name in options.names:
        model = attached(encoder, name, train).to(options.device)
        fit(model, features, train, options)
        right, shuffled = answered(model, features, test, options.batch)
        size = model.encoder.preprocess.output_size
        assert size is not None
        cells = [str(model.num_image_tokens(*size)), f"{model.projector.num_parameters / 1e6:.2f} M"]
        cells += [f"{right[kind].accuracy:.1%}" for kind in KINDS]
        cells += [f"{sum(found.values(), TeacherForcedCounts()).accuracy:.1%}" for found in (right, shuffled)]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def costs(names: list[str], device: str) -> None:
    """Tokens, parameters, operations and time at the size of a large tower."""
    grid, tokens = (24, 24), torch.randn(1, 576, 1024, device=device)
    built = {name: projectors.build(name, in_dim=1024, out_dim=2048).to(device).eval() for name in names}
    with torch.inference_mode():
        took = interleaved({name: partial(one, tokens, grid) for name, one in built.items()}, rounds=9, device=device)
    print("| projector | tokens of 576 | parameters | GFLOP | ms |\n|---|---|---|---|---|")
    for name, one in built.items():
        size, work = one.num_parameters / 1e6, one.flops(grid) / 1e9
        print(f"| {name} | {one.num_tokens(grid)} | {size:.1f} M | {work:.1f} | {took[name] * 1e3:.1f} |")


def attached(encoder: vv.Encoder | vv.FusedEncoder, name: str, train: list[Conversation]) -> vv.VisionLanguageModel:
    """The tower, a new projector and a new language model of 0.9 M parameters; the same seed for all."""
    torch.manual_seed(0)
    tokenizer = word_tokenizer(text for one in train for turn in one.turns for text in turn)
    fields = dict(
        model_type="llama",
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        initializer_range=0.09,
        tie_word_embeddings=True,
    )
    llm = new_language_model(fields, tokenizer)
    projector = projectors.build(name, in_dim=encoder.embed_dim, out_dim=128, **OPTIONS.get(name, {}))
    return vv.VisionLanguageModel.attach(encoder, llm, projector=projector, tokenizer=tokenizer)


def fit(
    model: vv.VisionLanguageModel, features: StoredFeatures, train: list[Conversation], options: argparse.Namespace
) -> None:
    """Train projector and language model."""
    assert model.processor is not None
    model.encoder.requires_grad_(False)
    collate = Collator(model.processor, features=features, pack_length=512)
    parts = [(model.projector, options.lr), (model.language_model, options.lr)]
    optimizer = torch.optim.AdamW(parameter_groups(parts, weight_decay=0.05), betas=(0.9, 0.95))
    schedule = warmup_cosine(optimizer, warmup_steps=options.steps // 20, steps=options.steps)
    batches = StepBatches(len(train), batch_size=options.batch, micro_batch_size=options.batch, steps=options.steps)
    model.train()
    for rows in tqdm(batches, desc=type(model.projector).__name__, leave=False):
        batch = {key: value.to(model.device) for key, value in collate([train[row] for row in rows]).items()}
        (answer_loss(model, batch) / num_answer_tokens(batch)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()


def answered(
    model: vv.VisionLanguageModel, features: StoredFeatures, test: list[Conversation], batch_size: int
) -> tuple[dict[str, TeacherForcedCounts], dict[str, TeacherForcedCounts]]:
    """Right answers by kind of question, with the right images and with exchanged ones."""
    assert model.processor is not None
    collate = Collator(model.processor, features=features, pack_length=512)
    other = shuffled_images([one.images for one in test], seed=0)
    shuffled = [replace(one, images=images) for one, images in zip(test, other, strict=True) if images is not None]

    def count(asked: list[Conversation]) -> dict[str, TeacherForcedCounts]:
        found = {}
        for kind in KINDS:
            rows = iter(one for one in asked if one.kind == kind)
            found[kind] = TeacherForcedCounts()
            while chosen := list(islice(rows, batch_size)):
                batch = {key: value.to(model.device) for key, value in collate(chosen).items()}
                found[kind] += teacher_forced(model, batch)
        return found

    return count(test), count(shuffled)


if __name__ == "__main__":
    main()
