"""Image backends of transformers: its image processors with Pillow, or those of the same names with torchvision."""

from dataclasses import replace
from typing import Any

from vlm_vision.preprocess.checks import check_name
from vlm_vision.preprocess.spec import KERNEL_FILTERS, Preprocess

BACKENDS = ("pil", "torchvision")

ONE = {
    f"{name}ImageProcessor"
    for name in (
        "Cohere2Vision", "DINOv3ViT", "Inkling2", "InstructBlipVideo", "Kimi_K25", "Lfm2Vl", "Llama4", "MiniCPMOcr",
        "MiniMaxM3VL", "Molmo2", "MuseGlimmer", "NemotronH_Omni_Reasoning_V3", "PI0", "Phi4Multimodal", "Sam3", "Step3p7",
        "Tipsv2", "UltraVBert", "VideoLlava",
    )
}  # fmt: skip
"""Classes that transformers has in one backend alone, whose answer is the same whichever is asked for."""


def check_backend(pixels: str) -> None:
    """Raises ValueError for a name that is none of `BACKENDS`."""
    check_name("pixels", pixels, BACKENDS)


def with_torchvision(name: str, spec: Preprocess) -> Preprocess:
    """The preprocessing of the class `name` with torchvision, from that with Pillow.

    It differs in the kernel, in the place of an image that is smaller than its crop, and for Pix2Struct in the deviation.

    Raises:
        ValueError: a filter that torchvision lacks.
    """
    if name in ONE:
        return spec
    fields: dict[str, Any] = {}
    if spec.kernel == "gaussian":
        fields["kernel"] = "blurred"
    elif spec.kernel == "pillow" and spec.resize != "none":
        fields["kernel"] = "torch"
        if spec.resample not in KERNEL_FILTERS["torch"]:
            raise ValueError(
                f"the preprocessor config has the filter {spec.resample!r}, which torchvision lacks: expected one of "
                f'{", ".join(KERNEL_FILTERS["torch"])} for pixels="torchvision"; leave pixels out for Pillow\'s'
            )
    if spec.standardize:
        fields["sample_deviation"] = True
    if spec.crop is not None and spec.crop_rounding == "floor" and spec.crop_place == "centre" and _may_be_larger(spec):
        fields["crop_rounding"] = "truncated"
    return replace(spec, **fields)


def _may_be_larger(spec: Preprocess) -> bool:
    """Whether a crop may be larger than the image; only then its rounding has an effect."""
    if spec.crop is None or spec.resize not in ("squash", "shortest_edge"):
        return True
    return any(cut > side for cut, side in zip(spec.crop, spec.resize_to, strict=True))
