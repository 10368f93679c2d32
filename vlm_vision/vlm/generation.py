"""Generation: the embeddings of a prompt, and additions to the generation of transformers."""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationMixin
from transformers.generation.candidate_generator import CandidateGenerator
from transformers.modeling_utils import PreTrainedModel

from vlm_vision.preprocess.spec import ImageInput

IMAGES = ("pixel_values", "image_sizes", "patch_tokens", "grid")
"""Inputs of a `VisionLanguageModel` for its images."""

_PREPARED = inspect.signature(GenerationMixin.prepare_inputs_for_generation)  # pyright: ignore[reportAttributeAccessIssue]
CACHE = "cache" if "cache" in _PREPARED.parameters else "past_key_values"
"""Name of the cache during generation in transformers."""


class LanguageMixin:
    """The language half of a `VisionLanguageModel`, a base class before `GenerationMixin`.

    Prompts are embedded once, images included, and go through transformers' generation as `prompt_embeds` (B, T, width)
    next to input_ids. Ids past the prompt are words, also where the model wrote an image token.
    """

    processor: Any
    device: Any
    config: Any
    language_model: PreTrainedModel

    def embed(self, input_ids: Tensor, pixel_values: Tensor | None = None, **images: Any) -> Tensor:
        """Input embeddings (B, T, width), see `VisionLanguageModel.embed`."""
        raise NotImplementedError

    def words(self, input_ids: Tensor) -> Tensor:
        """Embeddings of text, see `VisionMixin.words`."""
        raise NotImplementedError

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module | None:
        return self.language_model.get_output_embeddings()

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.language_model.set_output_embeddings(new_embeddings)

    def get_decoder(self) -> nn.Module:
        return self.language_model.get_decoder()

    def set_decoder(self, decoder: nn.Module) -> None:
        setattr(self.language_model, self.language_model.base_model_prefix, decoder)

    def resize_token_embeddings(self, new_num_tokens: int | None = None, *args: Any, **kwargs: Any) -> nn.Module:
        """As in transformers, also for language models that store their vocabulary size. `<image>` must keep its row."""
        if new_num_tokens is not None and new_num_tokens <= self.config.image_token_id:
            raise ValueError(
                f"new_num_tokens is {new_num_tokens}, but the image token has id {self.config.image_token_id}: keep at least "
                f"{self.config.image_token_id + 1}"
            )
        embeddings = super().resize_token_embeddings(  # pyright: ignore[reportAttributeAccessIssue]
            new_num_tokens, *args, **kwargs
        )
        self.language_model.vocab_size = self.config.text_config.vocab_size
        return embeddings

    @torch.no_grad()
    def generate(self, inputs: Tensor | None = None, **kwargs: Any):
        """As `GenerationMixin.generate`; images are encoded once, whatever the number of beams or steps.

        Args:
            inputs: or `input_ids`, the prompt (B, T), with pixel_values and all other outputs of the processor; or
                inputs_embeds (B, T, width) in its place.
            past_key_values: (or cache, as transformers calls it from 5.24 on) of an earlier call whose sequences the prompt
                begins with. Images are needed if what is new shows some; then pass them all, or with input_ids that are only
                what is new, the new ones.
            assistant_model: a `VisionLanguageModel` of the same tokenizer, which sees the images too, or a language model.
            kwargs: as in transformers.

        Raises:
            ValueError: images without input_ids, or with inputs_embeds.
        """
        images = {name: value for name in IMAGES if (value := kwargs.pop(name, None)) is not None}
        input_ids = kwargs.pop("input_ids", None) if inputs is None else inputs
        if images and (input_ids is None or kwargs.get("inputs_embeds") is not None):
            raise ValueError(
                f"{', '.join(images)} without input_ids, which mark the places of the images: pass all outputs of the "
                "processor"
            )
        if input_ids is not None and kwargs.get("inputs_embeds") is None and "prompt_embeds" not in kwargs:
            if kwargs.get("past_key_values") is not None:
                kwargs[CACHE] = kwargs.pop("past_key_values")
            past, mask = kwargs.get(CACHE), kwargs.get("attention_mask")
            whole = mask is None or mask.shape[-1] == input_ids.shape[1]
            seen = int(past.get_seq_length()) if past is not None and whole and not images else 0
            kwargs["prompt_embeds"] = self._prompt(input_ids, seen, images)
            if isinstance(assistant := kwargs.get("assistant_model"), LanguageMixin):
                kwargs["assistant_embeds"] = assistant._prompt(input_ids, seen, images)
        return super().generate(input_ids, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]

    def answer(self, images: ImageInput | Sequence[ImageInput], question: str, *, max_new_tokens: int = 64) -> str:
        """Greedy answer to a question about one or more images, through the chat template."""
        if self.processor is None:
            raise ValueError(
                "this model has no processor: load it from a folder with a tokenizer, or set model.processor"
            )
        image_list: Any = list(images) if isinstance(images, list | tuple) else [images]
        content = [{"type": "image"}] * len(image_list) + [{"type": "text", "text": question}]
        prompt = self.processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        batch = self.processor(text=prompt, images=image_list, return_tensors="pt").to(self.device)
        out = self.generate(**batch, max_new_tokens=max_new_tokens, do_sample=False)
        return self.processor.tokenizer.decode(out[0, batch["input_ids"].shape[1] :], skip_special_tokens=True).strip()

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        past_key_values: Any = None,
        cache: Any = None,
        inputs_embeds: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        assistant_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        past = past_key_values if cache is None else cache
        given = super().prepare_inputs_for_generation(  # pyright: ignore[reportAttributeAccessIssue]
            input_ids, inputs_embeds=inputs_embeds, **{CACHE: past}, **kwargs
        )
        ids = given.get("input_ids")
        if ids is not None and not any(given.get(name) is not None for name in IMAGES):
            start = input_ids.shape[1] - ids.shape[1]
            if prompt_embeds is None:
                prompt_embeds = self.words(ids[:, :0])
            elif input_ids.shape[1] < prompt_embeds.shape[1]:  # prefill in chunks
                start = int(past.get_seq_length())
            prompt = prompt_embeds[:, start : start + ids.shape[1]]
            given["inputs_embeds"] = torch.cat([prompt, self.words(ids[:, prompt.shape[1] :])], dim=1)
            given["input_ids"] = None
        return given

    def _prompt(self, input_ids: Tensor, seen: int, images: dict[str, Any]) -> Tensor:
        """Embeddings of a prompt of whose tokens the first `seen` are in a cache, and their images not given."""
        return torch.cat([self.words(input_ids[:, :seen]), self.embed(input_ids[:, seen:], **images)], dim=1)

    def _get_candidate_generator(self, *, model_kwargs: dict[str, Any], **kwargs: Any) -> CandidateGenerator:
        """An assistant sees the prompt by its own image tokens, of its own width."""
        if kwargs.get("assistant_model") is not None:
            embeds = model_kwargs.get("assistant_embeds")
            ours = ("inputs_embeds", "prompt_embeds", "assistant_embeds")
            model_kwargs = {name: value for name, value in model_kwargs.items() if name not in ours}
            model_kwargs |= {} if embeds is None else {"prompt_embeds": embeds}
        return super()._get_candidate_generator(  # pyright: ignore[reportAttributeAccessIssue]
            model_kwargs=model_kwargs, **kwargs
        )
