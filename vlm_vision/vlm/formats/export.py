"""`vlm_vision.export`: write a `VisionLanguageModel` to a folder for other software, and verify the folder by loading it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from huggingface_hub import save_torch_state_dict

from vlm_vision.checkpoints.hf.card import IMAGE, Card, write_card
from vlm_vision.checkpoints.manifest import write_manifest
from vlm_vision.files import whole, write_json
from vlm_vision.vlm.formats import llava_export, prismatic_export
from vlm_vision.vlm.formats.common import Folder
from vlm_vision.vlm.model import VisionLanguageModel

FORMATS: dict[str, tuple[Callable[[VisionLanguageModel], Folder], Callable[[VisionLanguageModel, Path], None]]] = {
    "llava": (llava_export.to_folder, llava_export.verify),
    "prismatic": (prismatic_export.to_folder, prismatic_export.verify),
}
"""format -> (function that converts the model, function that verifies the folder)"""


def export(vlm: VisionLanguageModel, format: str, folder: str | Path, *, verify: bool = True) -> None:
    """Write the model to `folder` in a public layout.

    Args:
        vlm: with its processor, and adapters merged. Weights keep their dtype; config.json names the language model's.
        format: "llava" is transformers' LlavaForConditionalGeneration (also of vLLM and others), with the layout AnyRes
            LlavaNextForConditionalGeneration: one CLIP or SigLIP tower tapped before the final norm, projector "mlp".
            "prismatic" is the layout of Prismatic and OpenVLA: DINOv2 with registers and SigLIP fused, or one tower, and
            one image, right after the first token; see `vlm_vision.vlm.formats.prismatic_export`.
        folder: made if absent; on an error nothing is left in it.
        verify: load what was written ("llava" in unmodified transformers, "prismatic" with this library) and compare
            weights' names, inputs and logits. Needs memory for the model once more.

    Raises:
        ValueError: the format cannot express the model, with the reason and what to do; or what was read back differs.
    """
    if not isinstance(vlm, VisionLanguageModel) or _adapted(vlm):
        raise ValueError("adapters are not merged: export the result of vlm_vision.train.adapters.merge")
    if format not in FORMATS:
        raise ValueError(f"format is {format!r}: expected {' or '.join(map(repr, FORMATS))}")
    if vlm.processor is None:
        raise ValueError("the model has no processor, whose tokenizer the folder needs: set vlm.processor")
    express, check = FORMATS[format]
    written = express(vlm)
    with whole(Path(folder)) as staging:
        save_torch_state_dict(written.tensors, staging, metadata={"format": "pt"})
        written.tokenizer.save_pretrained(staging)
        vlm.generation_config.save_pretrained(staging)
        for name, content in {"config.json": written.config, **written.files}.items():
            write_json(staging / name, content)
        write_card(staging, _card(vlm.card(), format))
        write_manifest(staging)
        if verify:
            check(vlm, staging)


_LLAVA = f"""
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

model = AutoModelForImageTextToText.from_pretrained(".")
processor = AutoProcessor.from_pretrained(".")
{IMAGE}
batch = processor(text="<image> What is in the image?", images=[image], return_tensors="pt")
ids = model.generate(**batch, max_new_tokens=20)
print(processor.batch_decode(ids[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)[0])
"""
_PRISMATIC = f"""
import vlm_vision as vv
from PIL import Image

model = vv.VisionLanguageModel.from_pretrained(".")
{IMAGE}
batch = model.processor(text=["<image>What is in the image?"], images=[image], return_tensors="pt")
ids = model.generate(**batch, max_new_tokens=20)
print(model.processor.batch_decode(ids[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)[0])
"""


def _card(card: Card, format: str) -> Card:
    """The card of an export, from that of the model."""
    if format == "prismatic":
        note = "The folder has the layout of Prismatic and OpenVLA; transformers has no class for it."
        return replace(card, load=_PRISMATIC, notes=(note,), tags=("prismatic", *card.tags))
    note = 'Unmodified transformers loads it; `vv.VisionLanguageModel.from_pretrained(".")` of vlm_vision too.'
    return replace(card, load=_LLAVA, notes=(note,), tags=("llava", *card.tags), library_name="transformers")


def _adapted(vlm: VisionLanguageModel) -> bool:
    return any(type(module).__module__.startswith("peft.") for module in vlm.modules())
