"""Memory does not grow with the number of images."""

from pathlib import Path

import pytest

from benchmarks.token_memory import peak_memory


@pytest.mark.slow
def test_five_times_the_images_need_a_tenth_more_memory_at_most(tmp_path: Path) -> None:
    few, many = (peak_memory(tmp_path, count, shard_images=100) for count in (300, 1500))
    assert many <= 1.1 * few
