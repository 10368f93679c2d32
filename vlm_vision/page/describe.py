"""Description of images and encoders for the page: JSON, and arrays."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from vlm_vision.encoder import Encoder
from vlm_vision.fused import FusedEncoder
from vlm_vision.page.arrays import Arrays, image_url
from vlm_vision.page.compute import comparison, maps, texts
from vlm_vision.page.compute.attention import LayerAttention
from vlm_vision.page.compute.layers import choose_layers
from vlm_vision.page.compute.pixels import drawn, place, thumbnail
from vlm_vision.page.compute.trace import Trace, check_tower, trace
from vlm_vision.pair import Pair

_COMPARED = 8
"""Most images whose layers are compared."""
OUTLIER = 3.0
"""A token is an outlier where its length is above this many times the median of its layer."""


@dataclass(frozen=True)
class ShownEncoder:
    """An encoder of the page; `pair` where texts can be compared with its patches."""

    name: str
    encoder: Encoder | FusedEncoder
    pair: Pair | None = None

    @property
    def towers(self) -> list[Encoder]:
        """The encoder itself, or the towers of a fused one."""
        return list(self.encoder.towers) if isinstance(self.encoder, FusedEncoder) else [self.encoder]  # type: ignore[list-item]

    def pixels(self, image: Image.Image) -> tuple[Tensor, list[Tensor]]:
        """Pixels of the encoder, (1, C, H, W), and of each of its towers."""
        pixels = self.encoder.preprocess([image]).to(self.encoder.device)
        if isinstance(self.encoder, Encoder):
            return pixels, [pixels]
        windows = self.encoder.windows(pixels.shape[-2], pixels.shape[-1])
        return pixels, [pixels[:, 3 * i : 3 * i + 3, :h, :w] for i, (h, w) in enumerate(windows)]


@dataclass(frozen=True)
class ShownImage:
    """An image of the page, with its caption."""

    name: str
    image: Image.Image


@dataclass
class _Seen:
    """Of one encoder, what is computed over all images."""

    tokens: list[Tensor] = field(default_factory=list)
    traces: list[list[Trace]] = field(default_factory=list)
    """For each image, those of its towers."""


class Describer:
    """Describes encoders and images, one image after the other.

    Args:
        encoders: those of the page, in its order.
        layers: layers whose attention the page holds; None for a choice of `vlm_vision.page.compute.layers`.
        served: whether a server computes attention, so that the page holds none.
        texts: texts that are compared with the patches of pairs.
    """

    def __init__(
        self,
        encoders: Sequence[ShownEncoder],
        *,
        layers: Sequence[int] | None = None,
        served: bool = False,
        texts: Sequence[str] = (),
    ):
        self.encoders, self.layers, self.served, self.texts = list(encoders), layers, served, list(texts)
        self._costs: dict[int, dict[str, float]] = {}
        for one in self.encoders:
            for tower in one.towers:
                check_tower(tower)

    def describe(self, images: Sequence[ShownImage], arrays: Arrays) -> dict[str, Any]:
        """The description of all encoders and images; its arrays go to `arrays`."""
        chosen = self._layers(images)
        towers = [tower for one in self.encoders for tower in one.towers]
        layers_of = dict(zip(map(id, towers), chosen, strict=True))
        about: dict[str, Any] = {
            "images": [
                {"name": one.name, "size": list(one.image.size), "url": image_url(thumbnail(one.image), exact=False)}
                for one in images
            ],
            "encoders": [],
            "outlier": OUTLIER,
        }
        features: list[list[Tensor]] = []
        for one in self.encoders:
            described, seen = self._encoder(one, images, layers_of, arrays)
            about["encoders"].append(described)
            for i in range(len(one.towers)):
                per_image = [
                    [
                        comparison.places(out[made.prefix :], grid)
                        for out, grid in zip(made.outputs, made.grids, strict=True)
                    ]
                    for made in (traces[i] for traces in seen.traces[:_COMPARED])
                ]
                features.append([torch.cat(layer) for layer in zip(*per_image, strict=True)])
        about["cka"] = [[arrays.add(comparison.similarity(ours, theirs)) for theirs in features] for ours in features]
        return about

    def _layers(self, images: Sequence[ShownImage]) -> list[list[int]]:
        towers = [tower for one in self.encoders for tower in one.towers]
        if self.served:
            return [[] for _ in towers]
        grids = []
        for one in self.encoders:
            each = [[tower.config.grid_of(*p.shape[-2:]) for tower, p in zip(one.towers, parts, strict=True)]
                    for _, parts in (one.pixels(image.image) for image in images)]  # fmt: skip
            grids += [max(of_tower, key=lambda grid: grid[0] * grid[1]) for of_tower in zip(*each, strict=True)]
        return choose_layers(towers, grids, self.layers, images=len(images))

    def _encoder(
        self, one: ShownEncoder, images: Sequence[ShownImage], layers_of: dict[int, list[int]], arrays: Arrays
    ) -> tuple[dict[str, Any], _Seen]:
        seen, described_images = _Seen(), []
        for image in images:
            pixels, parts = one.pixels(image.image)
            traces, outputs = [], []
            for tower, part in zip(one.towers, parts, strict=True):
                made, out = trace(tower, part, layers_of[id(tower)])
                traces.append(made)
                outputs.append(out)
            tokens = torch.cat([out.patch_tokens[0] for out in outputs], dim=-1).float().cpu()
            seen.tokens.append(tokens)
            seen.traces.append(traces)
            described_images.append(
                {
                    "grid": list(outputs[0].grid),
                    "tokens": arrays.add(tokens, "float16"),
                    "texts": None if one.pair is None else arrays.add(texts.patch_features(one.pair, pixels)),
                    "towers": [
                        self._tower_image(tower, part, made, image, arrays)
                        for tower, part, made in zip(one.towers, parts, traces, strict=True)
                    ],
                }
            )
        shared = maps.components(seen.tokens)
        for described, shown, tokens in zip(described_images, shared.maps, seen.tokens, strict=True):
            described["components"] = arrays.add(shown.numpy(), "uint8")
            described["nearest"] = [arrays.add(maps.nearest(tokens, other).numpy(), "int16") for other in seen.tokens]
        if id(one) not in self._costs:
            pixels, _ = one.pixels(images[0].image)
            costs = {"flops": comparison.flops(one.encoder, pixels)}
            self._costs[id(one)] = costs | {"milliseconds": comparison.milliseconds(one.encoder, pixels)}
        return self._costs[id(one)] | {
            "name": one.name,
            "width": one.encoder.embed_dim,
            "parameters": sum(weight.numel() for weight in one.encoder.parameters()),
            "device": str(one.encoder.device),
            "shares": shared.shares,
            "towers": [
                self._tower(tower, layers_of[id(tower)], [traces[i] for traces in seen.traces], arrays)
                for i, tower in enumerate(one.towers)
            ],
            "texts": self._texts(one, arrays),
            "images": described_images,
        }, seen

    def _texts(self, one: ShownEncoder, arrays: Arrays) -> dict[str, Any] | None:
        if one.pair is None:
            return None
        bias = one.pair.logit_bias
        return {
            "names": self.texts,
            "features": arrays.add(texts.text_features(one.pair, self.texts)) if self.texts else None,
            "scale": float(one.pair.logit_scale.detach().exp()),
            "bias": None if bias is None else float(bias.detach()),
        }

    def _tower(self, tower: Encoder, layers: list[int], traces: Sequence[Trace], arrays: Arrays) -> dict[str, Any]:
        config, grids = tower.config, []
        for grid in maps.position_grids(config, list(dict.fromkeys(made.grid for made in traces))):
            try:
                rows = maps.positions(tower.model, grid)
            except ValueError:  # a table of its native grid alone
                continue
            if rows is not None:
                grids.append({"grid": list(grid), "rows": arrays.add(rows, "float16")})
        return {
            "name": tower.origin.family,
            "depth": config.depth,
            "heads": config.num_heads,
            "width": config.embed_dim,
            "patch": config.patch_size,
            "prefix": (["cls"] if config.class_token else []) + [f"register{i}" for i in range(config.num_registers)],
            "pool": config.pool,
            "layers": layers,
            "windows": bool(config.window),
            "position": "rotary" if config.position in ("none", "rope2d") and config.rotary else config.position,
            "table": list(config.table_grid),
            "positions": grids,
            "taps": _taps(tower, traces, arrays),
        }

    def _tower_image(
        self, tower: Encoder, pixels: Tensor, made: Trace, image: ShownImage, arrays: Arrays
    ) -> dict[str, Any]:
        lengths = torch.cat([out.norm(dim=-1) for out in made.outputs])
        return {
            "grid": list(made.grid),
            "size": list(pixels.shape[-2:]),
            "url": image_url(drawn(pixels[0].cpu(), tower.preprocess), exact=True),
            "place": place(image.image, tower.preprocess),
            "stages": [asdict(stage) | {"shape": list(stage.shape)} for stage in made.stages],
            "embedding": arrays.add(made.patch_embedding, "float16"),
            "lengths": arrays.add(lengths),
            "grids": [list(grid) for grid in made.grids],
            "attention": {str(layer): attention_entry(one, arrays) for layer, one in made.attention.items()},
        }


def attention_entry(one: LayerAttention, arrays: Arrays) -> dict[str, Any]:
    """A layer's queries and keys in the page."""
    return {
        "grid": list(one.grid),
        "prefix": one.prefix,
        "scale": one.scale,
        "queries": arrays.add(one.queries),
        "keys": arrays.add(one.keys),
        "windows": None if one.windows is None else arrays.add(one.windows.numpy(), "int16"),
    }


def _taps(tower: Encoder, traces: Sequence[Trace], arrays: Arrays) -> list[dict[str, Any]]:
    """The taps that are usual, and what differs between them; maps of each image."""
    norm, depth = tower.model.norm, tower.config.depth
    usual: list[tuple[str, int, bool]] = [
        ("last block with the final norm", -1, True),
        ("last block without the norm", -1, False),
    ]
    if depth > 1:
        usual.append(("second to last block, no norm", -2, False))
    described, normed_tokens = [], None
    for name, layer, normed in usual:
        tokens = []
        for made in traces:
            out = made.outputs[layer][made.prefix :]
            with torch.no_grad():
                tokens.append(norm(out.to(tower.device, tower.dtype)).float().cpu() if normed else out)
        rows = torch.cat(tokens)
        normed_tokens = rows if normed else normed_tokens
        assert normed_tokens is not None
        lengths, shared = rows.norm(dim=-1), maps.components(tokens)
        same = normed_tokens.shape == rows.shape
        described.append(
            {
                "name": name,
                "layer": layer % depth,
                "normed": normed,
                "length": float(lengths.mean()),
                "spread": float(lengths.std(correction=0)),
                "outliers": float((lengths > OUTLIER * lengths.median()).float().mean()),
                "alike": float(F.normalize(rows, dim=-1).mean(dim=0).square().sum()),
                "turned": float(F.cosine_similarity(rows, normed_tokens, dim=-1).mean()) if same else None,
                "lengths": [arrays.add(one.norm(dim=-1)) for one in tokens],
                "components": [arrays.add(one.numpy(), "uint8") for one in shared.maps],
            }
        )
    return described
