"""`vlm_vision.load_projector`: the projector out of a published model, its bytes alone."""

import math
from dataclasses import dataclass
from pathlib import Path

import torch

import projectors
from projectors import Projector
from vlm_vision.checkpoints.files import WeightFiles
from vlm_vision.checkpoints.keys import Key, layer
from vlm_vision.checkpoints.sniff import weights_of
from vlm_vision.checkpoints.towers import Part, state_of
from vlm_vision.load import known_device, known_dtype, resolve


@dataclass(frozen=True)
class _Form:
    """One way in which a model stores its projector."""

    projector: str
    """A key of `projectors.PROJECTORS`."""
    prefix: str
    layers: tuple[str, ...]
    """Their names of fc1, fc2, ..."""
    bias: bool = True

    def keys(self) -> list[Key]:
        return [row for i, name in enumerate(self.layers, 1) for row in layer(f"fc{i}", name, bias=self.bias)]


_FORMS = (
    _Form("fused_mlp", "projector.", ("fc1", "fc2", "fc3")),  # OpenVLA, OFT: two towers
    _Form("mlp", "projector.", ("fc1", "fc2")),  # the same with one
    _Form("fused_mlp", "projector.projector.", ("0", "2", "4")),  # Prismatic's own files
    _Form("mlp", "projector.projector.", ("0", "2")),
    _Form("mlp", "multi_modal_projector.", ("linear_1", "linear_2")),  # LLaVA in transformers
    _Form("mlp", "mm_projector.", ("0", "2")),  # LLaVA's own
    _Form("linear", "multi_modal_projector.", ("linear",)),  # PaliGemma, pi0
    _Form("pixel_shuffle", "connector.modality_projection.", ("proj",), bias=False),  # Idefics3, SmolVLM, SmolVLA
)


def load_projector(
    source: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    revision: str | None = None,
) -> Projector:
    """The projector of a published model: LLaVA, Prismatic, OpenVLA, PaliGemma, pi0, Idefics3, SmolVLM, SmolVLA.

    What the model does to its output is the model's: PaliGemma and pi0 divide it by the square root of the language
    model's width.

    Args:
        source: hub id, folder or file.
        dtype, device: of the weights.
        revision: branch, tag or commit of a hub id.

    Raises:
        ValueError: no projector of a known form in it, or a weight too many or too few.
    """
    path = resolve(source, revision)
    weights = weights_of(path)
    for form in _FORMS:
        mark = f"{form.prefix}{form.layers[-1]}.weight"
        for name in weights.shapes:
            before, found, _ = name.partition(mark)
            if found and name.endswith(mark) and (not before or before.endswith(".")):
                return _build(form, Part(weights, before + form.prefix), weights, str(path), dtype, device)
    known = ", ".join(f"{form.prefix}{form.layers[0]}.weight" for form in _FORMS)
    raise ValueError(f"{path} holds no projector of a known form: expected a weight ending in one of {known}")


def _build(
    form: _Form, part: Part, weights: WeightFiles, source: str, dtype: torch.dtype, device: str | torch.device
) -> Projector:
    first, last = part.shapes[f"{form.layers[0]}.weight"], part.shapes[f"{form.layers[-1]}.weight"]
    in_dim, options = first[1], {}
    if form.projector == "pixel_shuffle":
        width = next((shape[0] for name, shape in weights.shapes.items() if name.endswith("patch_embedding.weight")), 0)
        scale = math.isqrt(in_dim // width) if width else 0
        if not width or scale * scale * width != in_dim:
            raise ValueError(
                f"{source}: its connector takes {in_dim} channels, no square number of the tower's {width}"
            )
        in_dim, options = width, {"scale": scale}
    with torch.device("meta"):
        projector = projectors.build(form.projector, in_dim=in_dim, out_dim=last[0], **options)
    shapes = {name: value.shape for name, value in projector.state_dict().items()}
    state = state_of(form.keys(), shapes, part, source=source, dtype=known_dtype(dtype), device=known_device(device))
    projector.load_state_dict(state, strict=True, assign=True)
    return projector.eval()
