"""Architectures of timm that are no plain vision transformer of `vlm_vision.nn.vit`, and why."""

import re

_TRANSFORMERS = "the library reads this tower from a folder of transformers: load that one"
_PARALLEL = "its blocks run attention and MLP, or several of each, side by side: expected one after the other"

_REASONS: tuple[tuple[str, str], ...] = (
    (
        r"naflexvit_.*radio",
        "its positions are resized and cropped by RADIO's rules: load RADIO's folder of transformers",
    ),
    (
        r"naflexvit_(?!.*_siglip)",
        "its positions are resized with the aspect ratio kept, or are not learned: expected a SigLIP",
    ),
    (
        r"(test_)?vit_s?relpos|test_vit_relpos",
        "it adds relative positions to attention: expected learned or rotary ones",
    ),
    (r"beit_|beitv2_", "it adds relative positions to attention: expected learned or rotary ones"),
    (r"samvit_", _TRANSFORMERS),
    (r"qwen3_vit_|gemma4_vit_", _TRANSFORMERS),
    (r"deepseek_vit_", "the tower of DeepSeek-V4 is not among those that the library reads"),
    (r"cait_", "its heads are mixed in attention, and the class token comes in late: expected plain attention"),
    (r".*_rope_mixed_", "each head has rotary frequencies that are learned: expected fixed ones"),
    (r".*_sapiens2", "the number of key heads differs between its blocks: expected the same in all"),
    (r".*_rpn_|eva02_enormous_", "its norms follow attention and MLP: expected norms before them"),
    (r".*(_xp_|_18x2_)|vit_d?pwee_", _PARALLEL),
    (r"vit_d(wee|little)_", "its attention is a difference of two: expected plain attention"),
    (r"vit_.*(_mci_|resnet|_r\d|_r_s)", "convolutions come before its blocks: expected a patch embedding"),
    (r"test_vit", "timm has it for its own tests alone"),
)
"""Start of an architecture's name -> why it is refused, the first that fits."""

_KNOWN = re.compile(r"vit_|deit_|deit3_|aimv2_|naflexvit_|eva_|eva02_|beit3_|flexivit_")


def reason(name: str) -> str | None:
    """Why an architecture is refused; None for one that is read."""
    for start, why in _REASONS:
        if re.match(start, name):
            return why
    if _KNOWN.match(name):
        return None
    return (
        "it is no plain vision transformer of timm, such as vit_base_patch16_224, deit3_..., vit_..._clip_..., vit_..._siglip_..., "
        "vit_..._dinov2, vit_..._dinov3, vit_pe_..., eva02_..., aimv2_..."
    )
