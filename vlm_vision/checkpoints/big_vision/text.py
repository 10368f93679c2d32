"""Text towers of big_vision `.npz` files: SigLIP and SigLIP 2, `proj/image_text/text_transformer.py`."""

from torch import Tensor

from vlm_vision.checkpoints.big_vision import flax_keys
from vlm_vision.checkpoints.checkpoint import Checkpoint
from vlm_vision.checkpoints.keys import Key, key
from vlm_vision.checkpoints.text_towers import TextTower, scalar
from vlm_vision.checkpoints.towers import TowerWeights, WeightSource
from vlm_vision.nn.text import TextConfig
from vlm_vision.preprocess.tokenizer import TokenizerRules

_POSITION = "pos_embedding"
_POSITION_AGAIN = "Encoder_0/posembed_input/pos_embedding"


class _OnePosition:
    """Weights of a text tower; old checkpoints have two position tables, which add up."""

    def __init__(self, weights: WeightSource):
        self._weights = weights
        self.shapes = {name: shape for name, shape in weights.shapes.items() if name != _POSITION_AGAIN}

    def get(self, name: str, *, keep: bool = True) -> Tensor:
        value = self._weights.get(name)
        if name == _POSITION and _POSITION_AGAIN in self._weights.shapes:
            return value + self._weights.get(_POSITION_AGAIN)
        return value


def read(checkpoint: Checkpoint) -> TextTower:
    """The text tower of a file.

    Raises:
        ValueError: no text tower in it.
    """
    path, file = checkpoint.path, checkpoint.arrays
    part = _OnePosition(TowerWeights(file, "txt/"))
    if "Embed_0/embedding" not in part.shapes:
        raise ValueError(f"{path} has no text tower: it holds no array txt/Embed_0/embedding")
    try:
        config = _config(part, file.num_heads("txt/Encoder_0/"))
        scale, bias = scalar(file, "t"), scalar(file, "b")
    except (KeyError, IndexError) as error:
        raise ValueError(f"{path} has no text tower of big_vision: it lacks {error}") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return TextTower(
        source=str(path),
        format="big_vision",
        config=config,
        keys=_keys(config),
        weights=part,
        rules=TokenizerRules(frame="siglip"),
        logit_scale=scale,
        logit_bias=bias,
    )


def _config(part: WeightSource, num_heads: int) -> TextConfig:
    """All follows from shapes except epsilon and activation, flax's defaults, and the pooling, that of all SigLIPs."""
    shapes = part.shapes
    vocab_size, dim = shapes["Embed_0/embedding"]
    return TextConfig(
        vocab_size=vocab_size,
        context_length=shapes[_POSITION][1],
        embed_dim=dim,
        depth=sum(f"/{name}".endswith("/LayerNorm_0/scale") for name in shapes),
        num_heads=num_heads,
        mlp_dim=shapes["Encoder_0/encoderblock_0/MlpBlock_0/Dense_0/kernel"][0],
        mlp="gelu_tanh",
        norm_eps=1e-6,
        causal=False,
        pool="last",
        eos_id=1,
        pad_id=1,
        proj_dim=shapes["head/kernel"][0] if "head/kernel" in shapes else 0,
        projection_bias="head/bias" in shapes,
    )


def _keys(config: TextConfig) -> list[Key]:
    keys = [
        key("token_embedding.weight", "Embed_0/embedding"),
        key("position", _POSITION),
        *flax_keys.norm("norm", "Encoder_0/encoder_norm"),
    ]
    if config.proj_dim:
        keys += flax_keys.dense("head", "head")[: 1 + config.projection_bias]
    return keys + flax_keys.blocks(config.depth, "Encoder_0/encoderblock")
