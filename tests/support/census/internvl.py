"""InternVL and Qianfan-OCR."""

from torch import Tensor, nn

from support.census.case import Case
from support.census.inputs import pixels


def connector(whole: nn.Module, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    shuffled = whole.pixel_shuffle(tokens.unflatten(1, grid), scale_factor=whole.config.downsample_ratio)
    return whole.multi_modal_projector(shuffled.flatten(1, 2))


_SHARED = dict(
    tower="vision_tower",
    reference=pixels(prefix=1, resize=False),
    sizes=((64, 64), (32, 96)),
    connector=connector,
    wide_connector=True,
)


def _case(label: str = "", model_type: str = "internvl", **vision) -> Case:
    return Case(model_type=model_type, label=label, changes={"vision_config": vision}, **_SHARED)


CASES = (
    _case(attention_bias=True),
    _case("internvl, large", norm_type="rms_norm", use_qk_norm=True),
    _case("internvl, normed queries", use_qk_norm=True, use_mask_token=True, hidden_act="gelu_pytorch_tanh"),
    _case("internvl, final norm", use_mean_pooling=False, norm_type="rms_norm", layer_norm_eps=1e-3),
    _case("internvl, no positions", use_absolute_position_embeddings=False, num_channels=3),
    _case(model_type="qianfan_ocr", num_channels=3),
    _case(
        "qianfan_ocr, large", model_type="qianfan_ocr", use_qk_norm=True, norm_type="rms_norm", use_mean_pooling=False
    ),
)
