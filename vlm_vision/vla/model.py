"""`VisionLanguageActionModel`: a `VisionLanguageModel` with an action head, its normalization, its files."""

from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from vlm_vision.checkpoints.hf.card import IMAGE, Card, count, write_card
from vlm_vision.checkpoints.manifest import write_manifest
from vlm_vision.checkpoints.weights import WeightFiles
from vlm_vision.files import read_json, whole, write_json
from vlm_vision.fused import film_dim
from vlm_vision.robot.normalize import Kind, Normalizer
from vlm_vision.robot.observation import PolicySpec
from vlm_vision.robot.statistics import Named, Statistics, choose_statistics, read_statistics
from vlm_vision.vla.crop import CropConfig
from vlm_vision.vla.heads.base import ActionHead
from vlm_vision.vla.heads.build import new_head
from vlm_vision.vla.heads.prefix import Prefix
from vlm_vision.vla.state import StateToken
from vlm_vision.vlm.model import VisionLanguageModel

PROMPT = "In: What action should the robot take to {instruction}?\nOut:"
"""Prompt of OpenVLA, after the images."""
POLICY, WEIGHTS, STATISTICS = "policy.json", "action_head.safetensors", "dataset_statistics.json"
"""Files in a policy's folder, in addition to those of its `VisionLanguageModel`."""


class VisionLanguageActionModel(nn.Module):
    """A call with the batch of an `ActionCollator` returns the sum of the loss; `VLAPolicy` returns actions.

    Args:
        vlm: the vision-language model; peft may wrap it.
        head: action head of the same width, see `vlm_vision.vla.heads`.
        spec: cameras in the order of their images, numbers of action and state.
        statistics: by name of the data; each has "action", and "observation.state" if the state is read.
        normalization: kind of both.
        prompt: with {instruction}, which is put in lower case.
        crop_config: crop of the images.
        lead_ids: tokens after the prompt, which the tokenizer does not write.

    Raises:
        ValueError: parts that do not fit each other; it names them.
    """

    def __init__(
        self,
        vlm: nn.Module,
        head: ActionHead,
        *,
        spec: PolicySpec,
        statistics: Named,
        normalization: Kind = "quantiles",
        prompt: str = PROMPT,
        crop_config: CropConfig = CropConfig(),
        lead_ids: Sequence[int] = (),
    ):
        super().__init__()
        if (head.action_dim, head.chunk) != (spec.action_dim, spec.chunk):
            raise ValueError(
                f"the head predicts {head.chunk} actions of {head.action_dim} numbers, but the spec has {spec.chunk} of {spec.action_dim}: make "
                "the head from this spec"
            )
        if prompt.count("{instruction}") != 1 or "<image>" in prompt:
            raise ValueError(
                f"the prompt is {prompt!r}: expected {{instruction}} once, and no <image>: images are put before the prompt"
            )
        if head.bounded and normalization == "mean_std":
            raise ValueError(
                f"the {head.name} head predicts numbers from -1 to 1, but normalization 'mean_std' exceeds them: choose 'quantiles' "
                "or 'min_max'"
            )
        if not statistics:
            raise ValueError("there are no statistics: pass those of the training data by name, see read_statistics")
        self.vlm, self.head, self.spec = vlm, head, spec
        self.statistics, self.prompt, self.crop_config = dict(statistics), prompt, crop_config
        self.normalization: Kind = normalization
        self.lead_ids = tuple(lead_ids)
        for name in self.statistics:
            self.normalizers(name)
        token = spec.state_dim and not head.reads_state
        self.state_token = StateToken(spec.state_dim, self.plain_vlm.projector.out_dim) if token else None

    @classmethod
    def attach(
        cls,
        vlm: VisionLanguageModel,
        head: str,
        *,
        spec: PolicySpec,
        statistics: Named,
        head_options: dict[str, Any] | None = None,
        **options: Any,
    ) -> "VisionLanguageActionModel":
        """Add a new action head to a model, in float32 and on the device of the projector.

        Args:
            head: tokens, parallel or flow.
            head_options: of the head.
            options: other arguments of the class.
        """
        made = cls(vlm, new_head(head, vlm, spec, **(head_options or {})), spec=spec, statistics=statistics, **options)
        weight = next(vlm.projector.parameters())
        made.action_modules.to(weight.device)
        return made.eval()

    @property
    def plain_vlm(self) -> VisionLanguageModel:
        """Out of peft's wrapper."""
        inner: Any = self.vlm
        return inner if isinstance(inner, VisionLanguageModel) else inner.get_base_model()

    @property
    def action_modules(self) -> nn.ModuleList:
        """The modules that are not the vision-language model: head and state token."""
        return nn.ModuleList(part for _, part in self._own())

    def normalizers(self, data: str) -> tuple[Normalizer, Normalizer | None]:
        """Normalizers of actions and of the state, by the statistics of this name; see `choose_statistics`.

        Raises:
            ValueError: an unknown name, statistics that lack a feature, or have other dimensions than the spec.
        """
        features = choose_statistics(self.statistics, data)
        action = self._normalizer(features, ("action", "actions"), self.spec.action_dim)
        if not self.spec.state_dim:
            return action, None
        return action, self._normalizer(features, ("observation.state", "state", "proprio"), self.spec.state_dim)

    def _normalizer(self, features: dict[str, Statistics], names: tuple[str, ...], dim: int) -> Normalizer:
        statistics = next((features[name] for name in names if name in features), None)
        if statistics is None:
            raise ValueError(f"the statistics have {', '.join(features)}: expected {names[0]} too")
        if statistics.dim != dim:
            raise ValueError(
                f"{names[0]} has {dim} numbers here and {statistics.dim} in the statistics: pass the statistics of this robot"
            )
        return Normalizer(self.normalization, statistics)

    def prefix(self, batch: dict[str, Tensor]) -> Prefix:
        """The prompt with its images and, after these, the state.

        Args:
            batch: input_ids, attention_mask (B, T), pixel_values or patch_tokens, and state (B, S), normalized, where it is read.
        """
        vlm, sizes = self.plain_vlm, batch.get("image_sizes")
        condition = self.film_condition(batch) if film_dim(vlm.encoder) else None
        embeds = vlm.embed(
            batch["input_ids"],
            batch.get("pixel_values"),
            image_sizes=sizes,
            patch_tokens=batch.get("patch_tokens"),
            condition=condition,
        )
        mask = batch["attention_mask"]
        state = batch.get("state")
        if self.state_token is not None:
            assert state is not None
            places = batch["input_ids"] == vlm.config.image_token_id
            embeds, mask = insert_token(embeds, mask, self.state_token(state), after=places)
        return Prefix(vlm, embeds, mask, state)

    def film_condition(self, batch: dict[str, Tensor]) -> Tensor:
        """(images, W): the mean embedding of the prompt's words, for each image; what steers an encoder with FiLM, as in
        OpenVLA-OFT, where the end token counts too."""
        ids, vlm = batch["input_ids"], self.plain_vlm
        told = batch["attention_mask"].bool() & (ids != vlm.config.image_token_id)
        tail = self.head.tail(ids)
        words = vlm.get_input_embeddings()(torch.cat([ids, tail], dim=1))
        told = torch.cat([told, torch.ones_like(tail, dtype=torch.bool)], dim=1)
        mean = (words * told[..., None]).sum(1) / told.sum(1, keepdim=True)
        return mean.repeat_interleave(len(self.spec.cameras), dim=0)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        """Sum of the head's loss over its terms, a scalar in float32.

        Args:
            batch: of an `ActionCollator`.
        """
        draws = {name: batch[name] for name in self.head.random_inputs}
        return self.head.loss(self.prefix(batch), batch["actions"], batch["padded"], **draws)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write all that `from_pretrained` and `load_policy` read. AutoModelForImageTextToText reads the vision-language model.

        Raises:
            ValueError: adapters that are not merged.
        """
        if not isinstance(self.vlm, VisionLanguageModel):
            raise ValueError("the model has adapters: merge them first, see vlm_vision.train.adapters.merge")
        with whole(Path(folder)) as staging:
            self.vlm.write_parts(staging)
            own = {f"{name}.{key}": value for name, part in self._own() for key, value in part.state_dict().items()}
            save_file({name: value.contiguous() for name, value in own.items()}, staging / WEIGHTS)
            named = {name: {key: one.to_dict() for key, one in held.items()} for name, held in self.statistics.items()}
            write_json(staging / STATISTICS, named)
            write_json(staging / POLICY, self.to_dict())
            write_card(staging, self._card(self.vlm.card()))
            write_manifest(staging)

    def _card(self, card: Card) -> Card:
        """The policy's card, from that of its vision-language model."""
        spec, name, area = self.spec, next(iter(self.statistics)), self.crop_config.area
        crop = f"center crop of {area:.3g} of the area; " if area < 1 else ""
        images = ", ".join(f"{camera!r}: image" for camera in spec.cameras)
        state = f", state=np.zeros({spec.state_dim})" if spec.state_dim else ""
        load = f"""
import numpy as np
import vlm_vision as vv
from PIL import Image
from vlm_vision.robot.observation import Observation

policy = vv.load_policy(".", statistics={name!r})
{IMAGE}
observation = Observation({{{images}}}, "push the button"{state})
actions = policy.act([observation]).values  # {(1, spec.chunk, spec.action_dim)}, in the robot's units
print(actions)
"""
        about = (
            f"Action head {self.head.name}, {spec.chunk} actions of dimension {spec.action_dim} in one call; cameras "
            f"{', '.join(spec.cameras)}; {f'state of dimension {spec.state_dim}' if spec.state_dim else 'no state'}; "
            f"normalization {self.normalization}; "
            f"statistics of {', '.join(self.statistics)}. {card.about}; {count(self)} with the action head"
        )
        return replace(
            card,
            title=card.title.replace("Vision-language model", "Robot policy"),
            about=about,
            load=load,
            notes=("AutoModelForImageTextToText reads the folder without its action head, after `import vlm_vision`.",),
            preprocess=f"{crop}{card.preprocess}",
            pipeline_tag="robotics",
        )

    def to_dict(self) -> dict[str, Any]:
        """All but weights and statistics, as JSON."""
        return {
            "head": {"name": self.head.name, **self.head.options},
            "spec": asdict(self.spec),
            "normalization": self.normalization,
            "prompt": self.prompt,
            "sight": asdict(self.crop_config),
            "lead_ids": list(self.lead_ids),
        }

    @classmethod
    def from_pretrained(cls, folder: str | Path, **options: Any) -> "VisionLanguageActionModel":
        """What `save_pretrained` wrote. Strict: a missing or unused weight is an error.

        Args:
            options: of VisionLanguageModel.from_pretrained, such as dtype.

        Raises:
            ValueError: a folder without policy.json, or damaged.
        """
        folder = Path(folder)
        told = _read_policy(folder)
        head = told.pop("head")
        vlm = VisionLanguageModel.from_pretrained(folder, **options)
        statistics = read_statistics(folder / STATISTICS)
        made = cls.attach(vlm, head.pop("name"), statistics=statistics, head_options=head, **told)
        made._load_action_modules(folder)
        return made.eval()

    def start_from(self, folder: str | Path) -> None:
        """Load head and state token from a saved policy, to continue its training; other weights are not read.

        Raises:
            ValueError: a policy with another head, or another size of action or state; it names both.
        """
        folder = Path(folder)
        saved, mine = _read_policy(folder), self.to_dict()
        mine, theirs = mine["spec"] | {"head": mine["head"]}, asdict(saved["spec"]) | {"head": saved["head"]}
        if differing := [name for name in ("head", "action_dim", "chunk", "state_dim") if mine[name] != theirs[name]]:
            differences = "; ".join(f"{name} {theirs[name]} there, {mine[name]} here" for name in differing)
            raise ValueError(
                f"head and state of {folder} differ ({differences}): choose the same, or start with new ones (new_head of "
                "recipes.vla)"
            )
        self._load_action_modules(folder)

    def _load_action_modules(self, folder: Path) -> None:
        """Strict: a missing or unused weight is an error."""
        path = folder / WEIGHTS
        if not path.is_file():
            raise ValueError(f"{folder} has a {POLICY} but no {WEIGHTS}: download the whole folder")
        files = WeightFiles(path)
        held = {name: files.get(name) for name in files.shapes}
        if bad := [name for name, one in held.items() if not one.is_floating_point() or not one.isfinite().all()]:
            raise ValueError(
                f"{path}: {bad[0]} holds other values than finite floating point numbers: save the policy again"
            )
        for name, part in self._own():
            own = {key.removeprefix(f"{name}."): held.pop(key) for key in [*held] if key.startswith(f"{name}.")}
            try:
                part.load_state_dict(own, assign=False)
            except RuntimeError as error:
                reason = " ".join(str(error).split())[:300]
                raise ValueError(f"{path} does not fit {POLICY}: {reason}") from None
        if held:
            raise ValueError(f"{path} has unused weights {', '.join(sorted(held)[:5])}: save the policy again")

    def _own(self) -> list[tuple[str, nn.Module]]:
        return [(name, part) for name, part in self.named_children() if name != "vlm"]


def _read_policy(folder: Path) -> dict[str, Any]:
    """Description of a policy in its folder: its head, and the other arguments of the class."""
    path = folder / POLICY
    if not path.is_file():
        raise ValueError(
            f"{folder} has no {POLICY}: pass the folder of a policy, as recipes.vla writes it to out/model"
        )
    told = read_json(path)
    try:
        if lacking := {field.name for field in fields(PolicySpec)} - told["spec"].keys() - {"action_names", "fps"}:
            raise ValueError(f"{path} is damaged (its spec lacks {', '.join(sorted(lacking))}): restore the file")
        kept = {name: told[name] for name in ("normalization", "prompt", "lead_ids")}
        head = {"name": told["head"]["name"], **told["head"]}
        return kept | {"head": head, "spec": PolicySpec(**told["spec"]), "crop_config": CropConfig(**told["sight"])}
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged ({error!r}): restore the file") from None


def insert_token(embeds: Tensor, mask: Tensor, token: Tensor, *, after: Tensor) -> tuple[Tensor, Tensor]:
    """Put a token (B, W) into rows (B, T, W) behind the last place where `after` (B, T) is true."""
    length = after.shape[1]
    place = length - after.flip(1).int().argmax(dim=1, keepdim=True)  # (B, 1), one past the last
    index = torch.arange(length + 1, device=embeds.device).expand(len(embeds), -1)
    source = (index - (index > place).int()).clamp(max=length - 1)
    longer = embeds.gather(1, source[..., None].expand(-1, -1, embeds.shape[-1]))
    here = index == place
    longer = torch.where(here[..., None], token[:, None].to(embeds), longer)
    return longer, torch.where(here, 1, mask.gather(1, source))
