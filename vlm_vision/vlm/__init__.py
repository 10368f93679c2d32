"""The vision-language model: encoder, projector and causal language model as one HuggingFace model.

Order, low to high: config, layout, image_processor, processor, vision (pixels to image tokens), generation (prompt to
continuation), remote_code, loading, model; `formats` reads and writes the checkpoints of other projects. Each class is
registered with the Auto class of transformers that loads it; `vlm_vision.auto` imports them in time.
"""
