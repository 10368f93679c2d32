"""Model cards: the README.md of a saved folder, with what the model is, how to load it, its training and its figures."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from torch import nn

from vlm_vision.checkpoints.manifest import renew_manifest
from vlm_vision.files import CARD, CARD_MARK, is_own_card

IMAGE = 'image = Image.linear_gradient("L").convert("RGB")  # or Image.open("photo.jpg")'
"""Line of the Python blocks that makes an image without a file."""
_HERE = 'Run it in this folder; elsewhere give the path of the folder, or its hub id, in place of `"."`.'
_NOT_STATED, _NO_FIGURES = "Not stated.", "None."


@dataclass(frozen=True, kw_only=True)
class Card:
    """A model card."""

    title: str
    about: str
    """Line that states what the model is."""
    load: str
    """Python that loads the folder, run in it."""
    pipeline_tag: str
    preprocess: str = ""
    """Line that states what is done to an image; empty for a model whose base states it."""
    notes: tuple[str, ...] = ()
    """Sentences under the Python block."""
    library_name: str = "vlm_vision"
    tags: tuple[str, ...] = ()
    base_models: tuple[str, ...] = ()
    """Hub ids of the models that this one was made from; never paths."""

    def text(self, more_tags: Sequence[str] = ()) -> str:
        """README.md: a YAML head for the hub, then Markdown.

        Args:
            more_tags: tags for the head in addition to the card's.
        """
        from huggingface_hub import ModelCardData

        bases = list(dict.fromkeys(name for name in self.base_models if name))
        head = ModelCardData(
            library_name=self.library_name,
            pipeline_tag=self.pipeline_tag,
            tags=list(dict.fromkeys(["vlm_vision", *self.tags, *more_tags])),
            base_model=bases or None,  # type: ignore[arg-type]
        )
        python = f"```python\n{self.load.strip()}\n```"
        prepared = [f"Preprocessing: {self.preprocess}."] if self.preprocess else []
        body = [
            f"{CARD_MARK}; without this line the file is yours and is kept -->",
            f"# {self.title}",
            f"{self.about}.",
            "## Load it",
            python,
            " ".join([_HERE, *self.notes]),
            *prepared,
            *("## Trained on", _NOT_STATED),
            *("## Figures", _NO_FIGURES),
            *("## Versions", _versions()),
        ]
        return f"---\n{head.to_yaml()}\n---\n" + "\n\n".join(body) + "\n"


def write_card(folder: str | Path, card: Card) -> None:
    """Write README.md, unless the folder has one that is not a card of this library."""
    path = Path(folder) / CARD
    if not path.exists() or is_own_card(path):
        path.write_text(card.text(), encoding="utf-8")


def record_training(
    folder: str | Path, trained: Mapping[str, object], figures: Mapping[str, float], remark: str = ""
) -> None:
    """Fill in training and figures of a folder's card; a README.md that is not a card of this library stays as it is.

    Args:
        trained: what the training was, by name.
        figures: what was measured at its end, by name.
        remark: sentence under the figures.
    """
    path = Path(folder) / CARD
    if not is_own_card(path):
        return
    rows = "\n".join(f"| {name} | {value:.4g} |" for name, value in figures.items())
    table = f"| figure | value |\n|---|---|\n{rows}" if rows else _NO_FIGURES
    text = _with_section(
        path.read_text(encoding="utf-8"),
        "Trained on",
        "\n".join(f"- {name}: {value}" for name, value in trained.items()) or _NOT_STATED,
    )
    path.write_text(_with_section(text, "Figures", f"{table}\n\n{remark}".strip()), encoding="utf-8")
    renew_manifest(folder, CARD)


def encoder_card(state: dict[str, Any], model: nn.Module, base_models: Sequence[str], *, format: str) -> Card:
    """The card of an encoder or of fused encoders.

    Args:
        state: its `to_dict`.
        format: layout of the folder, "hf" or "timm".
    """
    towers, reader = towers_of(state), "transformers" if format == "hf" else "timm"
    classes = towers[0]["architecture"]["num_classes"] if len(towers) == 1 else 0
    more = "\nprint(out.logits.argmax(-1))  # class" if classes else ""
    load = f"""
import vlm_vision as vv
from PIL import Image

encoder = vv.load(".")
{IMAGE}
out = encoder(encoder.preprocess(image))
print(out.patch_tokens.shape)  # (1, patches, channels){more}
"""
    where = "the folder" if len(towers) == 1 else "each tower's folder"
    return Card(
        title=("Image classifier: " if classes else "Vision encoder: ") + " + ".join(one["family"] for one in towers),
        about=f"{about_encoder(state)}; {count(model)} parameters",
        load=load,
        notes=(f"The layout is that of {reader}, which reads {where} too.",),
        preprocess=about_preprocess(state),
        pipeline_tag="image-classification" if classes else "image-feature-extraction",
        tags=(reader, *(one["family"] for one in towers)),
        base_models=tuple(base_models),
    )


def towers_of(state: dict[str, Any]) -> list[dict[str, Any]]:
    """The description of each tower in the `to_dict` of an encoder or of fused encoders."""
    return state.get("towers") or [state]


def about_encoder(state: dict[str, Any]) -> str:
    """Family, size, patch, native image size and tap of each tower, from the `to_dict` of an encoder."""
    phrases = []
    for one in towers_of(state):
        architecture, tap = one["architecture"], one["tap"]
        height, width = architecture["image_size"]
        norm = "after" if tap["norm"] else "before"
        more = tap.get("more") or ()
        blocks = "blocks " + ", ".join(map(str, (tap["layer"], *more))) if more else f"block {tap['layer']}"
        phrases.append(
            f"{one['family']} of depth {architecture['depth']} and width {architecture['embed_dim']}, patches of "
            f"{architecture['patch_size']} px, native image size {height} x {width}, tokens of {blocks} {norm} "
            "the final norm"
        )
    return "; fused with ".join(phrases)


def about_preprocess(state: dict[str, Any]) -> str:
    """Size, crop, mean, deviation, filter and image backend of each tower, from the `to_dict` of an encoder."""
    phrases = []
    for one in towers_of(state):
        spec = one["preprocess"]
        kernel, crop = spec.get("kernel", "pillow"), spec["crop"]
        height, width = spec["resize_to"]
        size = f"{spec['max_patches']} patches at most" if spec.get("max_patches") else f"{height} x {width}"
        camera = "what `with_evaluation` does to a camera's image; " if spec.get("camera") else ""
        resize = "no resize" if spec["resize"] == "none" else f"resize {spec['resize']} to {size}, {spec['resample']}"
        phrases.append(
            f"{camera}{resize}; {f'crop {crop[0]} x {crop[1]}' if crop else 'no crop'}; mean {_numbers(spec['mean'])}, std "
            f"{_numbers(spec['std'])}, of pixel values times {spec['rescale']:.4g}; image backend PIL"
            + ("" if kernel == "pillow" else f", resized by the kernel {kernel} of vlm_vision")
        )
    return ". Next tower: ".join(phrases)


def count(model: nn.Module) -> str:
    """Parameters of a model, in words: "92.9 M"."""
    number = sum(weight.numel() for weight in model.parameters())
    for unit, size in (("B", 10**9), ("M", 10**6), ("K", 10**3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return str(number)


def _numbers(values: Sequence[float]) -> str:
    return "(" + ", ".join(f"{value:.4g}" for value in values) + ")"


def _with_section(text: str, heading: str, content: str) -> str:
    """The text with other content under one of its headings."""
    pattern = rf"(?ms)^## {re.escape(heading)}\n.*?(?=^## |\Z)"
    return re.sub(pattern, lambda _: f"## {heading}\n\n{content}\n\n", text, count=1)


def _versions() -> str:
    from vlm_vision import __version__

    rows = [f"vlm_vision {__version__}"]
    for name in ("torch", "transformers"):
        try:
            rows.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return ", ".join(rows) + "."
