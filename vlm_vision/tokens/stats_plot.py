"""One image of a store's statistics."""

from pathlib import Path

from vlm_vision.tokens.stats import OUTLIER, StoreStats


def plot_stats(stats: StoreStats, file: str | Path, *, title: str = "") -> None:
    """Write a PNG: token norms, deviations of channels, singular values.

    Raises:
        ValueError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ValueError("a plot needs matplotlib: pip install 'vlm-vision[plot]'") from None
    import numpy as np

    figure = Figure(figsize=(13, 3.8), layout="constrained")
    norms, channels, spectrum = figure.subplots(1, 3)
    figure.suptitle(title)
    norms.hist(stats.norms, bins=100, color="#0072b2")
    norms.axvline(OUTLIER * float(np.median(stats.norms)), color="#d55e00", label=f"{OUTLIER:g} times the median")
    norms.set(xlabel="norm of a token", ylabel="tokens", yscale="log")
    norms.legend()
    channels.plot(np.sort(stats.deviations)[::-1], color="#0072b2")
    channels.set(xlabel="channels, in descending order", ylabel="standard deviation", yscale="symlog")
    spectrum.plot(stats.spectrum / max(stats.spectrum[0], 1e-300), color="#0072b2")
    spectrum.axvline(stats.effective_rank, color="#d55e00", label=f"effective rank {stats.effective_rank:.1f}")
    spectrum.set(xlabel="singular value", ylabel="share of the first", yscale="log")
    spectrum.legend()
    figure.savefig(file, dpi=110)
