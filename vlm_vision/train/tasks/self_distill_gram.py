"""The earlier teacher of Gram anchoring: its source, its crops, and the grid of its patches."""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from vlm_vision.encoder import Encoder
from vlm_vision.load_encoder import load
from vlm_vision.nn.output import Tap
from vlm_vision.nn.position import Grid
from vlm_vision.nn.vit import VisionTransformer
from vlm_vision.objectives.gram import Negatives


@dataclass(frozen=True)
class GramSettings:
    """Gram anchoring, which keeps the similarities of patches near those of an earlier teacher: Siméoni et al. 2025, "DINOv3" (arXiv:2508.10104), section 4."""

    teacher: str = ""
    """Earlier teacher to load, an argument of vlm_vision.load; needed for weights.gram above 0."""
    image_size: int = 0
    """Side in pixels of a large crop for the earlier teacher, without distortions; twice the student's in DINOv3. The features are
    resized to the student's grid. 0 for the student's crop in the earlier teacher's own size, with equally many patches."""
    refresh: int = 0
    """Steps between copies of the present teacher to the earlier one; 0 for none, 10,000 in DINOv3."""
    refreshes: int = 0
    """Largest number of copies of the present teacher to the earlier one; 0 for no limit, 3 in DINOv3."""
    negatives: Negatives = "clip"
    """Treatment of negative similarities in vlm_vision.objectives.gram.gram_loss: keep in DINOv3."""

    def __post_init__(self) -> None:
        if min(self.image_size, self.refresh, self.refreshes) < 0:
            raise ValueError(f"{self}: expected image_size, refresh and refreshes of at least 0")
        if not self.teacher and any((self.image_size, self.refresh, self.refreshes)):
            raise ValueError("gram has settings but no teacher: set gram.teacher, or remove the settings")

    def due(self, steps: int) -> bool:
        """Whether the earlier teacher is to be refreshed after so many steps."""
        if not self.refresh or steps % self.refresh:
            return False
        return not self.refreshes or steps // self.refresh <= self.refreshes


def earlier_teacher(gram: GramSettings, encoder: Encoder) -> Encoder:
    """A loaded encoder whose patches lie where the student's do, or are to be resized to them.

    Raises:
        ValueError: several towers; another grid; to be refreshed, and of another architecture.
    """
    source, grid = gram.teacher, encoder.config.grid
    earlier = load(source, tap=Tap())
    if not isinstance(earlier, Encoder):
        raise ValueError(f"gram.teacher {source} has several towers: expected one")
    earlier_grid = earlier.grid(*(earlier.preprocess.output_size or encoder.config.image_size))
    if not gram.image_size and earlier_grid != grid:
        raise ValueError(
            f"gram.teacher {source} has {earlier_grid} patches and the student {grid}: expected equal grids; set "
            "gram.image_size"
        )
    if not gram.refresh:
        return earlier
    own, theirs = ({name: one.shape for name, one in each.model.state_dict().items()} for each in (encoder, earlier))
    if differ := sorted(name for name, _ in own.items() ^ theirs.items() if name != "mask_token"):
        raise ValueError(
            f"gram.teacher {source} and the student differ at {differ[0]}: gram.refresh needs the student's architecture"
        )
    model = VisionTransformer(encoder.config)
    model.load_state_dict(encoder.model.state_dict() | earlier.model.state_dict())
    return Encoder(model, preprocess=earlier.preprocess, origin=earlier.origin)


def on_grid(tokens: Tensor, grid: Grid, to: Grid) -> Tensor:
    """Patch tokens (B, h * w, D) of one grid, resized to another by a bicubic without antialiasing, as DINOv3 does."""
    if grid == to:
        return tokens
    square = tokens.float().mT.unflatten(-1, grid)
    return F.interpolate(square, size=to, mode="bicubic").flatten(2).mT
