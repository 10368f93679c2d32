"""`vlm_vision.look`: images and encoders to a page."""

import html
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vlm_vision import __version__
from vlm_vision.encoder import Encoder
from vlm_vision.fused import FusedEncoder
from vlm_vision.load_encoder import load
from vlm_vision.page.arrays import Arrays
from vlm_vision.page.describe import Describer, ShownEncoder, ShownImage
from vlm_vision.page.html import page_html
from vlm_vision.pair import Pair, load_pair
from vlm_vision.preprocess.images import ImageInput, load_image

if TYPE_CHECKING:
    from vlm_vision.vla.policy import VLAPolicy
    from vlm_vision.vlm.model import VisionLanguageModel

AnyEncoder = Encoder | FusedEncoder | Pair | str | Path


class Page:
    """A page of `vlm_vision.look`: shows itself in a notebook; `save` writes it."""

    def __init__(self, about: dict[str, Any], arrays: Arrays):
        self.about, self.arrays = about, arrays

    @property
    def html(self) -> str:
        """The whole file."""
        return page_html(self.about, self.arrays)

    def save(self, path: str | Path) -> Path:
        """Write the file; one that exists is replaced once the new one is complete."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            part.write_text(self.html, encoding="utf-8")
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
        return path

    def _repr_html_(self) -> str:
        source = html.escape(self.html, quote=True)
        return f'<iframe srcdoc="{source}" width="100%" height="900" style="border: 0" title="What does the encoder see?"></iframe>'


def look(
    images: ImageInput | Sequence[ImageInput] = (),
    encoder: AnyEncoder | Sequence[AnyEncoder] = (),
    *,
    layers: Sequence[int] | None = None,
    texts: Sequence[str] = (),
    names: Sequence[str] | None = None,
    model: "VisionLanguageModel | None" = None,
    question: str | None = None,
    policy: "VLAPolicy | None" = None,
    episode: str | None = None,
    image_size: int | list[int | tuple[int, int]] | None = None,
    device: str | torch.device = "cpu",
) -> Page:
    """A page that shows what encoders make of images: patches, attention, data flow, comparison, similarity, norms.

    Args:
        images: one image as `load_image` takes it, or several.
        encoder: one or several: from `load` or `load_pair`, or what these read.
        layers: numbers of the blocks, from 0, whose attention the page holds; None for up to four of each tower.
        texts: texts to compare with patches; encoders that are names of pairs are then loaded as pairs.
        names: captions of the images; default the names of their files.
        model: a model that answers `question` about the first image; its encoder follows the others.
        question: the question to `model`.
        policy: a policy, of `load_policy`, whose actions in `episode` are shown; its encoder follows the others.
        episode: folder of a LeRobotDataset, or FOLDER:N for its episode N; without `images` its first image is shown.
        image_size: side in pixels to which images are preprocessed, for encoders that are names; a list has one for each fused tower.
        device: where encoders that are names are loaded.

    Returns:
        A `Page`: a notebook shows it, `.save("page.html")` writes it.

    Raises:
        ValueError: no image or one that cannot be read, no encoder, names of another number, texts but no pair, layers that
            do not exist or do not fit into the page; a model without a question, a policy without an episode; as `answer_part`
            and `episode_part`.
    """
    arrays = Arrays()
    given = gather(images, encoder, arrays, names=names, model=model, question=question, policy=policy, episode=episode)
    encoders = shown_encoders(given.encoders, texts=texts, image_size=image_size, device=device)
    return make_page(encoders, given.images, layers=layers, texts=texts, parts=given.parts, arrays=arrays)


@dataclass(frozen=True)
class Given:
    """What a page is made of, before encoders that are names are loaded."""

    images: list[ShownImage]
    encoders: list[Any]
    parts: dict[str, Any]
    """Descriptions of an answer and of an episode."""


def gather(
    images: ImageInput | Sequence[ImageInput],
    encoder: AnyEncoder | Sequence[AnyEncoder],
    arrays: Arrays,
    *,
    names: Sequence[str] | None = None,
    model: "VisionLanguageModel | None" = None,
    question: str | None = None,
    policy: "VLAPolicy | None" = None,
    episode: str | None = None,
) -> Given:
    """Images, encoders and parts of a page; arguments and errors as `look`."""
    sources: list[Any] = list(encoder) if isinstance(encoder, list | tuple) else [encoder]
    shown = shown_images(images, names)
    parts = {}
    if (model is None) != (question is None) or (policy is None) != (episode is None):
        raise ValueError("a model goes with a question, and a policy with an episode: pass both or neither")
    if model is not None and question is not None:
        from vlm_vision.page.answer import answer_part

        if not shown:
            raise ValueError("a question needs an image: pass one")
        parts["answer"] = answer_part(model, shown[0].image, question, arrays)
        sources.append(model.encoder)
    if policy is not None and episode is not None:
        from vlm_vision.page.episode import episode_part

        parts["episode"], first = episode_part(policy, episode, arrays)
        shown = shown or [ShownImage("first image of the episode", first)]
        sources.append(policy.model.plain_vlm.encoder)
    if not sources or not shown:
        raise ValueError(
            f"there are {len(shown)} images and {len(sources)} encoders: pass at least one of each, a model with a question, or a "
            "policy with an episode"
        )
    return Given(shown, sources, parts)


def make_page(
    encoders: Sequence[ShownEncoder],
    images: Sequence[ShownImage],
    *,
    layers: Sequence[int] | None = None,
    texts: Sequence[str] = (),
    served: bool = False,
    parts: dict[str, Any] | None = None,
    arrays: Arrays | None = None,
) -> Page:
    """The page of encoders and images that are loaded; `parts` are added to its description, their arrays are in `arrays`."""
    arrays = Arrays() if arrays is None else arrays
    about = Describer(encoders, layers=layers, served=served, texts=texts).describe(images, arrays)
    return Page({"version": __version__, "served": served} | about | (parts or {}), arrays)


def shown_images(images: ImageInput | Sequence[ImageInput], names: Sequence[str] | None = None) -> list[ShownImage]:
    """Images with their captions. Raises ValueError as `look`."""
    each: list[Any] = list(images) if isinstance(images, list | tuple) else [images]
    if names is not None and len(names) != len(each):
        raise ValueError(f"there are {len(names)} names for {len(each)} images: pass one for each")
    captions = names or [
        Path(one).name if isinstance(one, str | os.PathLike) else f"image {i}" for i, one in enumerate(each)
    ]
    return [ShownImage(caption, load_image(one)) for caption, one in zip(captions, each, strict=True)]


def shown_encoders(
    encoder: AnyEncoder | Sequence[AnyEncoder],
    *,
    texts: Sequence[str] = (),
    pairs: bool = False,
    image_size: int | list[int | tuple[int, int]] | None = None,
    device: str | torch.device = "cpu",
) -> list[ShownEncoder]:
    """Encoders with their names; pairs, where they are, if there are texts or `pairs` is set. Raises ValueError as `look`."""
    each: list[Any] = list(encoder) if isinstance(encoder, list | tuple) else [encoder]
    shown = [_shown(one, pairs or bool(texts), image_size, device) for one in each]
    if texts and not any(one.pair for one in shown):
        raise ValueError(
            f"there are texts, but none of {', '.join(one.name for one in shown)} has a text tower: pass a CLIP or SigLIP"
        )
    return shown


def _shown(
    source: AnyEncoder,
    wants_text: bool,
    image_size: int | list[int | tuple[int, int]] | None,
    device: str | torch.device,
) -> ShownEncoder:
    if isinstance(source, Pair):
        return ShownEncoder(source.image.hub_id or source.image.origin.family, source.image, source)
    if isinstance(source, Encoder):
        return ShownEncoder(source.hub_id or source.origin.family, source)
    if isinstance(source, FusedEncoder):
        towers = ShownEncoder("", source).towers
        return ShownEncoder(" + ".join(tower.hub_id or tower.origin.family for tower in towers), source)
    name = " + ".join(Path(part.strip()).name or part for part in str(source).split(" + "))
    if wants_text and " + " not in str(source):
        try:
            pair = load_pair(source, device=device)
        except ValueError:  # no pair: its patches alone are shown
            pair = None
        if pair is not None:
            if image_size is not None:
                pair.image.preprocess = load(source, image_size=image_size).preprocess  # type: ignore[assignment]
            return ShownEncoder(name, pair.image, pair)
    return ShownEncoder(name, load(source, image_size=image_size, device=device))
