"""Linear probes: classifiers on frozen features, by SGD for much data, by L-BFGS for little."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlm_vision.probe.labeled import LabeledFeatures, accuracy, held_out
from vlm_vision.probe.seeded import seeded

RATES = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 1e-1)
"""Learning rates of a batch of 256."""
STRENGTHS = tuple(10.0**power for power in range(-5, 3))
"""Values of C, the inverse strength of the ridge penalty."""


@dataclass(frozen=True)
class ProbeChoice:
    """One of the classifiers that are trained together."""

    rate: float
    """Learning rate of a batch of 256."""
    blocks: int
    """Number of last blocks whose CLS tokens it reads."""
    average: bool
    """True if it reads the patch mean too."""


@dataclass(frozen=True)
class LinearProbe:
    """Accuracies from 0 to 1 of the classifier that was best on the validation data."""

    accuracy: float
    """Accuracy on the test data."""
    validation: float
    chosen: ProbeChoice


@dataclass(frozen=True)
class LogisticProbe:
    """Accuracies from 0 to 1 of the strength that was best on the held-out part."""

    accuracy: float
    """Accuracy on the test data, after training on all training data."""
    validation: float
    """Accuracy on the held-out part, after training on the rest."""
    strength: float


def linear_probe(
    train: LabeledFeatures,
    validation: LabeledFeatures,
    test: LabeledFeatures,
    *,
    rates: Sequence[float] = RATES,
    blocks: Sequence[int] = (1, 4),
    epochs: int = 10,
    batch_size: int = 1024,
    seed: int = 0,
) -> LinearProbe:
    """All learning rates, with the CLS tokens of one or several last blocks, with and without the patch mean.

    Oquab et al. 2023, "DINOv2", appendix B.3, and its code: SGD of momentum 0.9 without decay, a cosine to zero over
    `epochs`, all classifiers side by side. Its own figures choose on the data that they are reported on: give the test data
    as validation for the like of them. There, training images are cropped at random; here, features are computed once.

    Args:
        train, validation, test: features (M, blocks + 1, D) as `block_features` makes them.

    Raises:
        ValueError: features of another shape, or fewer blocks in them than asked for.
    """
    for data in (train, validation, test):
        if data.features.ndim != 3 or data.features.shape[1] <= max(blocks):
            raise ValueError(
                f"features are {tuple(data.features.shape)}, expected (M, blocks + 1, D) with at least {max(blocks)} blocks: "
                "use block_features"
            )
    choices = [ProbeChoice(rate, n, average) for rate in rates for n in blocks for average in (False, True)]
    with seeded(seed):
        heads = nn.ModuleList(_head(train, choice) for choice in choices)
        orders = [torch.randperm(len(train)).to(train.labels.device) for _ in range(epochs)]
    scale = batch_size / 256
    groups = [{"params": head.parameters(), "lr": c.rate * scale} for head, c in zip(heads, choices, strict=True)]
    optimizer = torch.optim.SGD(groups, momentum=0.9, weight_decay=0)
    steps = epochs * -(-len(train) // batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for order in orders:
        for rows in order.split(batch_size):
            batch = train[rows]
            losses = [F.cross_entropy(logits, batch.labels) for logits in _logits(heads, choices, batch.features)]
            optimizer.zero_grad()
            torch.stack(losses).sum().backward()
            optimizer.step()
            schedule.step()
    scores = _accuracies(heads, choices, validation, batch_size)
    best = max(range(len(choices)), key=scores.__getitem__)
    accuracy = _accuracies(heads[best : best + 1], choices[best : best + 1], test, batch_size)[0]
    return LinearProbe(accuracy, scores[best], choices[best])


def _head(train: LabeledFeatures, choice: ProbeChoice) -> nn.Linear:
    head = nn.Linear(train.features.shape[-1] * (choice.blocks + choice.average), train.num_classes)
    nn.init.normal_(head.weight, std=0.01)
    nn.init.zeros_(head.bias)
    return head.to(train.features.device)


def _logits(heads: nn.ModuleList, choices: Sequence[ProbeChoice], features: Tensor) -> list[Tensor]:
    """(M, classes) of each classifier."""
    read = {}
    for key in {(choice.blocks, choice.average) for choice in choices}:
        n, average = key
        end = features.shape[1] - 1
        read[key] = features[:, end - n : end + average].flatten(1).float()
    return [head(read[choice.blocks, choice.average]) for head, choice in zip(heads, choices, strict=True)]


@torch.no_grad()
def _accuracies(
    heads: nn.ModuleList, choices: Sequence[ProbeChoice], data: LabeledFeatures, batch_size: int
) -> list[float]:
    batches = [_logits(heads, choices, features) for features in data.features.split(batch_size)]
    predicted = [torch.cat([logits.argmax(dim=1) for logits in one]) for one in zip(*batches, strict=True)]
    return [accuracy(one, data.labels) for one in predicted]


def logistic_probe(
    train: LabeledFeatures,
    test: LabeledFeatures,
    *,
    strengths: Sequence[float] = STRENGTHS,
    share: float = 0.2,
    iterations: int = 100,
    seed: int = 0,
) -> LogisticProbe:
    """Logistic regression by L-BFGS on all data at once: least of C * sum(cross entropy) + |W|**2 / 2.

    As Radford et al. 2021, "Learning transferable visual models from natural language supervision", appendix A.3, do it:
    the C that is best on a held-out part of the training data, then trained again on all of it. Each channel is centered
    and divided by its deviation first. From the smallest C on, each begins where the one before it ended.

    Args:
        train, test: features (M, D).
        strengths: values of C; of equally good ones the smallest is chosen.
        share: of the training data, held out.
        iterations: of L-BFGS, at most, for each C.

    Raises:
        ValueError: features of another shape, or too few to hold some out.
    """
    if train.features.ndim != 2 or train.features.shape[1:] != test.features.shape[1:]:
        raise ValueError(
            f"features are {tuple(train.features.shape)} and {tuple(test.features.shape)}, expected (M, D) of one width"
        )
    mean, deviation = train.features.float().mean(dim=0), train.features.float().std(dim=0)
    train, test = (
        LabeledFeatures((one.features.float() - mean) / (deviation + 1e-6), one.labels) for one in (train, test)
    )
    rest, part = held_out(train, share, seed=seed)
    classes, strengths = train.num_classes, sorted(strengths)
    scores, weights = [], _zeros(train, classes)
    for strength in strengths:
        weights = _fitted(rest, weights, strength, iterations)
        scores.append(_accuracy(weights, part))
    best = max(range(len(strengths)), key=scores.__getitem__)
    weights = _zeros(train, classes)
    for strength in strengths[: best + 1]:
        weights = _fitted(train, weights, strength, iterations)
    return LogisticProbe(_accuracy(weights, test), scores[best], strengths[best])


def _zeros(data: LabeledFeatures, classes: int) -> Tensor:
    """(classes, D + 1): weights, and the bias last."""
    return data.features.new_zeros(classes, data.features.shape[1] + 1)


def _fitted(data: LabeledFeatures, start: Tensor, strength: float, iterations: int) -> Tensor:
    """The weights that L-BFGS finds."""
    weights = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [weights], max_iter=iterations, tolerance_grad=1e-5, tolerance_change=1e-7, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        fit = F.cross_entropy(F.linear(data.features, weights[:, :-1], weights[:, -1]), data.labels)
        loss = fit + weights[:, :-1].square().sum() / (2 * strength * len(data))
        loss.backward()
        return loss

    optimizer.step(closure)
    return weights.detach()


def _accuracy(weights: Tensor, data: LabeledFeatures) -> float:
    return accuracy(F.linear(data.features, weights[:, :-1], weights[:, -1]).argmax(dim=1), data.labels)
