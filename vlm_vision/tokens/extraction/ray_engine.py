"""Extraction on a Ray cluster: Ray Data gives shards to actors, each with an encoder, that write into one store.

The machines share the folder of the store. A shard whose actor dies goes to another one.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from vlm_vision.tokens.extraction.encode import TokenEncoder
from vlm_vision.tokens.extraction.extract import Extraction, prepare
from vlm_vision.tokens.extraction.loading import EncoderSource
from vlm_vision.tokens.extraction.work import default_workers
from vlm_vision.tokens.source import Source
from vlm_vision.tokens.wanted import Wanted


class ShardEncoder:
    """An actor: it encodes shards of an open store, by their numbers."""

    def __init__(
        self, store: str, source: Source, encoder: EncoderSource, wanted: Wanted, max_bad: float | None, workers: int
    ):
        tower, projector = encoder.load()
        tokens = prepare(tower, wanted, projector)
        self.extraction = Extraction(Path(store), source, tokens, max_bad=max_bad, workers=workers)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Encode the shards of a batch, as Ray Data calls it; an error goes back as its text, which Ray would wrap in traces."""
        errors = []
        for number in batch["shard"].tolist():
            try:
                self.extraction.encode_alone(number)
                errors.append("")
            except (ValueError, OSError) as error:
                errors.append(f"{'disk' if isinstance(error, OSError) else 'value'} {error}")
        return batch | {"error": errors}


def extract_on_ray(
    source: Source,
    encoder: EncoderSource,
    out: str | Path,
    *,
    wanted: Wanted = Wanted(),
    described: Mapping[str, Any] | None = None,
    append: bool = False,
    max_bad: float | None = None,
    workers: int = 0,
    actors: int = 2,
) -> None:
    """As `extract`, on the Ray cluster that `ray.init` has joined, or else joins or begins.

    Args:
        out: folder of the store, on a disk that all machines share.
        actors: encoders; a device of kind cuda gives each a GPU.

    Raises:
        ValueError: Ray is not installed; and as `extract`.
    """
    try:
        import ray
        import ray.data
    except ImportError:
        raise ValueError("the engine ray needs Ray: pip install 'vlm-vision[ray]'") from None
    store = Path(out).absolute()
    tower, projector = encoder.load()
    tokens = prepare(tower, wanted, projector)
    settings = TokenEncoder(tower, wanted, projector).describe(encoder.source)
    extraction = Extraction(store, source, tokens, max_bad=max_bad, workers=workers or default_workers())
    extraction.open(settings, dict(described or {}), append=append)
    if not ray.is_initialized():
        ray.init(logging_level=logging.WARNING)
    ray.data.DataContext.get_current().enable_progress_bars = False
    while left := extraction.left():
        shards = ray.data.from_items([{"shard": number} for number in left], override_num_blocks=len(left))
        shards = shards.map_batches(
            ShardEncoder,  # pyright: ignore[reportArgumentType]
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=actors),
            num_gpus=1 if encoder.device.startswith("cuda") else 0,
            fn_constructor_args=(str(store), source, encoder, wanted, max_bad, workers or 1),
        )
        for batch in tqdm(shards.iter_batches(batch_size=1), total=len(left), desc="tokens", unit="shard"):
            kind, _, message = str(batch["error"][0]).partition(" ")
            if message:
                raise OSError(message) if kind == "disk" else ValueError(message)
    extraction.finish()
