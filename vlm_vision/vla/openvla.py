"""Reader of the policies that OpenVLA and OpenVLA-OFT published.

Kim et al. 2024 (arXiv:2406.09246), Kim et al. 2025 (arXiv:2502.19645). An OFT folder has the same files, and also
action_head--STEP_checkpoint.pt and, where it reads the state, proprio_projector--STEP_checkpoint.pt.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from vlm_vision.checkpoints.weights import WeightFiles
from vlm_vision.files import read_json
from vlm_vision.robot.normalize import Kind
from vlm_vision.robot.observation import PolicySpec
from vlm_vision.robot.statistics import Named, join_names, read_statistics
from vlm_vision.vla.heads.base import ActionHead
from vlm_vision.vla.heads.build import new_head
from vlm_vision.vla.model import PROMPT, VisionLanguageActionModel
from vlm_vision.vlm.model import VisionLanguageModel

LLAMA_SPACE = 29871
"""The empty word of Llama 2's tokenizer, which the reference puts after the prompt."""

_RESNET = (("layer_norm1.", "norm1."), ("layer_norm2.", "norm2."), ("mlp_resnet_blocks.", "blocks."))
_RESNET_BLOCK = ((".ffn.0.", ".norm."), (".ffn.1.", ".fc."))
"""OFT's names -> those of a `ParallelHead`."""


def load_openvla(
    folder: Path,
    *,
    cameras: Sequence[str] = (),
    chunk: int = 0,
    normalization: Kind | None = None,
    prompt: str = PROMPT,
    evaluation: str = "none",
    crop: bool = False,
    **options: Any,
) -> VisionLanguageActionModel:
    """A folder of OpenVLA, or of OpenVLA-OFT with its L1 head.

    The model's save_pretrained writes all of this, so that its folder loads without these arguments, for `vlm-vision serve` too.

    Args:
        cameras: names for the images, in the order of the policy's training; default "image". Required for OFT, whose
            folder does not state them.
        chunk: actions for one observation; OFT's folder does not state it: 8 on LIBERO, 25 on ALOHA, 5 on Bridge.
        normalization: of action and state; OFT's folder does not state it: "quantiles" on LIBERO and Bridge, "min_max" on ALOHA;
            default "quantiles", OpenVLA's own.
        prompt: for openvla-v01, pass Vicuna's prompt.
        evaluation, crop: preparation of a camera's image, see `Preprocess.with_evaluation`: "openvla" or "openvla_oft",
            with the crop for policies that were fine-tuned on cropped images, as all published ones for LIBERO.
        options: of VisionLanguageModel.from_pretrained.

    Raises:
        ValueError: no statistics, or statistics of several robots; no tokenizer, a missing argument that OFT's folder does not state,
            an unknown kind of head, weights that are damaged, missing or left over.
    """
    config = read_json(folder / "config.json")
    named, action_dim = _statistics(folder)
    held = {kind: _newest(folder, kind) for kind in ("action_head", "proprio_projector")}
    if held["action_head"] is not None and (not cameras or not chunk or normalization is None):
        raise ValueError(
            f"{held['action_head']} is of OpenVLA-OFT, whose folder states neither cameras nor chunk nor "
            "normalization: pass cameras=[...] in the order of training, chunk (8 on LIBERO, 25 on ALOHA, 5 on "
            "Bridge) and normalization ('quantiles', on ALOHA 'min_max')"
        )
    vlm = VisionLanguageModel.from_pretrained(folder, **options)
    vlm.encoder.preprocess = vlm.encoder.preprocess.with_evaluation(evaluation, crop=crop)
    if vlm.processor is None:
        raise ValueError(
            f"{folder} has no tokenizer, which a policy needs for its instruction: download the tokenizer's files"
        )
    text = config["text_config"]
    words = text.get("vocab_size", 32064) - config.get("pad_to_multiple_of", 64)
    if held["action_head"] is None:
        spec = PolicySpec(tuple(cameras) or ("image",), action_dim)
        head_options = dict(vocab_size=words, end_id=text.get("eos_token_id", 2), bins=config.get("n_action_bins", 256))
        head = new_head("tokens", vlm, spec, **head_options)
    else:
        head, spec = _oft(vlm, held, PolicySpec(tuple(cameras), action_dim, chunk))
    lead = (LLAMA_SPACE,) if words > LLAMA_SPACE else ()
    options = dict(normalization=normalization or "quantiles", prompt=prompt, lead_ids=lead)
    model = VisionLanguageActionModel(vlm, head, spec=spec, statistics=named, **options)
    if model.state_token is not None:
        _filled(model.state_token, _state(held["proprio_projector"]), held["proprio_projector"])
    weight = next(vlm.projector.parameters())
    model.action_modules.to(weight.device)
    return model.eval()


def _statistics(folder: Path) -> tuple[Named, int]:
    """Those of a folder, and the numbers of an action."""
    named = read_statistics(folder)
    if lacking := [name for name, one in named.items() if "action" not in one]:
        raise ValueError(
            f"{folder} has statistics of {join_names(lacking)} without those of the action: restore the file"
        )
    dims = {name: one["action"].dim for name, one in named.items()}
    if len(set(dims.values())) > 1:
        sizes = ", ".join(f"{dim} of {name!r}" for name, dim in dims.items())
        raise ValueError(
            f"{folder} has statistics of actions of several sizes ({sizes}): keep those of the robot that it was trained on"
        )
    return named, next(iter(dims.values()))


def _oft(vlm: VisionLanguageModel, held: dict[str, Path | None], spec: PolicySpec) -> tuple[ActionHead, PolicySpec]:
    """The L1 head of an OFT folder with its weights, and the spec of the policy with the size of the state."""
    path = held["action_head"]
    state = _state(path)
    if "fc1.weight" not in state:
        raise ValueError(
            f"{path} is not an L1 head: its first weight is {next(iter(state), 'none')}; diffusion heads cannot be read"
        )
    if held["proprio_projector"] is not None:
        proprio = _state(held["proprio_projector"])
        if "fc1.weight" not in proprio:
            raise ValueError(f"{held['proprio_projector']} has no fc1.weight: download it again")
        spec = replace(spec, state_dim=proprio["fc1.weight"].shape[1])
    blocks = len({name.split(".")[1] for name in state if name.startswith("blocks.")})
    options = dict(hidden_dim=state["fc1.weight"].shape[0], blocks=blocks, style="openvla_oft")
    head = new_head("parallel", vlm, spec, **options)
    _filled(head, state, path)
    return head, spec


def _newest(folder: Path, kind: str) -> Path | None:
    """The file of the latest step."""
    found = folder.glob(f"{kind}--*_checkpoint.pt")
    return max(found, key=lambda path: int("0" + "".join(re.findall(r"--(\d+)_", path.name))), default=None)


def _state(path: Path | None) -> dict[str, Tensor]:
    """Weights by our names."""
    assert path is not None
    found: dict[str, Tensor] = {}
    files = WeightFiles(path)
    for stored in files.shapes:
        name = stored.removeprefix("module.").removeprefix("model.")
        for theirs, ours in _RESNET:
            name = ours + name.removeprefix(theirs) if name.startswith(theirs) else name
        for theirs, ours in _RESNET_BLOCK:
            name = name.replace(theirs, ours)
        found[name] = files.get(stored).float()
    return found


def _filled(module: nn.Module, state: dict[str, Tensor], path: Path | None) -> None:
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit: {' '.join(str(error).split())[:300]}") from None
