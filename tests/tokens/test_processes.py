"""Many processes, some of which die, write the same store as one."""

import importlib.util
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from support.token_sources import Files, write_images
from tokens.test_store import same_files

import vlm_vision as vv
from vlm_vision.new_models import new_encoder
from vlm_vision.tokens.extraction.extract import extract
from vlm_vision.tokens.wanted import Wanted

COMMAND = [sys.executable, "-m", "vlm_vision.cli.main", "tokens"]
OPTIONS = ["--encoder", "mini", "--shard-images", "2", "--batch-size", "2", "--dtype", "float16"]


def extract_by_command(folder: Path, store: Path, *, launcher: list[str] | None = None) -> None:
    command = [*(launcher or COMMAND[:1]), *COMMAND[1:], str(folder), "--out", str(store), *OPTIONS]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "24 images, 0 bad" in done.stdout


def kill_and_finish(tmp_path: Path, kills: int, seed: int) -> None:
    """SIGKILL at random moments, then the same command."""
    extract_by_command(tmp_path / "images", tmp_path / "whole")
    draw, store = random.Random(seed), tmp_path / "killed"
    for _ in range(kills):
        process = subprocess.Popen(
            [*COMMAND, str(tmp_path / "images"), "--out", str(store), *OPTIONS],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        end = time.monotonic() + 120
        while process.poll() is None and not (store / ".work").exists() and time.monotonic() < end:
            time.sleep(0.01)
        time.sleep(draw.uniform(0, 0.6))
        process.send_signal(signal.SIGKILL)
        process.wait()
        if (store / "store.json").exists() and not (store / ".work").exists():
            same_files(tmp_path / "whole", store)
            store.rename(tmp_path / f"done{time.monotonic_ns()}")
    extract_by_command(tmp_path / "images", store)
    same_files(tmp_path / "whole", store)
    assert vv.TokenStore(store).keys() == sorted(path.name for path in (tmp_path / "images").iterdir())


def test_sigkill_at_any_moment_loses_nothing(tmp_path: Path) -> None:
    write_images(tmp_path / "images", 24)
    kill_and_finish(tmp_path, kills=5, seed=0)


@pytest.mark.slow
def test_sigkill_at_a_hundred_moments_loses_nothing(tmp_path: Path) -> None:
    write_images(tmp_path / "images", 24)
    for seed in range(4):
        (tmp_path / str(seed)).mkdir()
        (tmp_path / str(seed) / "images").symlink_to(tmp_path / "images")
        kill_and_finish(tmp_path / str(seed), kills=25, seed=seed)


def test_two_processes_write_the_bytes_of_one(tmp_path: Path) -> None:
    write_images(tmp_path / "images", 24)
    extract_by_command(tmp_path / "images", tmp_path / "one")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "0"]
    extract_by_command(tmp_path / "images", tmp_path / "two", launcher=torchrun)
    same_files(tmp_path / "one", tmp_path / "two")


class KillsOnce(Files):
    """The first process that reads image 005.png dies of it."""

    def images(self, items):
        for item in items:
            mark = self.folder.parent / "killed"
            if item.key == "005.png" and not mark.exists():
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            yield item.place


@pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="Ray is not installed: pip install 'vlm-vision[ray]'"
)
def test_ray_writes_the_bytes_of_one_process_though_an_actor_is_killed(tmp_path: Path) -> None:
    source = write_images(tmp_path / "images", 12)
    script = tmp_path / "on_ray.py"
    script.write_text(
        f"""
import sys
sys.path[:0] = {[str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]!r}
from pathlib import Path
import ray
import support.token_sources, tokens.test_processes
from ray import cloudpickle
from vlm_vision.tokens.extraction.extract import extract
from vlm_vision.tokens.extraction.loading import EncoderSource
from vlm_vision.tokens.extraction.ray_engine import extract_on_ray
from vlm_vision.tokens.wanted import Wanted
cloudpickle.register_pickle_by_value(support.token_sources)
cloudpickle.register_pickle_by_value(tokens.test_processes)
folder, wanted = Path({str(tmp_path)!r}), Wanted(shard_images=2, batch_size=2)
encoder = EncoderSource("mini")
ray.init(num_cpus=2, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
killing = tokens.test_processes.KillsOnce(folder / "images")
extract_on_ray(killing, encoder, folder / "ray", wanted=wanted)
assert (folder / "killed").exists()
extract(support.token_sources.Files(folder / "images"), encoder.load()[0], folder / "one", wanted=wanted, name="mini")
bad = folder / "bad"
bad.mkdir()
for i in range(6):
    (bad / f"{{i}}.png").write_bytes(b"damaged")
try:
    extract_on_ray(support.token_sources.Files(bad), encoder, folder / "refused", wanted=wanted)
except ValueError as error:
    print("refused:", error)
"""
    )
    environment = os.environ | {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=280, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "refused: 4 of 6 images cannot be read, more than the share of 0.1" in done.stdout
    same_files(tmp_path / "one", tmp_path / "ray")
    assert len(vv.TokenStore(tmp_path / "ray")) == len(list(source.items()))


def make_stores(images: Path, stores: Path, count: int) -> None:
    """Stores so small that the processes that make them finish them at the same moment."""
    encoder = new_encoder(dict(image_size=32, patch_size=8, embed_dim=16, depth=1, num_heads=2, mlp_dim=16)).eval()
    for parameter in encoder.parameters():
        parameter.data = torch.linspace(-1, 1, parameter.numel()).reshape(parameter.shape)
    for i in range(count):
        extract(Files(images), encoder, stores / str(i), wanted=Wanted(shard_images=1, batch_size=1), workers=1)


def test_processes_that_finish_a_store_at_the_same_moment_leave_it_whole(tmp_path: Path) -> None:
    write_images(tmp_path / "images", 4)
    spawn = multiprocessing.get_context("spawn")
    arguments = (tmp_path / "images", tmp_path / "stores", 20)
    processes = [spawn.Process(target=make_stores, args=arguments) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    make_stores(tmp_path / "images", tmp_path / "alone", 1)
    for i in range(20):
        same_files(tmp_path / "alone" / "0", tmp_path / "stores" / str(i))
