"""Test of a language model: packed sequences must not affect each other."""

import torch

from vlm_vision.vlm.model import VisionLanguageModel


@torch.no_grad()
def check_packing(model: VisionLanguageModel) -> None:
    """Compare two short sequences in one packed row with the same two in separate rows.

    Raises:
        ValueError: they differ: the language model carries a state from one token to the next (linear attention, state
            spaces, convolutions), or ignores position_ids.
    """
    was_training = model.training
    model.eval()
    ids = torch.arange(12, device=model.device)[None] % model.config.text_config.vocab_size
    pieces = ids.split([5, 7], dim=1)
    positions = torch.cat([torch.arange(piece.shape[1], device=model.device) for piece in pieces])[None]
    words = model.get_input_embeddings()
    packed = model(inputs_embeds=words(ids), position_ids=positions).logits
    alone = torch.cat([model(inputs_embeds=words(piece), use_cache=False).logits for piece in pieces], dim=1)
    model.train(was_training)
    error = (packed - alone).abs().max() / alone.abs().max()
    if not error < (1e-3 if model.dtype == torch.float32 else 5e-2):
        raise ValueError(
            f"{type(model.language_model).__name__} mixes packed conversations (logits differ by {error:.1%}): "
            "train it with pack_length 0"
        )
