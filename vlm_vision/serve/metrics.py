"""Counts and times in Prometheus' text format 0.0.4."""

import threading
from collections import defaultdict

MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_FAMILIES = {
    "vlm_vision_requests_total": ("counter", "Requests by protocol and HTTP status."),
    "vlm_vision_batches_total": ("counter", "Calls of the policy by number of observations."),
    "vlm_vision_stage_seconds": (
        "summary",
        "Seconds of each stage; total and queue for requests, the others for calls of the policy.",
    ),
    "vlm_vision_queue_length": ("gauge", "Observations that wait for the policy."),
}


class Metrics:
    """Any thread may count."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._samples: defaultdict[str, defaultdict[str, float]] = defaultdict(lambda: defaultdict(float))

    def request(self, protocol: str, status: int) -> None:
        self._add("vlm_vision_requests_total", f'vlm_vision_requests_total{{protocol="{protocol}",status="{status}"}}')

    def batch(self, size: int) -> None:
        self._add("vlm_vision_batches_total", f'vlm_vision_batches_total{{size="{size}"}}')

    def stage(self, name: str, seconds: float) -> None:
        self._add("vlm_vision_stage_seconds", f'vlm_vision_stage_seconds_sum{{stage="{name}"}}', seconds)
        self._add("vlm_vision_stage_seconds", f'vlm_vision_stage_seconds_count{{stage="{name}"}}')

    def text(self, queue_length: int) -> str:
        with self._lock:
            samples = {family: dict(rows) for family, rows in self._samples.items()}
        samples["vlm_vision_queue_length"] = {"vlm_vision_queue_length": queue_length}
        lines = []
        for family, (kind, meaning) in _FAMILIES.items():
            lines += [f"# HELP {family} {meaning}", f"# TYPE {family} {kind}"]
            lines += [f"{name} {value:.12g}" for name, value in samples.get(family, {}).items()]
        return "\n".join(lines) + "\n"

    def _add(self, family: str, name: str, amount: float = 1.0) -> None:
        with self._lock:
            self._samples[family][name] += amount
