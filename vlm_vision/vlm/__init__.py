"""The join: encoder, projector and a HuggingFace causal language model as one HuggingFace model.

Order, low to high: config, image_processor, processor, model. Each registers its class with the Auto class of
transformers that loads it; `vlm_vision.auto` sees to it that they are imported in time.
"""
