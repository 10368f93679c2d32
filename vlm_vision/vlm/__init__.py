"""The join: encoder, projector and a HuggingFace causal language model as one HuggingFace model.

Order, low to high: config, layout, image_processor, processor, eyes (pixels to image tokens), speech (prompt to
continuation), hub, model; then public checkpoints of others: foreign, llava, llava_export, prismatic, stock, export. What
registers a class registers it with the Auto class of transformers that loads it; `vlm_vision.auto` sees to it that they are
imported in time.
"""
