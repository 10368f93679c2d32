"""GLM-4V and its successors, whose own last_hidden_state is what a convolution makes of the tokens."""

from operator import attrgetter

import torch
from torch import Tensor, nn

from support.census.case import Case, Reference
from support.census.inputs import flat_patches, raster, squares


def normed(*, merge: int = 2, temporal: int = 2, patch: int = 8):
    """The tokens after the last norm, before the convolution."""

    def reference(tower: nn.Module, x: Tensor) -> Reference:
        rows, grid = flat_patches(x, patch, merge, temporal)
        seen: list[Tensor] = []
        hook = tower.post_layernorm.register_forward_hook(lambda module, given, out: seen.append(out))
        t, h, w = grid[0].tolist()  # transformers gives each frame a row of its own, and its GLM-4V fails without
        tower(hidden_states=rows, grid_thw=torch.tensor([[1, h, w]] * (t * len(grid))))
        hook.remove()
        return Reference(raster(seen[0], grid, merge))

    return reference


def merged(merge: int = 2):
    """The convolution and the gated merger."""

    def connector(whole: nn.Module, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        visual = attrgetter("visual")(whole)
        x = squares(tokens, grid, merge).unflatten(0, (-1, merge, merge)).permute(0, 3, 1, 2)
        return visual.merger(visual.downsample(x).flatten(1)).unflatten(0, (len(tokens), -1))

    return connector


_SHARED = dict(
    reference=normed(), connector=merged(), tower="visual", sizes=((64, 64), (48, 112)), frames=4, wide_connector=True
)
_OTHER = dict(
    reference=normed(merge=3, temporal=1),
    connector=merged(3),
    sizes=((48, 48), (24, 72)),
    frames=3,
)
_WIDE = dict(
    spatial_merge_size=3, temporal_patch_size=1, out_hidden_size=40, intermediate_size=56, hidden_size=48, num_heads=3,
    rms_norm_eps=1e-3, rope_parameters={"rope_theta": 300.0},
)  # fmt: skip

CASES = (
    *(
        Case(model_type=name, changes={"vision_config": dict(image_size=48)}, **_SHARED)
        for name in ("glm4v", "glm4v_moe", "glm46v", "glmga")
    ),
    Case(
        model_type="glm4v",
        label="glm4v-biased",
        changes={"vision_config": _WIDE | dict(attention_bias=True, hidden_act="gelu", image_size=58)},
        **_SHARED | _OTHER,
    ),
    Case(model_type="glm_ocr", **_SHARED),
    Case(
        model_type="glm_ocr",
        label="glm_ocr-unbiased",
        changes={"vision_config": _WIDE | dict(attention_bias=False, in_channels=3)},
        **_SHARED | _OTHER,
    ),
    *(
        Case(
            model_type="glm5_next",
            label=label,
            changes={"vision_config": dict(projection_intermediate_size=72, swiglu_limit=limit),
                     "text_config": dict(num_key_value_heads=4)},
            **_SHARED,
        )
        for label, limit in (("", 10.0), ("glm5_next-limited", 0.05))
    ),
)  # fmt: skip
