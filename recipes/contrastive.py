"""Train an image tower and a text tower on images with captions: CLIP, SigLIP, or a text tower for a locked image tower.

    vlm-vision train contrastive --config contrastive_smoke
    torchrun --nproc_per_node 8 -m recipes.contrastive --config recipes/configs/siglip_b16.yaml \
        --data.train 'laion/{00000..00999}.tar'

Every step compares all pairs of all processes; the siglip loss holds a slice of them at a time, so that its memory does not
grow with the square of the batch. The next sample replaces one with a damaged image or
without a caption; such samples are counted. A stopped run resumes when the same command is run again.

Writes to `out`: model/ (for vlm_vision.load_pair, vlm_vision.load and transformers), metrics.json, config.yaml, logs/ for
TensorBoard, and checkpoints/ while it runs.
"""

import math
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch

import vlm_vision as vv
from vlm_vision.data.images.batches import ImageBatch, Skipped
from vlm_vision.data.images.samples import Samples
from vlm_vision.data.images.views import Crop, View, normalize_views
from vlm_vision.files import whole
from vlm_vision.new_models import Kind, check_pair, learn_tokenizer, new_pair
from vlm_vision.nn.fields import TextFields, ViTFields
from vlm_vision.pair import Pair
from vlm_vision.probe.features import image_embeddings, text_embeddings
from vlm_vision.probe.retrieval import Retrieval, ranking
from vlm_vision.train.check_data import check_images
from vlm_vision.train.command import parse_config, run_cli
from vlm_vision.train.image_data import image_batches, read_data
from vlm_vision.train.loop.step import Batch, Progress
from vlm_vision.train.results import write_results
from vlm_vision.train.settings import ImageData, Training
from vlm_vision.train.start import start_run
from vlm_vision.train.tasks.contrastive import ContrastiveLossSettings, PairWithLoss, contrastive_step, keep_scale


@dataclass(frozen=True, kw_only=True)
class PairSettings:
    """A new pair of towers, where `start` is empty."""

    kind: Kind = "siglip"
    """Architecture of the pair: siglip (attention pooling, a bias on the logits) or clip (class token, causal text)."""
    image_source: str = ""
    """Image tower to load, an argument of vlm_vision.load; empty for a new one."""
    image: ViTFields = field(default_factory=dict)
    """Fields of ViTConfig for an image tower with random weights: image_size, patch_size, embed_dim, depth, num_heads, mlp_dim."""
    text: TextFields = field(default_factory=dict)
    """Fields of TextConfig for the text tower, which has random weights: embed_dim, depth, num_heads, mlp_dim, context_length."""
    tokenizer: str = ""
    """Folder of a tokenizer; empty to learn one from the captions."""
    vocab_size: int = 8192
    """Most pieces of a tokenizer that is learned."""
    logit_bias: Literal["published", "batch"] = "published"
    """First value of siglip's bias: -10 (published), or log(1 / (batch_size - 1)), the share of right pairs (batch), which is
    better for small batches."""

    def __post_init__(self):
        if self.image_source and self.image:
            raise ValueError(
                f"towers.image_source {self.image_source} and towers.image are two image towers: set one of them"
            )
        check_pair(self.kind, self.image, self.text)


@dataclass(frozen=True, kw_only=True)
class ContrastiveConfig(Training):
    """One run."""

    data: ImageData
    """Images."""
    start: str = ""
    """Folder or hub id of a pair to start from; empty for a new one."""
    towers: PairSettings = PairSettings()
    """New pair of towers, where `start` is empty."""
    contrast: ContrastiveLossSettings = ContrastiveLossSettings()
    """Loss."""
    lock_image: bool = False
    """Freeze the image tower: locked-image tuning (Zhai et al. 2022, LiT)."""
    crop_scale: tuple[float, float] = (0.9, 1.0)
    """Least and greatest area of the random crop in training, as a share of the image."""
    flip: float = 0.0
    """Probability that an image is mirrored, left to right."""
    lr: float = 1e-3
    """Highest learning rate of both towers, scale and bias."""
    test_limit: int = 0
    """Test pairs for the retrieval test, the first ones; 0 for all."""

    REPLACES: ClassVar[dict[str, tuple[str, ...]]] = {
        "towers.image_source": ("towers.image",),
        "towers.image": ("towers.image_source",),
    }

    def __post_init__(self):
        super().__post_init__()
        if not self.start and not self.towers.text:
            raise ValueError("there is no text tower: set start or towers.text")
        if self.lock_image and not (self.start or self.towers.image_source):
            raise ValueError("lock_image needs a trained image tower: set start or towers.image_source")


def main(config: ContrastiveConfig) -> dict[str, Any]:
    """Run it. Returns what metrics.json holds, and the losses."""
    started = time.monotonic()
    accelerator = start_run(config)
    out = Path(config.out)
    train, test = read_data(config.data)
    check_images(accelerator, config.out, config.data, train, test)
    with accelerator.main_process_first():
        pair = pair_of(config, train)
    trains = ["text", "logits"] if config.lock_image else ["image", "text", "logits"]
    step = contrastive_step(config, accelerator, pair, config.contrast, rates=dict.fromkeys(trains, config.lr))

    # The loop.
    first_step, skipped = step.resume(), Skipped()
    batches = image_batches(
        config, accelerator, train, [view_of(config, pair)], first_step=first_step, needs=("caption",)
    )
    with Progress(step, name="contrastive", first_step=first_step) as progress:
        step.trained.train()
        for index, pieces in enumerate(batches, start=first_step):
            done = index + 1
            for piece in pieces:
                skipped.add(piece)
            progress.took(done, step(index, [tensors(piece, pair) for piece in pieces]))
            keep_scale(pair)
            if config.eval_every and done % config.eval_every == 0 and test is not None:
                with step.measured():
                    progress.note(done, figures(evaluate_pair(config, pair, test)))
            if done % config.checkpoint_every == 0 and done < config.steps:
                step.save(done)

    # The end: a folder that loads elsewhere, and what it is worth.
    pair = step.whole_model(lambda: PairWithLoss(pair_of(config, train), config.contrast)).get_submodule("pair")
    metrics: dict[str, Any] = {"first_step": first_step, "processes": accelerator.num_processes}
    bad = torch.as_tensor(accelerator.reduce(torch.tensor(skipped.bad, device=accelerator.device), "sum"))
    metrics |= {"skipped": int(bad), "final_loss": progress.losses[-1] if progress.losses else None}
    accelerator.end_training()
    if accelerator.is_main_process:
        assert isinstance(pair, Pair)
        with whole(out / "model") as staging:
            pair.save_pretrained(staging)
        metrics |= {"train_seconds": time.monotonic() - started}
        if test is not None:
            saved = vv.load_pair(str(out / "model"), device=accelerator.device)
            found = evaluate_pair(config, saved, test)
            metrics |= {"test": asdict(found)}
            print(table(found))
        write_results(config, "contrastive", metrics)
        print(f"{skipped}\n{metrics['train_seconds']:.0f} s to train; all is in {config.out}")
    return metrics | {"losses": progress.losses}


def pair_of(config: ContrastiveConfig, train: Samples) -> Pair:
    """The pair to train: loaded, or new with a tokenizer that is learned from the captions and saved in `out`."""
    if config.start:
        return vv.load_pair(config.start)
    towers, folder = config.towers, Path(config.towers.tokenizer or Path(config.out) / "tokenizer")
    if not towers.tokenizer and not folder.is_dir():
        if train.shards and train.shards.fetch:
            raise ValueError("a tokenizer cannot be learned from shards by URL: set towers.tokenizer")
        with whole(folder) as staging:
            captions = (sample.caption for sample in train)
            learn_tokenizer(captions, staging, kind=towers.kind, vocab_size=towers.vocab_size)
    image = vv.load(towers.image_source) if towers.image_source else towers.image
    if isinstance(image, vv.FusedEncoder):
        raise ValueError(f"towers.image_source {towers.image_source} holds several towers: expected one")
    bias = None if towers.logit_bias == "published" else -math.log(config.batch_size - 1)
    return new_pair(towers.kind, image=image, text=towers.text, tokenizer=folder, logit_bias=bias)


def view_of(config: ContrastiveConfig, pair: Pair) -> View:
    """The random view of an image in training.

    Raises:
        ValueError: a tower whose images are not squares of one size.
    """
    size = pair.image.preprocess.output_size
    if size is None or size[0] != size[1]:
        raise ValueError(
            f"the image tower takes images of {size or 'any size'}: expected one square size, because crops are square"
        )
    return View(crop=Crop(size[0], config.crop_scale), flip=config.flip)


def tensors(drawn: ImageBatch, pair: Pair) -> Batch:
    """Pixels and token ids of a batch."""
    (views,) = drawn.views
    pixels = normalize_views(views.to(pair.image.device), pair.image.preprocess)
    return {"pixels": pixels, "ids": pair.text.tokenizer(drawn.captions)}


def evaluate_pair(config: ContrastiveConfig, pair: Pair, test: Samples) -> Retrieval:
    """Test images and captions, ranked for each other; all images of a caption are correct for it."""
    shown = test[: config.test_limit or None]
    place = {caption: i for i, caption in enumerate(dict.fromkeys(sample.caption for sample in shown))}
    images, texts = (
        image_embeddings(pair, [sample.image for sample in shown]),
        text_embeddings(pair, list(place)),
    )
    of_image, of_text = torch.tensor([place[sample.caption] for sample in shown]), torch.arange(len(place))
    return Retrieval(
        image_to_text=ranking(images, texts, of_image, of_text),
        text_to_image=ranking(texts, images, of_text, of_image),
    )


def figures(found: Retrieval) -> dict[str, float]:
    """Metrics for the tracker."""
    ways = {"image_to_text": found.image_to_text, "text_to_image": found.text_to_image}
    return {f"{name}/recall_at_{k}": share for name, way in ways.items() for k, share in way.recall.items()}


def table(found: Retrieval) -> str:
    """Recall in both directions, with that of a random order."""
    lines = [f"{'':15} {'R@1':>7} {'R@5':>7} {'R@10':>7} {'median rank':>12}"]
    for name, way in (("image to text", found.image_to_text), ("text to image", found.text_to_image)):
        lines.append(f"{name:15} {' '.join(f'{share:7.1%}' for share in way.recall.values())} {way.median_rank:12.0f}")
        lines.append(f"{'  by chance':15} {' '.join(f'{share:7.1%}' for share in way.chance.values())}")
    return "\n".join(lines)


def parse(arguments: list[str] | None = None) -> ContrastiveConfig:
    """A typed Config from --config FILE.yaml and --key value."""
    return parse_config(ContrastiveConfig, "recipes.contrastive", __doc__, arguments)


if __name__ == "__main__":
    run_cli("recipes.contrastive", lambda: main(parse()))
