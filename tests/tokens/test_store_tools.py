"""Exports and statistics of a store."""

import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import webdataset
from safetensors import safe_open
from support.token_sources import write_images

import vlm_vision as vv
from vlm_vision.cli.main import main
from vlm_vision.new_models import new_encoder
from vlm_vision.tokens.extraction.extract import extract
from vlm_vision.tokens.stats import measure_store
from vlm_vision.tokens.wanted import Wanted


@pytest.fixture
def store(tmp_path: Path) -> vv.TokenStore:
    fields = dict(image_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=4, mlp_dim=64, position_prefix=1)
    encoder = new_encoder(fields | dict(pool="cls")).eval()
    source = write_images(tmp_path / "images", 5)
    extract(source, encoder, tmp_path / "store", wanted=Wanted(shard_images=2, dtype="bfloat16", layers=(-1, 0)))
    return vv.TokenStore(tmp_path / "store")


def test_a_store_is_read_without_the_library(store: vv.TokenStore) -> None:
    index = pq.read_table(store.folder / "index").to_pylist()
    assert [row["key"] for row in index] == store.keys()
    for row in index:
        with safe_open(store.folder / "tensors" / f"{row['shard']:05d}.safetensors", "pt") as shard:
            start = row["offset"]
            tokens = shard.get_slice("patch_tokens.0")[start : start + row["tokens"]]
            pooled = shard.get_slice("pooled")[row["row"]]
        assert torch.equal(tokens, store[row["key"]].taps[0].patch_tokens)
        assert torch.equal(pooled, store[row["key"]].pooled)


@pytest.mark.filterwarnings("ignore:.*unclosed file:ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_webdataset_reads_the_export(store: vv.TokenStore, tmp_path: Path) -> None:
    assert main(["store", "export", str(store.folder), "--to", "webdataset", "--out", str(tmp_path / "out")]) == 0
    shards = sorted(map(str, (tmp_path / "out").glob("*.tar")))
    assert len(shards) == 3 and tarfile.is_tarfile(shards[0])
    samples = list(webdataset.WebDataset(shards, shardshuffle=False).decode())
    for sample, row in zip(samples, store, strict=True):
        assert sample["json"] == json.loads(
            json.dumps(dict(key=row.key, grid=row.grid, frames=1, label=row.label, caption=row.caption))
        )
        assert np.array_equal(sample["patch_tokens.-1.npy"], row.patch_tokens.float())
        assert np.array_equal(sample["pooled.npy"], row.pooled.float())


def test_parquet_and_numpy_exports_hold_the_tokens(store: vv.TokenStore, tmp_path: Path) -> None:
    for form in ("parquet", "numpy"):
        assert main(["store", "export", str(store.folder), "--to", form, "--out", str(tmp_path / form)]) == 0
    rows = pq.read_table(tmp_path / "parquet").to_pylist()
    arrays = np.load(tmp_path / "numpy" / "patch_tokens.0.npy")
    assert pq.read_table(tmp_path / "numpy" / "index.parquet")["key"].to_pylist() == store.keys()
    for i, row in enumerate(store):
        exact = row.taps[0].patch_tokens.float().numpy()
        flat = np.array(rows[i]["patch_tokens.0"], dtype=np.float32)
        assert np.array_equal(flat.reshape(rows[i]["patch_tokens.0.shape"]), exact) and rows[i]["key"] == row.key
        assert np.array_equal(arrays[i], exact)
    assert main(["store", "export", str(store.folder), "--to", "numpy", "--out", str(tmp_path / "numpy")]) == 2


def test_statistics_are_those_of_the_tokens(
    store: vv.TokenStore, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    tokens = store.patch_tokens(range(5)).float().flatten(0, 1).double()
    stats = measure_store(store)
    assert (stats.rows, stats.channels, stats.sampled, stats.compared) == (5, 32, 80, 5)
    assert np.allclose(stats.norms, tokens.norm(dim=-1)) and np.allclose(stats.deviations, tokens.std(0, correction=0))
    values = torch.linalg.svdvals(tokens - tokens.mean(dim=0))
    shares = values / values.sum()
    assert stats.effective_rank == pytest.approx((-(shares * shares.log()).sum()).exp().item(), rel=1e-4)
    means = store.patch_tokens(range(5)).float().mean(dim=1)
    cosines = torch.nn.functional.normalize(means - means.mean(dim=0), dim=-1)
    best = (cosines @ cosines.T).triu(1).max().item()
    assert stats.duplicates[0][0] == pytest.approx(best, abs=1e-5) and len(stats.duplicates) == 5
    assert main(["store", "stats", str(store.folder), "--png", str(tmp_path / "stats.png")]) == 0
    assert "rows              5" in capsys.readouterr().out and (tmp_path / "stats.png").stat().st_size > 10_000


def test_dead_channels_outliers_and_duplicates_are_seen(tmp_path: Path) -> None:
    fields = dict(image_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=4, mlp_dim=64)
    encoder = new_encoder(fields).eval()
    with torch.no_grad():
        encoder.model.norm.weight[3] = 0
    source = write_images(tmp_path / "images", 6)
    (tmp_path / "images" / "005.png").write_bytes((tmp_path / "images" / "001.png").read_bytes())
    extract(source, encoder, tmp_path / "store")
    stats = measure_store(vv.TokenStore(tmp_path / "store"))
    assert stats.dead == 1 and stats.outliers == 0
    cosine, one, other = stats.duplicates[0]
    assert cosine == pytest.approx(1, abs=1e-5) and {one, other} == {"001.png", "005.png"}
