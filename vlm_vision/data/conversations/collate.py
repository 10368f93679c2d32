"""Conversations to one batch of a `VisionLanguageModel`: tokens, labels, images; padded rows, or packed ones."""

from collections.abc import Sequence
from itertools import islice

from torch import Tensor

from vlm_vision.data.conversations.labels import ChatLabels, pack, pad
from vlm_vision.data.conversations.records import Conversation
from vlm_vision.data.patch_features import PatchFeatures
from vlm_vision.data.stored_image import ImageSource, open_stored_images
from vlm_vision.vlm.processor import VisionLanguageProcessor


class Collator:
    """Called with conversations, returns the model's inputs and labels (B, T), -100 where there is no loss.

    Args:
        processor: the model's; it makes pixels and counts image tokens.
        max_length: tokens per conversation, image tokens included; None for no limit.
        features: patch tokens of a frozen tower, read in place of pixels. Needs layout `Whole`.
        pack_length: tokens per row in which several conversations stand one after another; 0 for one in each row. Packed
            rows have position_ids that begin again with each conversation, and no attention_mask: the model keeps the
            conversations apart. A longer conversation has a separate row.

    Raises:
        ValueError: as `ChatLabels`; no conversation; features for a layout of more than one canvas.
    """

    def __init__(
        self,
        processor: VisionLanguageProcessor,
        *,
        max_length: int | None = None,
        features: PatchFeatures | None = None,
        pack_length: int = 0,
    ):
        if features is not None and processor.image_processor.canvas_size is None:
            raise ValueError("stored patch tokens need one canvas of one size for each image: leave the features out")
        self.processor, self.features, self.pack_length = processor, features, pack_length
        self.chat = ChatLabels(processor, max_length=max_length)

    def __call__(self, conversations: Sequence[Conversation]) -> dict[str, Tensor]:
        if not conversations:
            raise ValueError("there are no conversations to collate: expected at least one")
        images = [image for one in conversations for image in one.images]
        data, counts = self._see(images) if images else ({}, [])
        left = iter(counts)
        examples = [self.chat(one, list(islice(left, len(one.images)))) for one in conversations]
        pad_token_id = self.processor.tokenizer.pad_token_id
        if self.pack_length:
            return pack(examples, pad_token_id, length=self.pack_length) | data
        return pad(examples, pad_token_id) | data

    def _see(self, images: Sequence[ImageSource]) -> tuple[dict[str, Tensor], list[int]]:
        """Inputs of the model for the images, and the number of tokens of each."""
        if self.features is None:
            data = dict(self.processor.image_processor.preprocess(open_stored_images(images)))
            return data, self.processor.num_image_tokens(data)
        size = self.processor.image_processor.canvas_size
        each = self.processor.image_processor.num_image_tokens(*size)
        return {"patch_tokens": self.features[images]}, [each] * len(images)
