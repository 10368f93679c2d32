"""The model card of a `VisionLanguageModel`, and that card on the hub."""

from pathlib import Path
from typing import Any

from torch import nn

from vlm_vision.checkpoints.hf.card import IMAGE, Card, about_encoder, about_preprocess, count
from vlm_vision.checkpoints.hub import hub_id
from vlm_vision.files import is_own_card
from vlm_vision.vlm.config import VisionLanguageConfig

_LOAD = f"""
import vlm_vision  # first: without it transformers does not know the model type
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

model = AutoModelForImageTextToText.from_pretrained(".")
processor = AutoProcessor.from_pretrained(".")
{IMAGE}
batch = processor(text=["<image> What is this?"], images=[image], return_tensors="pt")
ids = model.generate(**batch, max_new_tokens=20)
print(processor.batch_decode(ids[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)[0])
print(model.answer(image, "What is this?", max_new_tokens=20))  # through the chat template
"""
_LOAD_WITHOUT_PROCESSOR = """
import vlm_vision  # first: without it transformers does not know the model type
from transformers import AutoModelForImageTextToText

model = AutoModelForImageTextToText.from_pretrained(".")  # the folder has no processor
"""


def vlm_card(config: VisionLanguageConfig, model: nn.Module, base_models: list[str], *, has_processor: bool) -> Card:
    """The card of a model with this configuration.

    Args:
        base_models: hub ids of what it was made from.
        has_processor: whether the folder has one.
    """
    language = getattr(config.text_config, "model_type", "unknown")
    encoder = " + ".join(one["family"] for one in config.encoder_config.get("towers") or [config.encoder_config])
    return Card(
        title=f"Vision-language model: {encoder} and {language}",
        about=f"Encoder {about_encoder(config.encoder_config)}; projector {config.projector_config['name']}; image layout "
        f"{config.layout_config['name']}; language model {language}; {count(model)} parameters",
        load=_LOAD if has_processor else _LOAD_WITHOUT_PROCESSOR,
        notes=('`vv.VisionLanguageModel.from_pretrained(".")` after `import vlm_vision as vv` does the same.',),
        preprocess=about_preprocess(config.encoder_config),
        pipeline_tag="image-text-to-text",
        tags=(language,),
        base_models=tuple(base_models),
    )


def language_hub_id(config: Any) -> str:
    """Hub id of a language model by its configuration; empty where it came from a folder or is new."""
    return hub_id(getattr(config, "_name_or_path", "")) if getattr(config, "_commit_hash", None) else ""


def put_card_back(path: Path, card: Card) -> None:
    """Write a README.md for the hub where transformers put its empty form in the card's place.

    A README.md that someone wrote in the repository stays; one whose form is not filled in at all does not.

    Args:
        path: the file; tags in its head are kept.
        card: of the model.
    """
    from huggingface_hub import ModelCard, ModelCardData

    blank = "[More Information Needed]"
    text = path.read_text(encoding="utf-8")
    is_empty_form = text.count(blank) == ModelCard.from_template(ModelCardData()).text.count(blank) > 0
    if is_own_card(path) or is_empty_form:
        path.write_text(card.text(more_tags=ModelCard(text).data.to_dict().get("tags") or ()), encoding="utf-8")
