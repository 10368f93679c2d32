"""`VisionLanguageModel`: any encoder, any projector, any HuggingFace causal language model.

pixel values -> encoder -> patch tokens -> projector -> image tokens
input ids -> word embeddings, image tokens in the places of `<image>` -> language model -> logits, loss
"""

import copy
import inspect
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
from transformers.generation.utils import GenerationMixin
from transformers.modeling_utils import PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase
from transformers.utils.import_utils import is_tracing

import projectors
from vlm_vision.checkpoints.hf.card import Card, write_card
from vlm_vision.checkpoints.manifest import renew_manifest, write_manifest
from vlm_vision.encoder import Encoder
from vlm_vision.files import CARD, check_folder, whole
from vlm_vision.fused import FusedEncoder
from vlm_vision.vlm.card import language_hub_id, put_card_back, vlm_card
from vlm_vision.vlm.config import VisionLanguageConfig, as_json
from vlm_vision.vlm.deepstack import DeepStack, check_deepstack, deep_levels
from vlm_vision.vlm.generation import LanguageMixin
from vlm_vision.vlm.image_processor import VisionLanguageImageProcessor, encoder_from_dict
from vlm_vision.vlm.layout import Layout, Native, Whole, layout_from_dict
from vlm_vision.vlm.loading import LoadingMixin, describe
from vlm_vision.vlm.merge_adapter import merge_adapters
from vlm_vision.vlm.processor import IMAGE_TOKEN, PLAIN_TEMPLATE, VisionLanguageProcessor, with_image_token
from vlm_vision.vlm.remote_code import RemoteCodeMixin
from vlm_vision.vlm.vision import Newline, VisionMixin, active_peft_copy


class VisionLanguageModel(LoadingMixin, RemoteCodeMixin, VisionMixin, LanguageMixin, PreTrainedModel, GenerationMixin):
    """A vision-language model. Make one with `attach`, or load one with `from_pretrained`.

    It is a transformers model: generation, peft, accelerate, Trainer, the Auto classes and save_pretrained work on it.
    attn_implementation, output_attentions and output_hidden_states are the language model's alone: the encoder always uses
    PyTorch's scaled_dot_product_attention.
    """

    hub_id: str = ""
    """Hub id that the model was loaded from; empty for others. Only model cards state it."""
    config_class = VisionLanguageConfig
    main_input_name = "input_ids"
    input_modalities = ["image", "text"]
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _skip_keys_device_placement = ["past_key_values", "cache"]
    _no_split_modules = ["Block", "AttentionPool"]

    def __init__(
        self,
        config: VisionLanguageConfig,
        *,
        encoder: Encoder | FusedEncoder | None = None,
        projector: projectors.Projector | None = None,
        language_model: PreTrainedModel | None = None,
    ):
        super().__init__(config)
        self.encoder = encoder if encoder is not None else encoder_from_dict(config.encoder_config)
        self.projector = projector if projector is not None else projectors.build(**config.projector_config)
        self.language_model = (
            language_model if language_model is not None else AutoModelForCausalLM.from_config(config.text_config)
        )
        self.layout = layout_from_dict(config.layout_config)
        like = next(self.projector.parameters())
        self.newline = Newline(self.projector.out_dim, like) if self.layout.newline else None
        self._processor: VisionLanguageProcessor | None = None
        if config.encoder_in_fp32:
            self._keep_in_fp32_modules_strict = {"encoder", "projector", "newline"}
        if next(self.encoder.parameters(), None) is None:  # its tokens are stored: the weights in a file are not for it
            self._keys_to_ignore_on_load_unexpected = [r"^encoder\."]
        self._deepstack = DeepStack(self.language_model, deep_levels(self.encoder)) if config.deepstack else None
        self._language_arguments = frozenset(inspect.signature(type(self.language_model).forward).parameters)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing: encoder and projector set their weights when they are built."""

    @classmethod
    def attach(
        cls,
        encoder: Encoder | FusedEncoder,
        llm: PreTrainedModel,
        projector: str | projectors.Projector = "mlp",
        tokenizer: Any = None,
        layout: Layout | None = None,
        deepstack: bool = False,
    ) -> "VisionLanguageModel":
        """Attach a vision encoder to a language model.

        Args:
            encoder: from `vlm_vision.load`; used as it is, not copied.
            llm: an `AutoModelForCausalLM`; used as it is, but an adapter that transformers loaded into it is merged. Its embeddings grow if `<image>` or another token of the tokenizer
                has no row.
            projector: a name of `projectors.build`, or a projector of fitting widths.
            tokenizer: the language model's; a copy of it gets `<image>` and, if it has none, a padding token.
            layout: `Whole()`, `AnyRes(pinpoints)` or `Native(max_patches)`, see `vlm_vision.vlm.layout`. Default `Native`
                for a tower of native resolution, as its preprocessing resizes images, else `Whole`.
            deepstack: add the deep features of a tower that has them to the first layers of the language model, as Qwen3-VL
                does. Their mergers map to one width: that of `llm`. False warns if the tower has any.

        Returns:
            The joined model; `.processor` makes its inputs.

        Raises:
            ValueError: no tokenizer, a model that takes no embeddings, an unknown projector or one of other widths.
        """
        if not isinstance(encoder, Encoder | FusedEncoder):
            raise ValueError(f"encoder is a {type(encoder).__name__}, expected the result of vlm_vision.load")
        if not isinstance(llm, PreTrainedModel):
            raise ValueError(
                f"llm is a {type(llm).__name__}, expected an AutoModelForCausalLM without a wrapper of peft"
            )
        if not isinstance(tokenizer, PreTrainedTokenizerBase):
            raise ValueError(
                "attach needs the language model's tokenizer: pass tokenizer=AutoTokenizer.from_pretrained(...)"
            )
        if llm.get_output_embeddings() is None or llm.config.is_encoder_decoder:
            raise ValueError(f"{type(llm).__name__} is not a causal language model: load it with AutoModelForCausalLM")
        if "inputs_embeds" not in inspect.signature(llm.forward).parameters:
            raise ValueError(
                f"{type(llm).__name__} does not take inputs_embeds, which image tokens need: use another language model"
            )
        if any(type(module).__module__.startswith("transformers.integrations.gguf") for module in llm.modules()):
            raise ValueError(
                "the language model keeps its weights in GGUF blocks, which cannot be saved: load it with "
                "quantization_config=GgufConfig(dequantize=True)"
            )
        if layout is not None and not isinstance(layout, Layout):
            raise ValueError(f"layout is {layout!r}, expected Whole(), AnyRes(pinpoints) or Native(max_patches)")
        merge_adapters(llm)
        tokenizer = with_image_token(tokenizer)
        image_token_id = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
        words: Any = llm.get_input_embeddings()
        rows, width = words.weight.shape
        if (needed := max(image_token_id + 1, len(tokenizer))) > rows:
            llm.resize_token_embeddings(needed, mean_resizing=False)
        if isinstance(projector, str):
            options = {"name": projector, "in_dim": encoder.embed_dim, "out_dim": width}
            projector = projectors.build(**options)
        else:
            options = projectors.describe(projector)
        if (projector.in_dim, projector.out_dim) != (encoder.embed_dim, width):
            raise ValueError(
                f"the projector maps {projector.in_dim} to {projector.out_dim} channels, "
                f"but the encoder gives {encoder.embed_dim} and the language model takes {width}"
            )
        layout = layout or _own_layout(encoder)
        layout.check(encoder, projector)
        if deepstack:
            check_deepstack(encoder, width, layout.newline)
        elif levels := deep_levels(encoder):
            warnings.warn(
                f"this encoder has deep features of {levels} blocks, which the language model does not read: attach it with "
                "deepstack=True to add them to its first layers",
                stacklevel=2,
            )
        in_fp32 = encoder.dtype == torch.float32 != llm.dtype
        config = describe(encoder, options, layout, llm, image_token_id, encoder_in_fp32=in_fp32, deepstack=deepstack)
        projector = projector.to(device=llm.device, dtype=encoder.dtype if config.encoder_in_fp32 else llm.dtype)
        model = cls._assemble(config, encoder.to(llm.device), projector, llm)
        model.generation_config = copy.deepcopy(llm.generation_config)
        if model.generation_config.pad_token_id is None:
            model.generation_config.pad_token_id = tokenizer.pad_token_id
        image_processor = VisionLanguageImageProcessor(
            config.encoder_config, config.projector_config, config.layout_config
        )
        template = tokenizer.chat_template or PLAIN_TEMPLATE
        model.processor = VisionLanguageProcessor(image_processor, tokenizer, chat_template=template)
        model.generation_config.eos_token_id = _ends(model, tokenizer)
        return model.eval()

    @property
    def processor(self) -> VisionLanguageProcessor | None:
        """Makes this model's inputs; follows a change of the encoder's preprocessing or of the projector."""
        if self._processor is not None:
            described = (
                self.encoder.to_dict(),
                projectors.describe(active_peft_copy(self.projector)),
                self.layout.to_dict(),
            )
            held = self._processor.image_processor
            if [*map(as_json, described)] != [held.encoder_config, held.projector_config, held.layout_config]:
                self._processor.image_processor = VisionLanguageImageProcessor(*described)
        return self._processor

    @processor.setter
    def processor(self, processor: VisionLanguageProcessor | None) -> None:
        self._processor = processor

    def train(self, mode: bool = True) -> "VisionLanguageModel":
        """As in PyTorch, but an encoder of which nothing trains stays in evaluation mode."""
        super().train(mode)
        if not any(weight.requires_grad for weight in self.encoder.parameters()):
            self.encoder.eval()
        return self

    @property
    def dtype(self) -> torch.dtype:
        """The language model's; encoder and projector may be in float32 all the same."""
        return self.language_model.dtype

    def embed(
        self,
        input_ids: Tensor,
        pixel_values: Tensor | None = None,
        *,
        image_sizes: Tensor | None = None,
        patch_tokens: Tensor | None = None,
        grid: tuple[int, int] | None = None,
        condition: Tensor | None = None,
    ) -> Tensor:
        """Input embeddings (B, T, width): words, and image tokens where input_ids are the image token.

        They are wider with deep features, see `vlm_vision.vlm.deepstack`.

        Args:
            condition: (canvases, film_dim), for an encoder with FiLM.

        Raises:
            ValueError: another number of image tokens in input_ids than the images give.
        """
        embeds = self.words(input_ids)
        places = input_ids == self.config.image_token_id
        if pixel_values is None and patch_tokens is None:
            if bool(places.any()):
                raise ValueError(
                    f"input_ids hold {int(places.sum())} image tokens but there are no pixel_values: pass the images"
                )
            return embeds
        features = self.image_tokens(
            pixel_values, image_sizes=image_sizes, patch_tokens=patch_tokens, grid=grid, condition=condition
        )
        counts = [len(one) for one in features]
        if not is_tracing() and (number := int(places.sum())) != sum(counts):  # a trace can read nothing back
            each = f"{counts[0]} each" if len(set(counts)) == 1 else f"{', '.join(map(str, counts[:5]))} in turn"
            raise ValueError(
                f"input_ids hold {number} image tokens but {len(counts)} images give {each}, {sum(counts)} in all: "
                "use this model's processor, and do not truncate the text"
            )
        tokens = torch.cat(features).to(embeds.device, embeds.dtype)
        return embeds.masked_scatter(places[..., None].to(embeds.device), tokens)

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        cache: Any = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        image_sizes: Tensor | None = None,
        patch_tokens: Tensor | None = None,
        grid: tuple[int, int] | None = None,
        condition: Tensor | None = None,
        **kwargs: Any,
    ):
        """The language model's own output, loss included if labels are given (-100 is ignored).

        Args:
            input_ids: (B, T), image tokens where images go; images in reading order.
            pixel_values: (canvases, C, H, W), with image_sizes (images, 2) where the layout has them; or patch_tokens
                (canvases, N, D) with their grid. An encoder with FiLM wants condition (canvases, film_dim) too.
            inputs_embeds: (B, T, width) in place of all of these.
            attention_mask, position_ids, labels, use_cache, logits_to_keep, kwargs: as for the language model; its cache is
                past_key_values, or cache as transformers calls it from 5.24 on. Positions are counted from the mask, so that
                left and right padding give the same. Without a mask, position_ids that begin again in a row begin another
                sequence there: sequences packed into one row do not see each other.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("pass exactly one of input_ids and inputs_embeds")
        if inputs_embeds is not None and (pixel_values is not None or patch_tokens is not None):
            raise ValueError(
                "inputs_embeds cannot be combined with images: pass input_ids, or inputs_embeds = vlm.embed(...)"
            )
        past = past_key_values if cache is None else cache
        decoding = input_ids is not None and _goes_on(input_ids, attention_mask, past)
        if decoding and pixel_values is None and patch_tokens is None:
            inputs_embeds = self.words(input_ids)  # type: ignore[arg-type]  # an image token here is one that the model wrote
        elif inputs_embeds is None:
            inputs_embeds = self.embed(
                input_ids,  # type: ignore[arg-type]
                pixel_values,
                image_sizes=image_sizes,
                patch_tokens=patch_tokens,
                grid=grid,
                condition=condition,
            )
        assert inputs_embeds is not None
        if position_ids is None and attention_mask is not None and attention_mask.ndim == 2:
            position_ids = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, -inputs_embeds.shape[1] :]
        elif position_ids is not None and attention_mask is None and past is None and _begins_again(position_ids):
            use_cache = False  # transformers sees packed sequences by their positions only where there is no cache
        given: dict[str, Any] = dict(position_ids=position_ids, use_cache=use_cache, logits_to_keep=logits_to_keep)
        given = {name: value for name, value in given.items() if name in self._language_arguments and value is not None}
        given["cache" if "cache" in self._language_arguments else "past_key_values"] = past
        given |= dict(attention_mask=attention_mask, labels=labels, **kwargs)
        if self._deepstack is None:
            return self.language_model(inputs_embeds=inputs_embeds, **given)
        with self._deepstack.reading(inputs_embeds, self.projector.out_dim) as words:
            return self.language_model(inputs_embeds=words, **given)

    def get_encoder(self, modality: str | None = None) -> nn.Module:
        """The vision tower; the model itself for a modality that it does not know."""
        return self.encoder if modality in (None, "image", "video") else super().get_encoder(modality)

    def set_encoder(self, encoder: Encoder | FusedEncoder, modality: str | None = None) -> None:
        self.encoder = encoder

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Write model, processor, model card and manifest, whole or not at all; the Auto classes load the folder after
        `import vlm_vision`.

        Raises:
            ValueError: `save_directory` is a file, or the encoder has no weights, as its tokens are read from a store.
            OSError: no room or no permission to write; what was in the folder is unchanged.
        """
        check_folder(save_directory)
        if next(self.encoder.parameters(), None) is None:
            raise ValueError(
                "the encoder of this model has no weights: set model.encoder to the one that is to be saved"
            )
        super().save_pretrained(save_directory, **kwargs)

    def write_folder(self, folder: Path, **kwargs: Any) -> None:
        if not kwargs.get("is_main_process", True):  # takes part in gathering the weights, and writes nothing
            self._describe_parts()
            super().write_folder(folder, **kwargs)
            return
        with whole(folder) as staging:
            self.write_parts(staging, **kwargs)
            write_manifest(staging)

    def write_parts(self, folder: Path, **kwargs: Any) -> None:
        """Write all that `save_pretrained` writes but the manifest, directly into a folder."""
        self._describe_parts()
        super().write_folder(folder, **kwargs)
        if self.processor is not None:
            self.processor.save_pretrained(folder)
        write_card(folder, self.card())

    def card(self) -> Card:
        """The model card of a folder that `save_pretrained` writes."""
        self._describe_parts()
        towers = [part for part in self.encoder.modules() if isinstance(part, Encoder)]
        parts = [*(tower.hub_id for tower in towers), language_hub_id(self.config.text_config)]
        bases = [self.hub_id] if self.hub_id else parts
        return vlm_card(self.config, self, bases, has_processor=self.processor is not None)

    def _describe_parts(self) -> None:
        """Write what the parts are now into the configuration."""
        self.config.encoder_config = as_json(self.encoder.to_dict())
        self.config.projector_config = projectors.describe(active_peft_copy(self.projector))
        self.config.layout_config = as_json(self.layout.to_dict())

    def _upload_modified_files(self, working_dir: str | Path, *args: Any, **kwargs: Any) -> Any:
        """As in transformers, whose `push_to_hub` writes its form over the model card: with the card."""
        put_card_back(Path(working_dir) / CARD, self.card())
        renew_manifest(working_dir, CARD)
        return super()._upload_modified_files(working_dir, *args, **kwargs)


def _ends(model: VisionLanguageModel, tokenizer: Any) -> int | list[int] | None:
    """Where generation stops: the language model's own end tokens, the tokenizer's, and that of the chat template."""
    assert model.processor is not None
    known = model.generation_config.eos_token_id
    ends = [] if known is None else [known] if isinstance(known, int) else list(known)
    ends += [tokenizer.eos_token_id, model.processor.end_of_answer_id()]
    ends = list(dict.fromkeys(end for end in ends if end is not None))
    return ends[0] if len(ends) == 1 else ends or None


def _goes_on(input_ids: Tensor, attention_mask: Tensor | None, past: Any) -> bool:
    """Whether input_ids continue a sequence whose beginning the cache holds."""
    if past is None or attention_mask is None:
        return past is not None and bool(past.get_seq_length() > 0)
    return attention_mask.shape[-1] > input_ids.shape[1]


def _begins_again(position_ids: Tensor) -> bool:
    """Whether positions in some row do not always grow."""
    return bool((position_ids[:, 1:] <= position_ids[:, :-1]).any())


def _own_layout(encoder: Encoder | FusedEncoder) -> Layout:
    """The layout that an encoder's preprocessing asks for."""
    if isinstance(encoder, FusedEncoder) or encoder.preprocess.output_size is not None:
        return Whole()
    if budget := encoder.preprocess.max_patches:
        return Native(budget)
    return Native(None) if encoder.preprocess.patch_size else Whole()


AutoModelForImageTextToText.register(VisionLanguageConfig, VisionLanguageModel)
