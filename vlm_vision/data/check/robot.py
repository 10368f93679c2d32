"""A check of robot data: episodes, cameras, spans of videos, ranges of numbers, statistics that the data contradict."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from vlm_vision.data.check.report import DataReport
from vlm_vision.data.lerobot import RobotDataset
from vlm_vision.data.lerobot.layout import ACTION, STATE
from vlm_vision.data.lerobot.mapping import number_features
from vlm_vision.data.lerobot.video import VideoReader
from vlm_vision.robot.contradictions import contradictions
from vlm_vision.robot.normalize import Kind, Normalizer
from vlm_vision.robot.statistics import Statistics

CLIPPED = 0.05
"""Share of the numbers of a dimension that normalization clips above which it is a doubt; exact quantiles clip 0.02."""


def check_robot(
    source: str,
    dataset: RobotDataset,
    *,
    normalization: Kind = "quantiles",
    statistics: Mapping[str, Statistics] | None = None,
    decode: bool = False,
) -> DataReport:
    """A check of an opened data set: its numbers are in memory; of videos the index is read.

    Args:
        normalization: of actions and state, whose clipping is measured.
        statistics: feature -> statistics to normalize by; default exact ones of the data.
        decode: decode every image.
    """
    report = DataReport(
        source, {"time steps": len(dataset), "episodes": dataset.num_episodes, "fps": float(dataset.fps)}
    )
    lengths = [episode.length for episode in dataset.episodes]
    report.facts["length of an episode"] = f"{min(lengths)} to {max(lengths)} time steps"
    report.facts["tasks"] = len(dataset.tasks)
    report.facts["cameras"] = {name: _camera(dataset, name) for name in dataset.cameras}
    if not dataset.cameras:
        report.error("data sets without a camera", f"{source} has no camera of color images")
    _check_videos(report, dataset)
    for feature in (ACTION, STATE):
        if feature in dataset.features:
            _check_numbers(report, dataset, feature, normalization, (statistics or {}).get(feature))
        else:
            what = report.error if feature == ACTION else report.doubt
            others = ", ".join(number_features(dataset.info)) or "none"
            what("missing features", f"{feature} is missing; the features of numbers are {others}")
    _check_stored(report, dataset)
    if decode:
        _decode(report, dataset)
    return report


def _camera(dataset: RobotDataset, name: str) -> str:
    feature = dataset.features[dataset.camera_key(name)]
    return f"{feature.shape[0]} x {feature.shape[1]} ({feature.dtype})"


def _check_videos(report: DataReport, dataset: RobotDataset) -> None:
    """Files with fewer frames than the spans of their episodes need: later ones would show other moments."""
    ends: dict[tuple[str, Path], float] = {}
    used = {dataset.camera_key(name) for name in dataset.cameras}
    for episode in dataset.episodes:
        for key, clip in episode.clips.items():
            if key in used:
                ends[key, clip.file] = max(ends.get((key, clip.file), 0.0), clip.end)
    for (_, file), end in ends.items():
        try:
            reader = VideoReader(file)
        except ValueError as error:
            report.error("videos that cannot be read", str(error))
            continue
        frames, needed = len(reader), round(end * dataset.fps)
        reader.close()
        if frames < needed:
            report.error("videos that are too short", f"{file} has {frames} frames, and its episodes need {needed}")
    report.facts["videos"] = len(ends)


def _check_numbers(
    report: DataReport, dataset: RobotDataset, feature: str, kind: Kind, statistics: Statistics | None
) -> None:
    values = dataset.column(feature).astype(np.float64).reshape(len(dataset), -1)
    names = dataset.features[feature].flat_names or tuple(map(str, range(values.shape[1])))
    low, high = values.min(0), values.max(0)
    ranges = zip(names, low.tolist(), high.tolist(), strict=True)
    report.facts[f"range of {feature}"] = {name: f"{least:.4g} to {most:.4g}" for name, least, most in ranges}
    if fixed := [name for name, least, most in zip(names, low, high, strict=True) if least == most]:
        report.doubt("numbers that never change", f"{', '.join(fixed[:8])} of {feature}", len(fixed))
    if statistics is None:
        statistics = dataset.measured(feature)
    shares = clipped_shares(values, kind, statistics)
    report.facts[f"clipped of {feature}"] = f"{shares.mean():.1%}, at most {shares.max():.1%} of a dimension"
    for name, share in zip(names, shares.tolist(), strict=True):
        if (share - CLIPPED) * len(values) > 2:  # of few rows, the outermost are a large share
            report.doubt("numbers that normalization clips", f"{share:.0%} of {name} of {feature} by {kind}")


def clipped_shares(values: np.ndarray, kind: Kind, statistics: Statistics) -> np.ndarray:
    """Share of the numbers (n, D) of each dimension that normalization and its inverse change, (D,)."""
    if kind == "mean_std":
        return np.zeros(values.shape[1])
    normalizer = Normalizer(kind, statistics)
    given = torch.from_numpy(values)
    back = normalizer.invert(normalizer(given)).double()
    span = (given.amax(0) - given.amin(0)).clamp_min(1e-12)
    return ((back - given).abs() > 1e-5 * span + 1e-6 * given.abs()).double().mean(0).numpy()


def _check_stored(report: DataReport, dataset: RobotDataset) -> None:
    """Statistics of meta/stats.json that the numbers contradict."""
    try:
        stored = dataset.statistics
    except ValueError as error:
        report.doubt("statistics that are missing or damaged", str(error))
        return
    for feature in (ACTION, STATE):
        if feature in stored and feature in dataset.features:
            values = dataset.column(feature).reshape(len(dataset), -1)
            for problem in contradictions(stored[feature], values, dataset.info.total_frames):
                report.doubt("statistics that the data contradict", f"{feature}, {problem} (training uses exact ones)")


def _decode(report: DataReport, dataset: RobotDataset) -> None:
    for index in range(len(dataset)):
        for camera in dataset.cameras:
            try:
                dataset.image(index, camera)
            except ValueError as error:
                report.error("images that cannot be read", str(error))
