"""Adapters that transformers loaded into a language model, merged into its weights: they could not be saved with it."""

import logging

from torch import nn
from transformers.modeling_utils import PreTrainedModel

log = logging.getLogger(__name__)


def merge_adapters(llm: PreTrainedModel) -> None:
    """Merge LoRA on linear layers in place, with a note in the log. Nothing happens without an adapter.

    Raises:
        ValueError: an adapter of another kind, or on other layers.
    """
    layers = {name: one for name, one in llm.named_modules() if type(one).__module__.startswith("peft.tuners.")}
    if not layers:
        return
    from peft.tuners.lora import LoraLayer

    tuned = {name: one for name, one in layers.items() if isinstance(one, LoraLayer)}
    for name, one in tuned.items():
        if not isinstance(one.get_base_layer(), nn.Linear):
            raise ValueError(
                f"the language model has an adapter on {name}, a {type(one.get_base_layer()).__name__}: merge it with peft before attach"
            )
    if not tuned:
        name, one = next(iter(layers.items()))
        raise ValueError(f"the language model has a {type(one).__name__} at {name}: merge it with peft before attach")
    for name, one in tuned.items():
        one.merge(safe_merge=True)  # type: ignore[operator]  # of peft's linear layer
        llm.set_submodule(name, one.get_base_layer())
    llm._hf_peft_config_loaded = False
    if hasattr(llm, "peft_config"):
        del llm.peft_config
    log.info("the adapter of the language model was merged into its weights, %d layers", len(tuned))
