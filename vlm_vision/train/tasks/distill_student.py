"""A student that gives the features of several teachers: an encoder, and two heads for each teacher.

Ranzinger et al. 2024, "AM-RADIO: agglomerative vision foundation model" (arXiv:2312.06709), section 3.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vlm_vision.checkpoints.manifest import write_manifest
from vlm_vision.encoder import Encoder
from vlm_vision.files import read_json, whole, write_json
from vlm_vision.load_encoder import load
from vlm_vision.nn.output import Tap, VisionOutput
from vlm_vision.objectives.distill import feature_distillation_loss


@dataclass(frozen=True)
class TeacherFeatures:
    """Name and widths of a teacher's features."""

    name: str
    width: int
    """Channels of its patch tokens."""
    summary: int
    """Channels of its vector for the whole image, pooled or else CLS; 0 if it has neither."""


class TeacherHead(nn.Module):
    """(..., D) of a student to (..., E) of a teacher, standardized: two linear layers with a norm and GELU between.

    Standardized means that each channel has mean 0 and deviation 1 over images: teachers whose features differ in size a
    hundredfold then have equal weight, and so have their channels, few of which would count otherwise. It takes two vectors
    and is undone by them. PHI-S (Ranzinger et al. 2024, arXiv:2410.01680), which rotates the channels and gives them one
    common scale, keeps their proportions; the simpler one is done here.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, in_dim: int, out_dim: int):
        super().__init__()
        self.fc1, self.norm, self.fc2 = nn.Linear(in_dim, out_dim), nn.LayerNorm(out_dim), nn.Linear(out_dim, out_dim)
        self.register_buffer("mean", torch.zeros(out_dim))
        self.register_buffer("std", torch.ones(out_dim))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.norm(self.fc1(tokens))))

    def standardized(self, told: Tensor) -> Tensor:
        """The teacher's own features, as the head is to give them."""
        return (told.float() - self.mean) / self.std

    def restored(self, said: Tensor) -> Tensor:
        """The other way round."""
        return said.float() * self.std + self.mean


class TeacherHeads(nn.Module):
    """What a student has for one teacher."""

    def __init__(self, in_dim: int, space: TeacherFeatures):
        super().__init__()
        self.space = space
        self.patches = TeacherHead(in_dim, space.width)
        self.summary = TeacherHead(in_dim, space.summary) if space.summary else None

    def forward(self, seen: VisionOutput) -> VisionOutput:
        """The teacher's patch tokens on the student's grid, and its summary as `pooled`, in the teacher's own units."""
        patches = self.patches.restored(self.patches(seen.patch_tokens))
        summary = None if self.summary is None else self.summary.restored(self.summary(summary_vector(seen)))
        return VisionOutput(patches, seen.grid, pooled=summary)

    def features(self, out: VisionOutput) -> dict[str, Tensor]:
        """What is learned of this teacher in an output of its own, or in one of `forward`: (B, ..., D) by name."""
        found = {"patches": out.patch_tokens}
        return found if self.summary is None else found | {"summary": summary_vector(out)}

    def each(self) -> dict[str, TeacherHead]:
        """One for the patch tokens, and one for the summary where there is one."""
        return {"patches": self.patches} | ({} if self.summary is None else {"summary": self.summary})

    def cosine_sums(self, seen: VisionOutput, told: VisionOutput) -> dict[str, Tensor]:
        """Sums over images: of the mean cosine similarity, and (D,) of the mean direction, whose length is the cosine
        similarity of the best constant."""
        said, found = self(seen), {}
        said = VisionOutput(on_grid(said.patch_tokens, said.grid, told.grid), told.grid, pooled=said.pooled)
        theirs = self.features(told)
        for part, ours in self.features(said).items():
            true = F.normalize(theirs[part].float(), dim=-1).reshape(len(ours), -1, ours.shape[-1])
            cosines = (F.normalize(ours.float(), dim=-1).reshape(true.shape) * true).sum(dim=-1)
            found[f"eval_cosine/{self.space.name}/{part}"] = cosines.mean(dim=1).sum()
            found[f"eval_constant/{self.space.name}/{part}"] = true.mean(dim=1).sum(dim=0)
        return found

    def loss(self, seen: VisionOutput, told: VisionOutput) -> Tensor:
        """Cosine and smooth L1 of the patch tokens on the teacher's grid, and of the summary; mean over images.

        The student's tokens go to the teacher's grid, so that what is learned is what the teacher says and no blend of it.
        AM-RADIO takes for the summary the cosine alone, which leaves its length open: with it, the vector could not be
        brought back to the teacher's own units.
        """
        said = {"patches": on_grid(self.patches(seen.patch_tokens), seen.grid, told.grid)}
        if self.summary is not None:
            said["summary"] = self.summary(summary_vector(seen))
        true = {part: self.each()[part].standardized(values) for part, values in self.features(told).items()}
        return torch.stack([feature_distillation_loss(said[part], true[part]) for part in said]).sum()


class AgglomerativeStudent(nn.Module):
    """A student that gives the features of several teachers in one pass.

    student = Agglomerate.load("runs/distill/model")
    student(student.encoder.preprocess(images))["siglip"].patch_tokens
    """

    def __init__(self, encoder: Encoder, spaces: Sequence[TeacherFeatures]):
        super().__init__()
        self.encoder = encoder
        self.heads = nn.ModuleList(TeacherHeads(encoder.embed_dim, space) for space in spaces)

    def forward(self, pixels: Tensor) -> dict[str, VisionOutput]:
        """Each teacher's patch tokens on the student's grid, and its summary as `pooled`, by its name."""
        seen = self.encode(pixels)
        return {heads.space.name: heads(seen) for heads in self.each()}

    def encode(self, pixels: Tensor) -> VisionOutput:
        """The student's own features, which heads read."""
        return self.encoder(pixels, tap=Tap(), pool=False)

    def each(self) -> list[TeacherHeads]:
        """The heads of each teacher."""
        return [heads for heads in self.heads if isinstance(heads, TeacherHeads)]

    def save(self, folder: Path) -> None:
        """Write the encoder, for transformers and `vlm_vision.load`, and heads.safetensors and heads.json in the same folder."""
        with whole(folder) as staging:
            self.encoder.save_pretrained(staging)
            save_file(self.heads.state_dict(), staging / "heads.safetensors")
            write_json(staging / "heads.json", {"teachers": [asdict(heads.space) for heads in self.each()]})
            write_manifest(staging)

    @classmethod
    def load(cls, folder: str | Path) -> "AgglomerativeStudent":
        """What `save` wrote, in evaluation mode.

        Raises:
            ValueError: a folder without heads, or with others than heads.json describes.
        """
        folder = Path(folder)
        described = read_json(folder / "heads.json")
        encoder = load(str(folder))
        if not isinstance(encoder, Encoder):
            raise ValueError(f"{folder} holds several towers: expected one, the student")
        try:
            student = cls(encoder, [TeacherFeatures(**one) for one in described["teachers"]])
            student.heads.load_state_dict(load_file(folder / "heads.safetensors"))
        except (KeyError, TypeError, RuntimeError, OSError):
            raise ValueError(f"the heads in {folder} do not fit its heads.json: save the student again") from None
        return student.eval()


def summary_vector(out: VisionOutput) -> Tensor:
    """(B, D): the pooled vector; CLS where there is none; else the mean of the patch tokens."""
    if out.pooled is not None:
        return out.pooled
    return out.patch_tokens.mean(dim=1) if out.cls_token is None else out.cls_token


def on_grid(tokens: Tensor, grid: tuple[int, int], wanted: tuple[int, int]) -> Tensor:
    """Tokens (B, N, D) of one grid on another, bilinearly; antialiased where there are fewer."""
    if grid == wanted:
        return tokens
    rows = tokens.float().transpose(1, 2).unflatten(2, grid)
    return F.interpolate(rows, size=wanted, mode="bilinear", antialias=True).flatten(2).transpose(1, 2)
