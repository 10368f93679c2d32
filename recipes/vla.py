"""Train a vision-language model to act: from recorded episodes to a policy.

    vlm-vision train vla --config vla_metaworld
    accelerate launch -m recipes.vla --config recipes/configs/vla_metaworld.yaml
    vlm-vision train vla --config vla_oft --data.train '{"mine": "FOLDER"}'

Encoder, projector and language model each train in full, by LoRA, or not at all; the action head and the state's token
always do. Training uses random crops of the images, acting the center crop of the same area. A stopped run resumes when the same
command is run again. A new run may `start` at the model/ of another: it continues to train the head where both are of one kind
and size; settings other than weights (prompt, area, normalization, statistics) are those of the new run.

Writes to `out`: model/ (for vlm_vision.vla.load_policy; without its head for AutoModelForImageTextToText), metrics.json,
config.yaml, logs/ for TensorBoard, and checkpoints/ while it runs. `vlm-vision train vla_eval --policy out/model` lets it act.
"""

import random
import time
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from accelerate import Accelerator
from peft import PeftModel
from torch import Tensor

from vlm_vision.checkpoints.hub import resolve
from vlm_vision.data.check.robot import check_robot
from vlm_vision.data.images.views import Color
from vlm_vision.data.lerobot import RobotDataset, read_dataset
from vlm_vision.fused import add_film, film_dim
from vlm_vision.measure.actions import image_warning, open_loop
from vlm_vision.robot.normalize import Kind
from vlm_vision.train.adapters import merge
from vlm_vision.train.check_data import DataCheck, allow
from vlm_vision.train.command import parse_config, run_cli
from vlm_vision.train.loop.step import Progress
from vlm_vision.train.results import write_results
from vlm_vision.train.settings import Option, Training, VlmSettings, check_frozen
from vlm_vision.train.start import start_run
from vlm_vision.train.stored_tokens import needs_checkpoint, restore_tower, stored_features
from vlm_vision.train.tasks.vla import action_batches, vla_step
from vlm_vision.train.trainable import set_trainable, trainable_table
from vlm_vision.train.vlm import build_vlm
from vlm_vision.vla.batch import ActionCollator
from vlm_vision.vla.crop import OPENVLA_COLOR, CropConfig
from vlm_vision.vla.heads.build import check_head_options
from vlm_vision.vla.model import POLICY, PROMPT, VisionLanguageActionModel
from vlm_vision.vla.recordings import Recordings


@dataclass(frozen=True, kw_only=True)
class RobotData:
    """Recorded episodes, and the parts of them that the policy reads."""

    train: dict[str, str]
    """Name -> LeRobotDataset v3, a folder or hub id. Statistics are saved by name; the policy chooses them by it when it acts."""
    cameras: dict[str, str] = field(default_factory=dict)
    """Camera name of the policy -> name in the data, in the order in which the policy reads images; empty for all cameras."""
    state: str = ""
    """Feature of the data that is the robot's state, or several joined by " + "; empty for observation.state."""
    action: str = ""
    """Feature of the data that is the action, or several joined by " + "; empty for action."""
    test_episodes: int = 0
    """Episodes of each data set, drawn at random, to measure on and not to train on."""
    memory: int = 256 * 2**20
    """Bytes of PNG images of a data set that each process keeps in memory."""
    read_state: bool = True
    """Let the policy read the robot's state."""
    statistics: Literal["exact", "stored"] = "exact"
    """Statistics that normalize actions and state: exact ones of the training episodes, or those that a data set stores, as runs of
    version 0.1.0 use them."""
    raw_actions: tuple[int, ...] = ()
    """Indices of action dimensions that are not normalized, such as a gripper that is -1 or 1."""
    tokens: str = ""
    """Token store with the patch tokens of every frame, written by `vlm-vision tokens` from one data set with the encoder of the
    run, which is then not loaded for training; empty to encode the images."""


@dataclass(frozen=True, kw_only=True)
class VlaConfig(VlmSettings, Training):
    """One run."""

    data: RobotData
    """Recorded episodes."""
    head: Literal["tokens", "parallel", "flow"] = "parallel"
    """Action head: discrete tokens (OpenVLA), a chunk in one forward pass (parallel, OpenVLA-OFT), or flow matching (flow, pi0)."""
    head_options: dict[str, Option] = field(default_factory=dict)
    """Options of `head`, such as {hidden_dim: 256} of parallel; another head starts from its own defaults."""
    chunk: int = 8
    """Actions that the policy predicts at once."""
    normalization: Kind = "quantiles"
    """Normalization of actions and state by the statistics of the data."""
    prompt: str = PROMPT
    """Prompt of the language model, with {instruction} for the task."""
    area: float = 0.9
    """Share of an image's area that the policy sees: a random crop in training, the center crop when it acts."""
    color: bool = True
    """Change brightness, contrast, saturation and hue at random in training, as OpenVLA does."""
    film: bool = False
    """Condition the encoder on the instruction (FiLM), as OpenVLA-OFT does on ALOHA."""
    train_vision: Literal["frozen", "lora", "full"] = "full"
    """Training of the encoder: frozen, LoRA adapters (lora), or all its weights (full)."""
    train_projector: Literal["frozen", "full"] = "full"
    """Training of the projector: frozen, or all its weights (full)."""
    train_language: Literal["frozen", "lora", "full"] = "lora"
    """Training of the language model: frozen, LoRA adapters (lora), or all its weights (full)."""
    lora_rank: int = 32
    """Rank of LoRA adapters."""
    lora_alpha: int = 16
    """Scale of LoRA adapters: their output is multiplied by lora_alpha / lora_rank."""
    lora_dropout: float = 0.0
    """Dropout probability of the input of LoRA adapters."""
    lr_vision: float = 1e-4
    """Highest learning rate of the encoder or its adapters."""
    lr_projector: float = 5e-4
    """Highest learning rate of the projector."""
    lr_language: float = 5e-4
    """Highest learning rate of the language model or its adapters."""
    lr_action: float = 5e-4
    """Highest learning rate of the action head and the state's token."""
    new_head: bool = False
    """Initialize the action head and the state's token again where `start` is a policy, instead of continuing from its own."""
    eval_limit: int = 256
    """Time steps of test episodes per measurement, spread evenly."""
    eval_batch_size: int = 64
    """Time steps of test episodes per forward pass."""

    REPLACES: ClassVar[dict[str, tuple[str, ...]]] = VlmSettings.REPLACES | {"head": ("head_options",)}

    def __post_init__(self):
        for group in (Training, VlmSettings):
            group.__post_init__(self)
        check_head_options(self.head, self.head_options)
        self._at_least(1, "chunk", "lora_rank", "eval_batch_size", "eval_limit")
        if self.film and self.train_vision == "frozen":
            raise ValueError("film needs an encoder that trains, and train_vision is frozen: choose train_vision lora")
        needed = {"train_vision frozen": self.train_vision == "frozen", "area 1": self.area == 1}
        check_frozen(self.data.tokens, needed | {"color false": not self.color, "film false": not self.film})
        if not self.data.train:
            raise ValueError('data.train is empty: set it to {"NAME": "FOLDER"}')
        if self.data.tokens and len(self.data.train) > 1:
            raise ValueError(
                f"data.tokens names images by episode, frame and camera, which the data sets {', '.join(self.data.train)} share: train "
                "on one of them, or leave data.tokens out"
            )


def main(config: VlaConfig) -> dict[str, Any]:
    """Run it. Returns what metrics.json holds, and the losses."""
    started = time.monotonic()
    accelerator = start_run(config)
    train, test = read_data(config)
    check_robots(accelerator, config, train)
    accelerator.print(f"{len(train)} time steps to train on, {len(test)} to test on")
    model = build_policy(config, train)
    accelerator.print(trainable_table(model.vlm))
    color: Color | None = OPENVLA_COLOR if config.color else None
    features = None
    if config.data.tokens:
        names = chain(train.image_names(), test.image_names())
        features = stored_features(config.data.tokens, model.plain_vlm, names)
    collate = ActionCollator(model, color=color, features=features)
    plain = ActionCollator(model, center=True, features=features)
    rates = {"vision": config.lr_vision, "projector": config.lr_projector}
    rates |= {"language": config.lr_language, "action": config.lr_action}
    step = vla_step(config, accelerator, model, rates=rates)

    # The loop.
    first_step = step.resume()
    with Progress(step, name="vla", first_step=first_step) as progress:
        looked_at = [test[i] for i in np.linspace(0, len(test) - 1, min(len(test), config.eval_limit)).astype(int)]
        learning = time.monotonic()
        step.trained.train()
        for index, batch in enumerate(
            action_batches(config, accelerator, train, collate, first_step=first_step), start=first_step
        ):
            done = index + 1
            progress.took(done, step(index, batch))
            if looked_at and config.eval_every and done % config.eval_every == 0:
                with step.measured():
                    progress.note(
                        done, open_loop(accelerator, step.model, looked_at, plain, batch_size=config.eval_batch_size)
                    )
            if needs_checkpoint(config, done, config.data.tokens):
                step.save(done)
    metrics: dict[str, Any] = {"first_step": first_step, "processes": accelerator.num_processes}
    metrics |= {"train_seconds": time.monotonic() - learning, "moments": len(train)}

    # The end: a policy, and how near it comes to what was recorded.
    trained = step.whole_model(lambda: build_policy(config, train))
    if accelerator.is_main_process:
        assert isinstance(trained, VisionLanguageActionModel)
        if features is not None:
            restore_tower(trained.vlm, config, features)
        save(trained, Path(config.out) / "model", plain([(train[0], 0)]))
    accelerator.wait_for_everyone()
    accelerator.free_memory()
    if looked_at:
        saved = VisionLanguageActionModel.from_pretrained(Path(config.out) / "model").to(accelerator.device)
        found = open_loop(accelerator, saved, looked_at, plain, batch_size=config.eval_batch_size)
        lines = [f"{name:24} {value:.4f}" for name, value in found.items()]
        warning = image_warning(found)
        accelerator.print("\n".join(["mean error of normalized actions, -1 to 1:", *lines, warning]).rstrip())
        metrics |= {**found, "warning": warning}
    accelerator.end_training()
    metrics |= {"seconds": time.monotonic() - started, "final_loss": progress.losses[-1] if progress.losses else None}
    if accelerator.is_main_process:
        write_results(config, "vla", metrics)
        print(f"{metrics['seconds']:.0f} s; model and metrics.json in {config.out}")
    return metrics | {"losses": progress.losses}


def read_data(config: VlaConfig) -> tuple[Recordings, Recordings]:
    """Time steps to train on, and those of the test episodes, which may be none."""
    data = config.data
    learned, kept = {}, {}
    for name, source in data.train.items():
        numbers = {"state": data.state, "action": data.action}
        read = partial(read_dataset, source, cameras=data.cameras or None, memory=data.memory, **numbers)
        parts = split(read(), data.test_episodes)
        learned[name] = read(episodes=parts[0])
        if parts[1]:
            kept[name] = read(episodes=parts[1])
    made = partial(
        Recordings,
        chunk=config.chunk,
        read_state=data.read_state,
        raw_actions=data.raw_actions,
        exact=data.statistics == "exact",
        decode=not data.tokens,
    )
    return made(learned), made(kept)


def check_robots(accelerator: Accelerator, config: VlaConfig, train: Recordings) -> None:
    """Print what the data sets hold, and the share that normalization clips; raise ValueError for an error."""
    look, statistics = DataCheck(accelerator, config.out), train.statistics
    settings = {**asdict(config.data), "normalization": config.normalization}
    for name, dataset in train.datasets.items():
        check = partial(check_robot, name, dataset, normalization=config.normalization, statistics=statistics[name])
        allow(look(name, str(dataset.folder), settings, check), len(dataset), 0.0)


def split(dataset: RobotDataset, test: int) -> tuple[list[int], list[int]]:
    """Numbers of the training episodes and of the test episodes, always the same.

    Raises:
        ValueError: too few episodes.
    """
    numbers = [episode.index for episode in dataset.episodes]
    if test < 0 or len(numbers) <= test:
        raise ValueError(
            f"{dataset.folder} has {len(numbers)} episodes and data.test_episodes is {test}: leave some for training"
        )
    kept = random.Random(0).sample(numbers, test)
    return sorted({*numbers} - {*kept}), sorted(kept)


def build_policy(config: VlaConfig, train: Recordings) -> VisionLanguageActionModel:
    """The vision-language model with an action head, its groups frozen or not.

    Raises:
        ValueError: a policy to start from whose head or state differs from the settings, without `new_head`.
    """
    texts = [config.prompt, *train.tasks]
    vlm = build_vlm(config, texts, gradient_checkpointing=config.gradient_checkpointing, tower=not config.data.tokens)
    if config.film and not film_dim(vlm.encoder):
        add_film(vlm.encoder, vlm.projector.out_dim)
    model = VisionLanguageActionModel.attach(
        vlm,
        config.head,
        spec=train.spec,
        statistics=train.statistics,
        head_options=config.head_options,
        normalization=config.normalization,
        prompt=config.prompt,
        crop_config=CropConfig(config.area),
    )
    if config.start and not config.new_head:
        folder = resolve(config.start, None)
        if (folder / POLICY).is_file():
            model.start_from(folder)
    model.vlm = set_trainable(
        vlm,
        vision=config.train_vision,
        projector=config.train_projector,
        language=config.train_language,
        lora_rank=config.lora_rank,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
    )
    return model


def save(model: VisionLanguageActionModel, folder: Path, batch: dict[str, Tensor]) -> None:
    """Write the policy; adapters are merged once that is found to change nothing on a batch."""
    if isinstance(model.vlm, PeftModel):
        model.cpu()  # merging holds a second copy
        given = {
            name: batch[name]
            for name in ("input_ids", "attention_mask", "pixel_values", "image_sizes", "patch_tokens")
            if name in batch
        }
        if film_dim(model.plain_vlm.encoder):
            given["condition"] = model.film_condition(batch)
        model.vlm = merge(model.vlm, given)
    model.save_pretrained(folder)


def parse(arguments: list[str] | None = None) -> VlaConfig:
    """A typed Config from --config FILE.yaml and --key value."""
    return parse_config(VlaConfig, "recipes.vla", __doc__, arguments)


if __name__ == "__main__":
    run_cli("recipes.vla", lambda: main(parse()))
