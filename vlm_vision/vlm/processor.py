"""Processor: texts with `<image>`, and images, to the inputs of a `VisionLanguageModel`."""

import copy
import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from jinja2 import TemplateError
from transformers import AutoProcessor
from transformers.feature_extraction_utils import BatchFeature
from transformers.processing_utils import ProcessorMixin
from transformers.utils.chat_template_utils import render_jinja_template

from vlm_vision.preprocess.spec import ImageInput
from vlm_vision.vlm.config import VisionLanguageConfig
from vlm_vision.vlm.remote_code import RemoteCodeMixin

IMAGE_TOKEN = "<image>"
VIDEO_MARK = "<video>"

Video = Sequence[ImageInput] | np.ndarray | torch.Tensor
"""Frames of a video: images, or one uint8 array of them, numpy (frames, H, W, C) or torch (frames, C, H, W)."""

PLAIN_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ 'In: ' + message['content'] + '\nOut:' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'] + (eos_token or '') }}"
    "{% if not loop.last %}{{ '\n' }}{% endif %}"
    "{% else %}{{ message['content'] + '\n' }}{% endif %}"
    "{% endfor %}"
)
"""Chat template for language models without one: the prompt of Prismatic for base models."""


class VisionLanguageProcessor(RemoteCodeMixin, ProcessorMixin):
    """Each `<image>` becomes as many image tokens as its image gives; all the rest is the tokenizer's.

    Args:
        image_processor: a `VisionLanguageImageProcessor`.
        tokenizer: one whose vocabulary has `<image>`; `VisionLanguageModel.attach` sees to it.
        chat_template: default the tokenizer's.
    """

    def __init__(self, image_processor: Any = None, tokenizer: Any = None, chat_template: str | None = None, **kwargs):
        self.image_token = IMAGE_TOKEN
        self.image_token_id = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
        tokenizer.padding_side = "left"  # generation goes on where every row ends
        super().__init__(image_processor, tokenizer, chat_template=chat_template or tokenizer.chat_template)

    def __call__(
        self,
        images: ImageInput | Sequence[ImageInput] | Sequence[Sequence[ImageInput]] | None = None,
        text: str | Sequence[str] | None = None,
        videos: Sequence[Video] | None = None,
        *,
        patch_tokens: torch.Tensor | Sequence[torch.Tensor] | None = None,
        grid: tuple[int, int] | None = None,
        padding: bool | str = True,
        truncation: bool = False,
        max_length: int | None = None,
        return_tensors: str | None = "pt",
        **kwargs: Any,
    ) -> BatchFeature:
        """Tokenize prompts and preprocess their images.

        Args:
            images: images in the order of their `<image>`, in one list or one list for each text.
            text: prompts; several `<image>` each, or none.
            patch_tokens: (images, N, D), or (N, D) of each image in a list, in the order of `<image>` and in place of the images:
                what the model's encoder gave for them, such as rows of a `TokenStore`. For models with one canvas for each image.
            grid: (h, w) of patch_tokens; default that of the encoder's own preprocessing.
            videos: frames, one sequence of images (or one array of them) for each `<video>`, in order. A video is its
                frames, one image each: `<video>` becomes as many `<image>`.
            padding, truncation, max_length, return_tensors, kwargs: as for the tokenizer.

        Returns:
            input_ids and attention_mask (B, T); if there are images pixel_values (canvases, C, H, W), and where the model's
            layout has them image_sizes (images, 2); or patch_tokens (images, N, D). Pass `grid` to the model as well.

        Raises:
            ValueError: images and patch_tokens; patch_tokens that do not fit the grid or the layout; images unlike placeholders in number, or truncation that would cut image tokens.
        """
        if text is None:
            raise ValueError("the processor needs text: a prompt with one <image> for each image")
        texts = [text] if isinstance(text, str) else list(text)
        if not texts or not all(isinstance(one, str) for one in texts):
            raise ValueError(f"text is {text!r}, expected a prompt or a list of prompts")
        if patch_tokens is not None and (images is not None or videos is not None):
            raise ValueError("patch_tokens take the place of images and videos: pass one of them")
        image_list = [] if patch_tokens is not None else self._flat(images, texts)
        texts, image_list = _with_frames(texts, image_list, list(videos or []))
        data: dict[str, Any] = {}
        if patch_tokens is not None:
            data, counts = self._stored(texts, patch_tokens, grid)
            texts = self.expand(texts, counts)
        elif image_list:
            data = dict(self.image_processor.preprocess(image_list))
            texts = self.expand(texts, self.num_image_tokens(data))
        bos = self.tokenizer.bos_token
        written = [bool(bos) and one.startswith(bos) for one in texts]
        if all(written):  # by the chat template
            kwargs.setdefault("add_special_tokens", False)
        elif any(written):
            raise ValueError(f"some texts begin with {bos} and some do not: apply the chat template to all or to none")
        kwargs.setdefault("return_token_type_ids", False)
        encoded = self.tokenizer(texts, padding=padding, truncation=truncation, max_length=max_length, **kwargs)
        for i, (one, ids) in enumerate(zip(texts, encoded["input_ids"], strict=True)):
            needed, kept = one.count(IMAGE_TOKEN), list(ids).count(self.image_token_id)
            if kept != needed:
                cause = f"truncation to {max_length} tokens" if truncation else "the tokenizer"
                raise ValueError(
                    f"text {i} needs {needed} image tokens, but {cause} leaves {kept}: raise max_length or shorten the text"
                )
        return BatchFeature({**encoded, **data}, tensor_type=return_tensors)

    def note_auto_map(self, described: Any) -> bool:
        """As `RemoteCodeMixin.note_auto_map`, also for the image processor, which is part of the same file."""
        return super().note_auto_map(described) | self.image_processor.note_auto_map(self.image_processor)

    def answer_frame(self) -> tuple[str, str]:
        """What the chat template writes between its generation prompt and an answer, and after the answer up to its end.

        The end is the first special token after the answer.

        Raises:
            ValueError: the template does not continue its own generation prompt, or puts no special token after an
                answer, so that a trained model could not stop.
        """
        question, mark = [{"role": "user", "content": "question"}], "\ue000"
        prompt = self.apply_chat_template(question, add_generation_prompt=True)
        whole = self.apply_chat_template([*question, {"role": "assistant", "content": f"{mark}answer{mark}"}])
        if not whole.startswith(prompt) or whole.count(mark) != 2:
            raise ValueError(
                "the chat template does not continue its own generation prompt: training and use would differ; pass another template"
            )
        lead, _, after = whole[len(prompt) :].split(mark)
        special = {str(token) for token in self.tokenizer.added_tokens_decoder.values() if token.special}
        special = (special | set(self.tokenizer.all_special_tokens)) - {IMAGE_TOKEN}
        ends = [(after.find(token), -len(token), token) for token in special if token in after]
        if not ends:
            raise ValueError(
                "the chat template puts no special token after an answer, so generation could not stop: add eos_token to it"
            )
        at, _, token = min(ends)
        return lead, after[: at + len(token)]

    def end_of_answer_id(self) -> int | None:
        """Token that ends an answer in the chat template; None if the template cannot be trained on."""
        try:
            ids = self.tokenizer(self.answer_frame()[1], add_special_tokens=False)["input_ids"]
        except ValueError:
            return None
        return ids[-1]

    def num_image_tokens(self, pixels: Mapping[str, Any]) -> list[int]:
        """Tokens of each image in what the image processor returned."""
        if "image_sizes" in pixels:
            sizes = [(int(height), int(width)) for height, width in pixels["image_sizes"]]
        else:
            sizes = [tuple(pixels["pixel_values"].shape[-2:])] * len(pixels["pixel_values"])
        count = cache(self.image_processor.num_image_tokens)
        return [count(*size) for size in sizes]

    def expand(self, texts: Sequence[str], counts: Sequence[int]) -> list[str]:
        """The texts with each `<image>`, in reading order, repeated as often as counts say."""
        left = iter(counts)
        return [re.sub(IMAGE_TOKEN, lambda _: IMAGE_TOKEN * next(left), one) for one in texts]

    def _stored(
        self, texts: list[str], tokens: torch.Tensor | Sequence[torch.Tensor], grid: tuple[int, int] | None
    ) -> tuple[dict[str, Any], list[int]]:
        """patch_tokens of the model, and the number of image tokens of each image."""
        try:
            stacked = tokens if isinstance(tokens, torch.Tensor) else torch.stack(list(tokens))
            each = self.image_processor.num_stored_tokens(stacked.shape, grid)
        except RuntimeError as error:
            raise ValueError(f"patch_tokens have different shapes ({error}): pass images of one grid") from None
        number = sum(one.count(IMAGE_TOKEN) for one in texts)
        if number != len(stacked):
            raise ValueError(
                f"the text has {number} {IMAGE_TOKEN} in all, but there are patch_tokens of {len(stacked)} images: pass one row for each"
            )
        return {"patch_tokens": stacked}, [each] * number

    def _flat(self, images: Any, texts: list[str]) -> list[ImageInput]:
        counts = [one.count(IMAGE_TOKEN) for one in texts]
        if images is None:
            images = []
        elif isinstance(images, np.ndarray | torch.Tensor) and images.ndim == 4:
            images = list(images)
        elif not isinstance(images, list | tuple):
            images = [images]
        if len(images) == len(texts) and any(item is None for item in images):
            images = [[] if item is None else item for item in images]  # rows without an image
        if any(isinstance(item, list | tuple) for item in images):
            lists = [list(item) if isinstance(item, list | tuple) else [item] for item in images]
            for i, (number, got) in enumerate(zip(counts, lists, strict=False)):
                if number != len(got):
                    raise ValueError(
                        f"text {i} has {number} {IMAGE_TOKEN} but {len(got)} images: pass one image for each"
                    )
            if len(lists) != len(texts):
                raise ValueError(
                    f"got {len(texts)} texts and {len(lists)} lists of images: pass one list for each text"
                )
            return [image for item in lists for image in item]
        if sum(counts) != len(images):
            raise ValueError(
                f"the text has {sum(counts)} {IMAGE_TOKEN} in all, but there are {len(images)} images: pass one image for each"
            )
        return list(images)

    def apply_chat_template(
        self,
        conversation: Sequence[dict[str, Any]] | Sequence[Sequence[dict[str, Any]]],
        chat_template: str | None = None,
        *,
        tokenize: bool = False,
        return_dict: bool = False,
        return_tensors: str | None = "pt",
        processor_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """As in transformers, for templates that take a message's content as text and for those that take it as parts.

        Content may be given either way. For a template that takes text, images and videos become lines of their own.
        """
        if not isinstance(conversation, list | tuple):
            raise ValueError(
                f"the conversation is a {type(conversation).__name__}, expected a list of messages: [{{'role', 'content'}}]"
            )
        nested = bool(conversation) and isinstance(conversation[0], list | tuple)
        chats: Any = conversation if nested else [conversation]
        template = chat_template or self.chat_template
        as_content = _as_parts if isinstance(template, str) and _takes_parts(template) else _as_text
        given = [[{**message, "content": as_content(message.get("content"))} for message in chat] for chat in chats]
        text = super().apply_chat_template(given if nested else given[0], chat_template, **kwargs)
        if not tokenize:
            return text
        shown = {"images": _given(chats, "image") or None, "videos": _given(chats, "video") or None}
        batch = self(text=text, **shown, return_tensors=return_tensors, **(processor_kwargs or {}))
        return batch if return_dict else batch["input_ids"]


@cache
def _takes_parts(template: str) -> bool:
    """Whether a chat template shows images and text of content that is a list of parts, and nothing of the list itself."""
    probe = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "\ue000"}]}]
    try:
        (shown,), _ = render_jinja_template([probe], chat_template=template, bos_token="", eos_token="")
    except (TypeError, TemplateError):
        return False
    return IMAGE_TOKEN in shown and "\ue000" in shown and "'type'" not in shown


def _with_frames(texts: list[str], images: list[ImageInput], videos: list[Video]) -> tuple[list[str], list[ImageInput]]:
    """The texts with `<image>` for each frame in place of `<video>`, and all images in reading order."""
    number = sum(one.count(VIDEO_MARK) for one in texts)
    if not videos and not number:
        return texts, images
    frames = [list(video) for video in videos]
    if number != len(frames) or not all(frames):
        raise ValueError(
            f"the text has {number} {VIDEO_MARK} in all, but there are {len(frames)} videos, of {[len(f) for f in frames]} frames: "
            "pass the frames of one video for each"
        )
    given, shown, ordered = iter(images), iter(frames), []

    def place(mark: re.Match) -> str:
        own = [next(given)] if mark[0] == IMAGE_TOKEN else next(shown)
        ordered.extend(own)
        return IMAGE_TOKEN * len(own)

    return [re.sub(f"{IMAGE_TOKEN}|{VIDEO_MARK}", place, one) for one in texts], ordered


def _as_text(content: str | list[dict[str, Any]] | None) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    for part in content:
        if part.get("type") not in ("image", "video", "text") or (part["type"] == "text" and "text" not in part):
            raise ValueError(f"a chat message holds {part!r}, expected parts of type 'image', 'video' or 'text'")
    marks = {"image": IMAGE_TOKEN, "video": VIDEO_MARK}
    return "\n".join(marks.get(part["type"]) or part["text"] for part in content)


def _as_parts(content: str | list[dict[str, Any]] | None) -> list[dict[str, Any]]:
    """Content as a list of parts; `<image>` and `<video>` in a text become parts, with the line break next to them."""
    if not isinstance(content, str):
        return list(content or [])
    kinds = {IMAGE_TOKEN: {"type": "image"}, VIDEO_MARK: {"type": "video"}}
    pieces = re.split(rf"\n?({IMAGE_TOKEN}|{VIDEO_MARK})\n?", content)
    return [kinds.get(piece) or {"type": "text", "text": piece} for piece in pieces if piece]


def _given(chats: Sequence[Sequence[dict[str, Any]]], kind: str) -> list[Any]:
    """What the parts of type `kind` show, in reading order."""
    contents = [message.get("content") for chat in chats for message in chat]
    parts = [part for content in contents if content is not None and not isinstance(content, str) for part in content]
    keys = (kind, "path", "url")
    return [
        next(part[key] for key in keys if key in part)
        for part in parts
        if part["type"] == kind and any(k in part for k in keys)
    ]


def with_image_token(tokenizer: Any) -> Any:
    """A copy that knows `<image>` as one token and can pad."""
    tokenizer = copy.deepcopy(tokenizer)
    if IMAGE_TOKEN not in tokenizer.added_tokens_encoder:  # a word of the vocabulary alone may still be split
        tokenizer.add_tokens([IMAGE_TOKEN], special_tokens=True)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    if tokenizer.pad_token is None:
        raise ValueError("the tokenizer has neither a padding, an end nor an unknown token: set tokenizer.pad_token")
    return tokenizer


AutoProcessor.register(VisionLanguageConfig, VisionLanguageProcessor)
