"""A policy: a `VisionLanguageActionModel` with the statistics of one data set."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vlm_vision.checkpoints.hub import TOKENIZER_FILES, hub_id, resolve
from vlm_vision.deploy.cpu_layout import pack_for_cpu, pack_linears
from vlm_vision.files import read_json
from vlm_vision.robot.observation import Observation, PolicySpec
from vlm_vision.robot.policy import Actions
from vlm_vision.vla.batch import ObservationReader
from vlm_vision.vla.model import POLICY, VisionLanguageActionModel
from vlm_vision.vla.openvla import load_openvla
from vlm_vision.vla.runner import RunnerCache


class VLAPolicy:
    """Acts by the statistics of one data set.

    Args:
        model: in evaluation mode from here on.
        statistics: name of the data whose units the robot uses; may be empty where the model has those of one.
        graphs: see `RunnerCache`: on a CUDA device, shapes of batches that are kept as CUDA graphs.

    Raises:
        ValueError: a name that is not known (it lists the known ones), or graphs where there can be none.
    """

    def __init__(self, model: VisionLanguageActionModel, statistics: str = "", *, graphs: int = 0):
        self.model, self.read, self._look = model.eval(), ObservationReader(model), RunnerCache(model, graphs)
        self.action, self.state = model.normalizers(statistics)

    @property
    def spec(self) -> PolicySpec:
        return self.model.spec

    @torch.no_grad()
    def act(self, observations: Sequence[Observation]) -> Actions:
        """See `vlm_vision.robot.policy.Policy`. Every image is encoded once, all of them in one batch.

        Raises:
            ValueError: no observation, or one that `spec.check` refuses.
        """
        if not observations:
            raise ValueError("there are no observations: pass at least one")
        clock = _StageTimer(self.device)
        observations = [self.spec.check(observation) for observation in observations]
        images = [[self.read.crop_config.center(one) for one in self.read.images(o)] for o in observations]
        batch = self.read([one.instruction for one in observations], images)
        if self.state is not None:
            states = np.stack([np.asarray(one.state, dtype=np.float64) for one in observations])
            batch["state"] = self.state(torch.from_numpy(states))
        clock.took("preprocess")
        look = self._look(batch)
        look.encode(batch)
        clock.took("encode")
        look.prefill()
        clock.took("prefill")
        values = self.action.invert(look.decode().cpu()).numpy()
        clock.took("decode")
        return Actions(values, clock.seconds)

    def pack(self, observations: Sequence[Observation]) -> None:
        """Rearrange the weights for the CPU, in place, for calls with as many observations and as long a prompt: see
        `vlm_vision.deploy.cpu_layout`. Other calls work and run unpacked. Do this last: a packed policy is neither moved, trained nor
        saved.

        Raises:
            ValueError: as `pack_for_cpu` and `act`; images of no fixed size.
        """
        self.act(observations)  # says what is wrong with them before anything is changed
        encoder = self.model.plain_vlm.encoder
        size = encoder.preprocess.output_size
        if size is None:
            raise ValueError("the policy's images have no fixed size, which packed weights need: run it unpacked")
        pack_for_cpu(encoder, batch=len(observations) * len(self.spec.cameras), height=size[0], width=size[1])
        pack_linears(self.model, lambda: self.act(observations))

    @property
    def device(self) -> torch.device:
        return self.model.plain_vlm.device


_HUB_FILES = (*TOKENIZER_FILES, "action_head--*.pt", "proprio_projector--*.pt")
"""Files of a policy on the hub, in addition to configurations and weights."""


class _StageTimer:
    """Seconds of each stage, measured after the device has finished its work."""

    def __init__(self, device: torch.device):
        self.device, self.seconds, self.since = device, {}, time.perf_counter()

    def took(self, stage: str) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now = time.perf_counter()
        self.seconds[stage], self.since = now - self.since, now


def load_policy(
    source: str | Path,
    *,
    statistics: str = "",
    device: str | torch.device = "cpu",
    graphs: int = 0,
    revision: str | None = None,
    **options: Any,
) -> VLAPolicy:
    """A policy that `VisionLanguageActionModel.save_pretrained` wrote, or one of OpenVLA or OpenVLA-OFT.

    Args:
        source: folder or hub id.
        statistics: name of the data whose units the robot uses; needed where the folder has those of several.
        graphs: on a CUDA device, shapes of batches that are kept as CUDA graphs, see `vlm_vision.vla.runner`.
        options: of VisionLanguageModel.from_pretrained, such as dtype; for OpenVLA those of `load_openvla` too.

    Raises:
        ValueError: a folder that holds no policy, an unknown name of statistics (it lists the known ones), or options of
            `load_openvla` for another folder.
    """
    folder = resolve(source, revision, also=_HUB_FILES)
    described = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    if described.get("model_type") == "openvla" and not (folder / POLICY).is_file():
        model = load_openvla(folder, **options)
    else:
        if extra := [name for name in options if name in (load_openvla.__kwdefaults__ or {})]:
            raise ValueError(
                f"{source} is not a folder of OpenVLA, which alone takes {', '.join(extra)}: remove the argument; a saved policy "
                "states its own values"
            )
        model = VisionLanguageActionModel.from_pretrained(folder, **options)
    model.plain_vlm.hub_id = hub_id(source)
    return VLAPolicy(model.to(device), statistics, graphs=graphs)
