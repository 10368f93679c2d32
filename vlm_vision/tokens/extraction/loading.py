"""The encoder of an extraction by name, which each process loads."""

from dataclasses import dataclass

from projectors import Projector
from vlm_vision.encoder import Encoder
from vlm_vision.fused import FusedEncoder
from vlm_vision.load_encoder import Size, load, load_projector


@dataclass(frozen=True)
class EncoderSource:
    """Arguments of `vlm_vision.load`, and the projector after it."""

    source: str
    image_size: tuple[int, ...] = ()
    """Side of images in pixels, one for all towers or one each; empty for their own."""
    part: str | None = None
    device: str = "cpu"
    projector: str | None = None
    """Argument of `vlm_vision.load_projector`; None for no projector."""
    pixels: str = "pil"
    """Image backend of transformers whose pixels the preprocessing makes."""

    def load(self) -> tuple[Encoder | FusedEncoder, Projector | None]:
        """Both, on the device. Raises ValueError as the loaders."""
        sides: list[Size] = list(self.image_size)
        size = sides[0] if len(sides) == 1 else sides or None
        encoder = load(self.source, image_size=size, part=self.part, device=self.device, pixels=self.pixels)
        projector = None if self.projector is None else load_projector(self.projector).eval().to(self.device)
        return encoder, projector
