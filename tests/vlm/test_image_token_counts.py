"""Image tokens in the text and images must agree, in both directions."""

import pytest
import torch
from support.models import make_image


@pytest.mark.parametrize("images", [1, 3])
def test_fewer_and_more_images_than_their_tokens_are_refused(vlm, images: int) -> None:
    imaged = vlm.processor(
        text="<image> <image> what is this", images=[make_image(0), make_image(1)], return_tensors="pt"
    )
    pixels = imaged["pixel_values"][:1].expand(images, -1, -1, -1)
    with pytest.raises(ValueError, match=f"32 image tokens but {images} images give 16"), torch.no_grad():
        vlm(input_ids=imaged["input_ids"], pixel_values=pixels)
