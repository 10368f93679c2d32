"""The page of `vlm-vision look` in headless Chromium: from a choice to drawn maps, at the size of a ViT-L at 518 px.

python -m benchmarks.look_page [--clicks 30]

The limits: 50 ms for the 16 heads of a layer at a grid of 37x37 patches, 300 ms for the thumbnails of 24 layers.
"""

import argparse
import shutil
import statistics
import tempfile
from pathlib import Path

import torch
from PIL import Image

import vlm_vision as vv
from benchmarks.timing import machine
from vlm_vision.new_models import new_encoder

_CLICK = """async (i) => {
  performance.clearMarks();
  const start = performance.now();
  await window.vlmVision.choose({ token: (i * 97) % 1369 });
  await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
  const at = (name) => performance.getEntriesByName(name).at(-1).startTime - start;
  return [at("heads drawn"), at("thumbnails drawn"), performance.now() - start];
}"""
_ALL_LAYERS = """async (layers) => {
  const { towers, images } = window.vlmVision.about.encoders[0];
  towers[0].depth = layers;
  towers[0].layers = [...Array(layers).keys()];
  for (const layer of towers[0].layers) images[0].towers[0].attention[layer] = images[0].towers[0].attention[1];
  await window.vlmVision.choose({ tab: "patches" });
  await window.vlmVision.choose({ tab: "attention", encoder: 0, other: -1 });
}"""


def page(folder: Path) -> Path:
    """A page of one image and a tower as wide as a ViT-L, of two blocks."""
    fields = dict(image_size=518, patch_size=14, embed_dim=1024, depth=2, num_heads=16, mlp_dim=64, position_prefix=1)
    encoder = new_encoder(fields).eval()
    with torch.no_grad():
        for name, weight in encoder.named_parameters():
            if name.endswith("qkv.weight"):
                weight.normal_(std=0.05)
    image = Image.effect_mandelbrot((518, 518), (-2, -1.5, 1, 1.5), 100).convert("RGB")
    return vv.look(image, encoder).save(folder / "page.html")


def measure(path: Path, clicks: int) -> dict[str, float]:
    """Median milliseconds."""
    from playwright.sync_api import sync_playwright  # pyright: ignore[reportMissingImports]

    browser_path = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": 1280, "height": 800})
        tab.goto(path.as_uri())
        tab.evaluate("window.vlmVision.ready")
        figures = {"size of the page, MB": path.stat().st_size / 1e6}
        rows = [tab.evaluate(_CLICK, i) for i in range(clicks)][3:]
        figures["16 heads of a layer drawn, ms"] = statistics.median(row[0] for row in rows)
        tab.evaluate(_ALL_LAYERS, 24)
        rows = [tab.evaluate(_CLICK, i) for i in range(clicks)][3:]
        figures["thumbnails of 24 layers of 16 heads drawn, ms"] = statistics.median(row[1] for row in rows)
        figures["until the next frame, ms"] = statistics.median(row[2] for row in rows)
        browser.close()
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clicks", type=int, default=30)
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(page(Path(folder)), parser.parse_args().clicks)
    print(machine("cpu"))
    for name, value in figures.items():
        print(f"| {name} | {value:.1f} |")


if __name__ == "__main__":
    main()
