"""`vlm_vision.load_projector`: the projector out of a published model, its bytes alone."""

from pathlib import Path

import torch

import projectors
from projectors import Projector
from vlm_vision.checkpoints.connectors import Checkpoint, find
from vlm_vision.checkpoints.files import read_json
from vlm_vision.checkpoints.hub import resolve
from vlm_vision.checkpoints.sniff import weights_of
from vlm_vision.checkpoints.towers import WRONG_KIND, state_of
from vlm_vision.load import known_device, known_dtype


def load_projector(
    source: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    revision: str | None = None,
) -> Projector:
    """The projector of a published model.

    LLaVA (in transformers, and its own linear and mlpNx_gelu), Prismatic, OpenVLA (and OpenVLA-OFT, with its adapter where it is
    not merged), PaliGemma, pi0 (LeRobot's, openpi's, transformers'), Idefics2, Idefics3,
    SmolVLM, SmolVLA, BLIP-2, Qwen2-VL, Qwen2.5-VL. It takes what their tower gives: the tokens after the final norm for
    BLIP-2, whose class token is left out here, and those before any for the two Qwens.

    What the model does to the output is the model's: PaliGemma and pi0 divide it by the square root of the language
    model's width.

    Args:
        source: hub id, folder or file. A file alone does not tell its activation: it is taken to be the usual one.
        dtype, device: of the weights.
        revision: branch, tag or commit of a hub id.

    Raises:
        ValueError: no projector of a known form in it, or a weight too many or too few.
    """
    path = resolve(source, revision)
    config = read_json(path / "config.json") if (path / "config.json").is_file() else {}
    try:
        found = find(Checkpoint(str(path), config, weights_of(path)))
    except WRONG_KIND as error:
        raise ValueError(f"{path} describes its projector in another way than expected ({error!r})") from None
    with torch.device("meta"):
        projector = projectors.build(found.name, **found.options)
    shapes = {name: value.shape for name, value in projector.state_dict().items()}
    state = state_of(
        found.keys, shapes, found.weights, source=str(path), dtype=known_dtype(dtype), device=known_device(device)
    )
    projector.load_state_dict(state, strict=True, assign=True)
    return projector.eval()
