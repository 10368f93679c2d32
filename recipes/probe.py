"""Judge an encoder by its frozen features: nearest neighbors, linear and attentive probes, patch correspondence.

    vlm-vision emoji --out emoji
    vlm-vision train probe --config probe_smoke --encoder FOLDER
    vlm-vision train probe --encoder FOLDER --train imagenet --test imagenet --test_split val --probes '[knn, linear]'

The same encoder with random weights, plain pixels and the most frequent class are evaluated as well: compare each figure with
theirs. A probe chooses its hyperparameters on a part of the training images.

Prints one table and writes metrics.json and config.yaml to `out`. One process.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from torch import Tensor

import vlm_vision as vv
from vlm_vision.data.images.samples import Samples, read_samples
from vlm_vision.data.stored_image import ImageSource
from vlm_vision.files import check_folder, write_json
from vlm_vision.load_encoder import load_shape
from vlm_vision.probe.attentive import attentive_probe
from vlm_vision.probe.controls import most_frequent, pixel_features, random_twin
from vlm_vision.probe.correspondence import image_correspondence
from vlm_vision.probe.features import Kind, block_features, image_features, patch_features
from vlm_vision.probe.knn import NEIGHBORS, knn
from vlm_vision.probe.labeled import LabeledFeatures, held_out
from vlm_vision.probe.linear import linear_probe, logistic_probe
from vlm_vision.probe.stored import PARTS, StoredProbe
from vlm_vision.tokens.training.keys import find_keys
from vlm_vision.tokens.training.match import matching_store
from vlm_vision.tokens.training.weightless import remove_weights
from vlm_vision.tokens.wanted import Part
from vlm_vision.train.command import parse_config, run_cli
from vlm_vision.train.loop.sampler import StepBatches
from vlm_vision.train.settings import as_plain

Probe = Literal["knn", "logistic", "linear", "attentive", "correspondence"]


@dataclass(frozen=True, kw_only=True)
class ProbeData:
    """Tokens of the images, where they are stored."""

    tokens: str = ""
    """Token store of all images, written by `vlm-vision tokens` with `encoder`, whose weights are then not loaded (nor compared with
    those of the store); empty to encode the images. The linear probe needs the layers -4 -3 -2 -1."""


@dataclass(frozen=True, kw_only=True)
class ProbeConfig:
    """One evaluation."""

    encoder: str
    """Encoder to evaluate, an argument of vlm_vision.load: a hub id, folder or file."""
    train: str
    """Labeled images to train the probes on: a folder, a .csv or .jsonl file, .tar shards, easy_vqa, or hf:owner/name."""
    test: str
    """Labeled images to test the probes on, in the same forms and of the same classes."""
    data: ProbeData = ProbeData()
    """Tokens of the images, where they are stored."""
    out: str = "runs/probe"
    """Folder for metrics.json and config.yaml."""
    train_split: str = "train"
    """Split of a data set, or folder below the source, to train on."""
    test_split: str = "test"
    """Split of a data set, or folder below the source, to test on."""
    image_size: int = 0
    """Side in pixels to which the encoder resizes images; 0 for its own."""
    tap_layer: int = -1
    """Block whose tokens are used, -1 for the last; the linear probe uses the last four."""
    tap_norm: bool = True
    """Apply the final norm to the tokens."""
    features: Kind = "cls+mean"
    """Vector of an image for nearest neighbors and logistic regression: class token, mean of the patch tokens, or both."""
    probes: tuple[Probe, ...] = ("knn", "logistic", "correspondence")
    """Probes to run. knn: nearest neighbors. logistic: regression on all data at once. linear: DINOv2's grid. attentive: a learned
    query over patch tokens, which are held in memory. correspondence: patches of crops matched with those of whole test images."""
    neighbors: tuple[int, ...] = NEIGHBORS
    """Numbers of nearest neighbors to try; the best on a part of the training images is reported."""
    train_limit: int = 0
    """Training images to use, drawn at random; 0 for all."""
    test_limit: int = 0
    """Test images to use, drawn at random; 0 for all."""
    places_limit: int = 100
    """Test images for the correspondence probe."""
    batch_size: int = 64
    """Images per forward pass of the encoder."""
    device: str = "cpu"
    """Device for encoder and probes, such as cpu or cuda."""
    seed: int = 0
    """Seed of everything that is random."""

    def __post_init__(self):
        if self.data.tokens and "correspondence" in self.probes:
            raise ValueError(
                "data.tokens holds tokens of whole images, and the probe correspondence encodes crops of them: leave correspondence out "
                "of probes, or leave data.tokens out"
            )


@dataclass(frozen=True)
class ProbeSplit:
    """Images and their labels."""

    images: Sequence[ImageSource]
    labels: Tensor


def main(config: ProbeConfig) -> dict[str, Any]:
    """Run it. Returns what metrics.json holds."""
    started = time.monotonic()
    check_folder(config.out)
    learned = read_samples(config.train, config.train_split)
    asked = read_samples(config.test, config.test_split)
    if learned.classes:
        asked = asked.with_classes(learned.classes)
    train, test = (
        sample_images(learned, config.train_limit, config.seed),
        sample_images(asked, config.test_limit, config.seed),
    )

    size, tap = config.image_size or None, vv.Tap(config.tap_layer, config.tap_norm)
    if config.data.tokens:
        encoder = remove_weights(load_shape(config.encoder, tap=tap, image_size=size))
    else:
        encoder = vv.load(config.encoder, tap=tap, image_size=size, device=config.device)
    twin = random_twin(encoder, seed=config.seed).to(config.device)
    look = stored_probe(config, encoder, (*train.images, *test.images)) if config.data.tokens else encoder
    found = {"encoder": probe_encoder(config, look, train, test)}
    found["random weights"] = probe_encoder(config, twin, train, test)
    small = [LabeledFeatures(pixel_features(one.images), one.labels) for one in (train, test)]
    found["pixels"] = of_vectors(config, *small)
    frequent = most_frequent(*small)
    found["most frequent class"] = {name: frequent for name in config.probes if name != "correspondence"}

    print(table(config.probes, found))
    metrics = {"train": len(train.labels), "test": len(test.labels), "classes": int(train.labels.max()) + 1}
    metrics |= {"found": found, "seconds": time.monotonic() - started}
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    (out / "config.yaml").write_text(yaml.safe_dump(as_plain(config), sort_keys=False))
    write_json(out / "metrics.json", metrics)
    print(f"{metrics['seconds']:.0f} s; metrics.json in {out}")
    return metrics


def sample_images(samples: Samples, limit: int, seed: int) -> ProbeSplit:
    """All samples, or `limit` of them. Raises ValueError for one without a label."""
    rows = range(len(samples))
    if 0 < limit < len(samples):
        order = {"shards": shards.sizes, "together": shards.together} if (shards := samples.shards) else {}
        (rows,) = StepBatches(len(samples), batch_size=limit, micro_batch_size=limit, steps=1, seed=seed, **order)
    taken = [samples[row] for row in rows]
    if missing := [one for one in taken if one.label < 0]:
        raise ValueError(f"{missing[0].name} has no label: expected one for each image, which probes of classes need")
    return ProbeSplit([one.image for one in taken], torch.tensor([one.label for one in taken]))


def stored_probe(
    config: ProbeConfig, encoder: vv.Encoder | vv.FusedEncoder, images: Sequence[ImageSource]
) -> StoredProbe:
    """The tokens in place of the encoder, once all images are found in the store.

    Raises:
        ValueError: as `matching_store` and `find_keys`.
    """
    parts: list[Part] = list(PARTS[config.features]) if {"knn", "logistic"} & set(config.probes) else []
    if {"linear", "attentive"} & set(config.probes):
        parts.append("patch_tokens")
    store = matching_store(config.data.tokens, encoder, list(dict.fromkeys(parts)))
    return StoredProbe(store, encoder, find_keys(store, images))


def probe_encoder(
    config: ProbeConfig, encoder: vv.Encoder | vv.FusedEncoder | StoredProbe, train: ProbeSplit, test: ProbeSplit
) -> dict[str, float]:
    """Every probe of an encoder, by name."""

    def features(make: Any, **options: Any) -> tuple[LabeledFeatures, LabeledFeatures]:
        if isinstance(encoder, StoredProbe):
            made = (getattr(encoder, make.__name__)(one.images, **options) for one in (train, test))
        else:
            made = (make(encoder, one.images, batch_size=config.batch_size, **options) for one in (train, test))
        first, second = (LabeledFeatures(one, part.labels) for one, part in zip(made, (train, test), strict=True))
        return first.to(config.device), second.to(config.device)

    found: dict[str, float] = {}
    if {"knn", "logistic"} & set(config.probes):
        found |= of_vectors(config, *features(image_features, kind=config.features))
    if "linear" in config.probes:
        learn, ask = features(block_features)
        found["linear"] = linear_probe(*held_out(learn, 0.1, seed=config.seed), ask, seed=config.seed).accuracy
    if "attentive" in config.probes:
        found["attentive"] = attentive_probe(*features(patch_features), seed=config.seed).accuracy
    if "correspondence" in config.probes and not isinstance(encoder, StoredProbe):
        places = image_correspondence(encoder, test.images[: config.places_limit], seed=config.seed)
        found |= {"correspondence": places.share, "correspondence by chance": places.chance}
    return found


def of_vectors(config: ProbeConfig, train: LabeledFeatures, test: LabeledFeatures) -> dict[str, float]:
    """The probes of one vector for each image."""
    found: dict[str, float] = {}
    if "knn" in config.probes:
        tried = knn(*held_out(train, 0.2, seed=config.seed), ks=config.neighbors).by_k
        by_k = knn(train, test, ks=config.neighbors).by_k
        found |= {f"knn {k}": share for k, share in by_k.items()}
        found["knn"] = by_k[max(tried, key=lambda k: tried[k])]
    if "logistic" in config.probes:
        found["logistic"] = logistic_probe(train, test, seed=config.seed).accuracy
    return found


def table(probes: Sequence[str], found: dict[str, dict[str, float]]) -> str:
    """One row for the encoder and each control; k-NN at the k that is best on a part of the training images."""
    lines = ["".join([f"{'':20}", *(f"{probe:>16}" for probe in probes)])]
    for name, shares in found.items():
        lines.append("".join([f"{name:20}", *(f"{shares[p]:16.1%}" if p in shares else " " * 16 for p in probes)]))
    return "\n".join(lines)


def parse(arguments: list[str] | None = None) -> ProbeConfig:
    """A typed Config from --config FILE.yaml and --key value."""
    return parse_config(ProbeConfig, "recipes.probe", __doc__, arguments)


if __name__ == "__main__":
    run_cli("recipes.probe", lambda: main(parse()))
