"""Models from nothing."""

import numpy as np
import pytest
from support.models import make_image

from vlm_vision.new_models import new_encoder

SMALL = dict(
    image_size=16, patch_size=8, embed_dim=16, depth=1, num_heads=2, mlp_dim=32, class_token=False, pool="none"
)


def test_colors_are_scaled_as_asked_for() -> None:
    seen = make_image(height=16, width=16)
    colors = np.asarray(seen).transpose(2, 0, 1) / 255
    mean, std = (0.45, 0.4, 0.3), (0.04, 0.05, 0.06)
    wanted = (colors - np.reshape(mean, (3, 1, 1))) / np.reshape(std, (3, 1, 1))
    np.testing.assert_allclose(new_encoder(SMALL, mean=mean, std=std).preprocess(seen)[0], wanted, atol=1e-5)
    np.testing.assert_allclose(new_encoder(SMALL).preprocess(seen)[0], 2 * colors - 1, atol=1e-5)


def test_a_field_that_no_encoder_has_is_named() -> None:
    with pytest.raises(ValueError, match="width"):
        new_encoder(SMALL | {"width": 3})
