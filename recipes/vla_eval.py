"""Success of a policy in Meta-World or LIBERO, in closed loop, compared with blank images and shuffled instructions.

    vlm-vision train vla_eval --config vla_eval_metaworld --policy FOLDER --statistics NAME
    vlm-vision train vla_eval --policy expert --tasks '[reach-v3, push-v3]' --episodes 20 --controls '[right]'
    vlm-vision train vla_eval --policy FOLDER --statistics NAME --tasks '[libero_spatial/0, libero_spatial/1]' --size 256

`expert` runs Meta-World's scripted experts through the same loop, the upper bound; `random` draws actions, the lower
bound. Every policy gets the same seeds, which no recording uses. Prints a table with 95 % intervals and writes metrics.json,
config.yaml, contact_sheet.png and videos/ to `out`. One process.
"""

import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml
from tqdm import tqdm

from vlm_vision.files import check_folder, write_json
from vlm_vision.measure.contact_sheet import contact_sheet
from vlm_vision.robot.observation import PolicySpec
from vlm_vision.robot.policy import Policy
from vlm_vision.sim.baselines import RandomPolicy, ScriptedExpert
from vlm_vision.sim.controls import blank_images, shuffled_instructions
from vlm_vision.sim.environment import EVALUATION_SEED, Environment
from vlm_vision.sim.instructions import INSTRUCTIONS
from vlm_vision.sim.libero import VIEWS, Libero, first_states, instruction
from vlm_vision.sim.metaworld import HORIZON, MetaWorld
from vlm_vision.sim.outcomes import Outcome, Rollouts, Trial
from vlm_vision.sim.rollout import rollout
from vlm_vision.sim.video import EpisodeVideos
from vlm_vision.train.command import parse_config, run_cli

Control = Literal["right", "blank", "shuffled"]


@dataclass(frozen=True, kw_only=True)
class VlaEvalConfig:
    """One evaluation."""

    policy: str
    """Folder of a policy that recipes.vla or save_pretrained wrote; or expert, for Meta-World's scripted experts; or random."""
    statistics: str = ""
    """Name of the data set whose statistics the policy uses; empty where it has only one."""
    policy_options: dict[str, Any] = field(default_factory=dict)
    """Arguments of vlm_vision.vla.load_policy; for OpenVLA-OFT those that its folders do not hold, as {cameras: [agentview, wrist],
    chunk: 8, normalization: quantiles, evaluation: openvla_oft, crop: true}."""
    out: str = "runs/vla_eval"
    """Folder for metrics.json, config.yaml, contact_sheet.png and videos."""
    tasks: tuple[str, ...] = ("reach-v3", "push-v3", "drawer-open-v3", "button-press-topdown-v3", "window-open-v3")
    """Tasks of Meta-World by name, or all for its fifty; or of LIBERO, as libero_spatial/0. Not both, because their robots differ."""
    episodes: int = 20
    """Episodes of each task and control."""
    controls: tuple[Control, ...] = ("right", "blank", "shuffled")
    """Controls to run: right (nothing changed), blank (gray images), shuffled (the instruction of another task)."""
    cameras: dict[str, str] = field(default_factory=dict)
    """Camera name of the policy -> camera of the scene; empty where the names are the same."""
    size: int = 128
    """Side of the images in pixels, as in the recordings."""
    execute: int = 0
    """Actions of a predicted chunk that are executed before the next prediction; 0 for all."""
    horizon: int = 0
    """Most steps of an episode, which has failed after them; 0 for the benchmark's own number."""
    at_once: int = 8
    """Environments that run together, and observations per forward pass."""
    films: int = 2
    """Episodes of each task that are saved as videos."""
    film_size: int = 256
    """Side of the videos in pixels."""
    device: str = "cpu"
    """Device for the policy, such as cpu or cuda."""
    seed: int = EVALUATION_SEED
    """Seed of the first episode of each task, at least 10000; recordings use smaller ones."""

    def __post_init__(self):
        if self.tasks == ("all",):
            object.__setattr__(self, "tasks", tuple(INSTRUCTIONS))
        if self.episodes < 1 or not self.tasks or not self.controls:
            raise ValueError(
                f"episodes is {self.episodes}, tasks {list(self.tasks)}, controls {list(self.controls)}: expected at least one of each"
            )
        if len(set(self.tasks)) < len(self.tasks) or len(set(self.controls)) < len(self.controls):
            raise ValueError(f"tasks are {list(self.tasks)}, controls {list(self.controls)}: name each once")
        if self.seed < EVALUATION_SEED:
            raise ValueError(
                f"seed is {self.seed}: expected at least {EVALUATION_SEED}, because recordings use smaller ones"
            )
        if "shuffled" in self.controls and len(set(self.tasks)) < 2:
            raise ValueError(
                f"there is one task, {self.tasks[0]}, and the control shuffled needs two: add a task, or leave it out"
            )


def main(config: VlaEvalConfig) -> dict[str, Any]:
    """Run it. Returns what metrics.json holds."""
    started, out = time.monotonic(), Path(config.out)
    check_folder(out)
    others = check_config(config)
    policy = load_checked_policy(config)
    out.mkdir(parents=True, exist_ok=True)
    (out / "config.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(asdict(config))), sort_keys=False))
    found: dict[str, Rollouts] = {}
    metrics: dict[str, Any] = {"policy": config.policy}
    with EpisodeVideos(out / "videos", per_task=config.films, side=config.film_size) as films:
        for control in config.controls:
            watched = None if found else films
            found[control] = run_control(config, policy, control, others if control == "shuffled" else None, watched)
            metrics |= {control: found[control].to_dict(), "seconds": time.monotonic() - started}
            write_json(out / "metrics.json", metrics)
    print(table(found))
    if said := advice(found):
        print(said)
    if films.ends:
        rows = [(frame, end.instruction, f"{end.steps} steps", end.success) for end, frame in films.ends]
        title = f"{config.policy}, {config.controls[0]}"
        contact_sheet(out / "contact_sheet.png", rows, marks=("done", "failed"), title=title)
    print(f"{metrics['seconds']:.0f} s; metrics.json, contact_sheet.png and videos in {out}")
    return metrics


def load_checked_policy(config: VlaEvalConfig) -> Policy:
    """The policy. Raises ValueError for a folder that holds none."""
    if config.policy == "expert":
        return ScriptedExpert(tuple(config.cameras or ("corner4",)))
    if config.policy == "random":
        libero = is_libero(config.tasks[0])
        cameras = tuple(config.cameras or (VIEWS if libero else ("corner4",)))
        return RandomPolicy(PolicySpec(cameras, action_dim=7 if libero else 4), config.seed)
    from vlm_vision.vla import load_policy

    try:
        return load_policy(config.policy, statistics=config.statistics, device=config.device, **config.policy_options)
    except TypeError as error:
        if not config.policy_options:
            raise
        raise ValueError(f"policy_options are {config.policy_options}, which do not fit ({error})") from None


def check_config(config: VlaEvalConfig) -> dict[str, str]:
    """Instruction for each task under the control `shuffled`, empty without it; all tasks are checked here, before any runs."""
    instructions = {task: task_instruction(task) for task in config.tasks}
    for task in filter(is_libero, config.tasks):
        if config.episodes > (known := first_states(task)):
            raise ValueError(
                f"{task} has {known} first states and episodes is {config.episodes}: choose at most {known}"
            )
    return shuffled_instructions(instructions) if "shuffled" in config.controls else {}


def run_control(
    config: VlaEvalConfig, policy: Policy, control: Control, others: dict[str, str] | None, films: EpisodeVideos | None
) -> Rollouts:
    """All tasks and seeds under one control; `others` are instructions to use instead of the tasks' own."""
    cameras = config.cameras or {name: VIEWS.get(name, name) for name in policy.spec.cameras}
    trials = [Trial(task, config.seed + place) for task in config.tasks for place in range(config.episodes)]

    def make(task: str) -> Environment:
        if is_libero(task):
            return Libero(task, cameras=cameras, size=config.size, horizon=config.horizon)
        return MetaWorld(task, cameras=cameras, size=config.size, horizon=config.horizon or HORIZON)

    with tqdm(total=len(trials), desc=control, unit=" episodes") as bar:

        def watch(environment: Environment, outcome: Outcome, over: bool) -> None:
            if over:
                bar.update()
            if films is not None:
                films(environment, outcome, over)

        return rollout(
            policy,
            make,
            trials,
            at_once=config.at_once,
            execute=config.execute,
            instructions=others,
            alter=blank_images if control == "blank" else None,
            watch=watch,
        )


def is_libero(task: str) -> bool:
    """Whether a task is LIBERO's, by its name."""
    return "/" in task


def task_instruction(task: str) -> str:
    """The instruction of a task. Raises ValueError for one that is not known."""
    if is_libero(task):
        return instruction(task)
    if task not in INSTRUCTIONS:
        raise ValueError(f"task {task!r} is not known: expected one of {', '.join(INSTRUCTIONS)}, or LIBERO's")
    return INSTRUCTIONS[task]


def table(found: dict[str, Rollouts]) -> str:
    """One row for each task, one column for each control."""
    episodes = len(next(iter(found.values())).outcomes)
    lines = [f"{f'{episodes} episodes':32}" + "".join(f"{control:>28}" for control in found)]
    rows = {name: [rollouts.rows()[name] for rollouts in found.values()] for name in next(iter(found.values())).rows()}
    lines += [f"{name:32}" + "".join(f"{cell:>28}" for cell in cells) for name, cells in rows.items()]
    return "\n".join(lines)


def advice(found: dict[str, Rollouts]) -> str:
    """Warning about each control that keeps more than half of the success; empty where none does."""
    said = {
        "blank": "warning: with blank images more than half of the success remains: the state, or habit, is enough for "
        "the policy; train without the state, or on tasks whose objects move more",
        "shuffled": "note: with the instruction of another task more than half of the success remains: the policy infers "
        "its task from images",
    }
    means = {control: rollouts.mean for control, rollouts in found.items()}
    half = means.get("right", 1.0) / 2
    return "\n".join(line for control, line in said.items() if means.get(control, 0) > half)


def parse(arguments: list[str] | None = None) -> VlaEvalConfig:
    """A typed Config from --config FILE.yaml and --key value."""
    return parse_config(VlaEvalConfig, "recipes.vla_eval", __doc__, arguments)


if __name__ == "__main__":
    run_cli("recipes.vla_eval", lambda: main(parse()))
