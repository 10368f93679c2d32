"""Every Python block and every command of README, docs and tutorials runs, page by page, on small models."""

import ast
import json
import re
import shutil
import socket
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.census.build import build
from support.doc_pages import RUN, SHOWN, Block, Page, blocks

from vlm_vision.mae import DecoderConfig, new_mae
from vlm_vision.new_models import new_language_model, word_tokenizer

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
OF_ITS_OWN = "docs/adding-a-family.md"
"""Its blocks are parts of modules: tests/checkpoints/test_new_families.py compares them with the code."""
PAGES = ["README.md", *sorted(str(page.relative_to(ROOT)) for page in DOCS.rglob("*.md"))]
PAGES.remove(OF_ITS_OWN)
TUTORIALS = sorted(path.name for path in (DOCS / "tutorials").glob("*.py"))

REPLACED = {
    "facebook/dinov2-with-registers-large": "mini",
    "facebook/dinov2-large": "mini",
    "google/siglip-so400m-patch14-224": "mini",
    "facebook/dinov2-small": "mini",
    "google/siglip-base-patch16-224": "mini",
    "openai/clip-vit-large-patch14": "mini",
    "Qwen/Qwen3-VL-2B-Instruct": "qwen3_vl",
    "Qwen/Qwen2.5-VL-3B-Instruct": "qwen2_5_vl",
    "HuggingFaceTB/SmolLM2-135M-Instruct": "language_model",
    "facebook/vit-mae-base": "masked_autoencoder",
    "demo.yaml": "demo.yaml --steps 2 --data.test_limit 8 --eval_limit 8 --eval_batch_size 8 --cache_features false",
    "vla_smoke.yaml": "vla_smoke.yaml --steps 4 --warmup_steps 1",
    "EPISODES = 400": "EPISODES = 40",
    "STEPS = 400": "STEPS = 3",
    "STEPS = 600": "STEPS = 3",
}
"""What a page says -> what runs here: a small local model for one of the hub, a few steps for many. Nothing else differs."""

NOT_RUN = {
    "README.md": 1,
    "docs/deployment.md": 3,
    "docs/index.md": 1,
    "docs/look.md": 2,
    "docs/pretraining.md": 1,
    "docs/projectors.md": 1,
    "docs/robots.md": 1,
    "docs/serving.md": 1,
    "docs/tokens.md": 2,
    "docs/training.md": 1,
}
"""Page -> blocks that carry the mark `<!-- not run: reason -->`."""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    """A folder with what a reader of the pages has: images, and in place of the hub a few small models."""
    folder = tmp_path_factory.mktemp("reader")
    random = np.random.default_rng(0)
    for name, (height, width) in {
        "image.png": (90, 120),
        "cat.jpg": (80, 80),
        "wide.jpg": (40, 120),
        "tall.jpg": (120, 40),
    }.items():
        Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(folder / name)
    words = "what is this ? which color has the shape a an red green blue circle square it shows describe image assistant user"
    tokenizer = word_tokenizer([words])
    fields = dict(model_type="llama", hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
    new_language_model(fields | dict(num_key_value_heads=2), tokenizer).save_pretrained(folder / "language_model")
    tokenizer.save_pretrained(folder / "language_model")
    tower = dict(image_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, mlp_dim=64, position_prefix=1)
    decoder = DecoderConfig(embed_dim=16, depth=1, num_heads=2, mlp_dim=32)
    new_mae(tower, decoder).save_pretrained(folder / "masked_autoencoder")
    sizes = {
        "qwen3_vl": dict(num_position_embeddings=36, deepstack_visual_indexes=[0, 2]),
        "qwen2_5_vl": dict(window_size=32, fullatt_block_indexes=[1]),
    }
    for name, vision in sizes.items():
        build(name, {"vision_config": vision}).save_pretrained(folder / name)
    for number in range(3):
        _record(folder / "recordings" / f"episode_{number}", random)
    (folder / "recipes").symlink_to(ROOT / "recipes")
    return folder


def _record(folder: Path, random: np.random.Generator) -> None:
    """An episode of ten moments in the form that `vlm-vision robot-data` reads."""
    (folder / "front").mkdir(parents=True)
    (folder / "task.txt").write_text("push the block")
    np.save(folder / "actions.npy", random.normal(size=(10, 4)))
    np.save(folder / "states.npy", random.normal(size=(10, 3)))
    for step in range(10):
        pixels = random.integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "front" / f"{step}.png")


@pytest.fixture
def here(prepared, tmp_path, monkeypatch) -> Path:
    """A fresh copy of that folder, as the present one; the hub is out of reach."""
    folder = tmp_path / "reader"
    shutil.copytree(prepared, folder, symlinks=True)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    torch.manual_seed(0)
    return folder


def replaced() -> dict[str, str]:
    """`REPLACED`, and a free port."""
    with socket.socket() as line:
        line.bind(("127.0.0.1", 0))
        port = line.getsockname()[1]
    return REPLACED | {
        "PORT = 8000": f"PORT = {port}",
        "--port 8000": f"--port {port}",
        "127.0.0.1:8000": f"127.0.0.1:{port}",
    }


def page_blocks(page: str) -> list[Block]:
    return list(blocks(ROOT / page, page))


@pytest.mark.parametrize("page", [page for page in PAGES if any(block.runs for block in page_blocks(page))])
def test_the_blocks_of_a_page_run(page, here):
    _needs_simulator(" ".join(block.text for block in page_blocks(page) if block.runs))
    with Page(replaced()) as runner:
        for block in page_blocks(page):
            if block.runs:
                try:
                    runner.run(block)
                except (Exception, SystemExit) as error:
                    raise AssertionError(f"{page}, line {block.line}: {type(error).__name__}: {error}") from error


@pytest.mark.parametrize("name", TUTORIALS)
def test_a_tutorial_runs(name, here):
    with Page(replaced()) as runner:
        runner.run(Block(f"docs/tutorials/{name}", 0, "python", (DOCS / "tutorials" / name).read_text()))


def test_blocks_that_do_not_run_say_why_and_are_counted():
    found: dict[str, int] = {}
    for page in PAGES:
        for block in page_blocks(page):
            assert block.language in (*RUN, *SHOWN), (
                f"{page}, line {block.line}: a block of {block.language or 'no language'}"
            )
            if "not run" in block.marks:
                assert len(block.marks["not run"]) > 10, f"{page}, line {block.line}: the mark gives no reason"
                found[page] = found.get(page, 0) + 1
    assert found == NOT_RUN


def test_links_between_pages_lead_to_files():
    for page in PAGES:
        for link in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", (ROOT / page).read_text()):
            if not link.startswith("http"):
                target = (ROOT / page).parent / link
                made_from = target.with_suffix(".py")  # the page of a tutorial is made when the site is built
                assert target.exists() or made_from.exists(), f"{page} links to {link}"


def test_every_page_is_in_the_navigation():
    named = set(re.findall(r"[\w/-]+\.md", (ROOT / "mkdocs.yml").read_text()))
    made = {f"tutorials/{Path(name).stem}.md" for name in TUTORIALS}
    assert named == made | {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")}


def _identifiers() -> set[str]:
    """What the pages of the API reference show."""
    text = "\n".join(page.read_text() for page in (DOCS / "api").glob("*.md"))
    return set(re.findall(r"^::: ([\w.]+)$", text, flags=re.MULTILINE))


def test_every_name_of_the_reference_resolves():
    for name in _identifiers():
        assert _resolved(name) is not None, name


def _resolved(name: str):
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found = import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for part in parts[cut:]:
            found = getattr(found, part)
        return found


def test_the_reference_has_every_public_name_and_what_the_guides_import():
    import projectors
    import vlm_vision as vv

    shown = {name.rpartition(".")[2] for name in _identifiers()}
    assert {*vv.__all__, *projectors.__all__} <= shown
    for page in PAGES:
        for block in page_blocks(page):
            if block.language != "python":
                continue
            for node in ast.walk(ast.parse(block.text)):
                if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(("vlm_vision.", "projectors")):
                    assert {one.name for one in node.names} <= shown, f"{page}, line {block.line}: {node.module}"


def test_the_table_of_settings_is_the_one_of_the_code():
    made = _hook("settings_table").table()
    assert (DOCS / "settings.md").read_text() == made, "run: python docs/hooks/settings_table.py"


@pytest.mark.parametrize("name", TUTORIALS)
def test_a_tutorial_is_a_page_and_a_notebook(name):
    hook, script = _hook("tutorials"), DOCS / "tutorials" / name
    assert hook.page(script).startswith("# ") and "```python" in hook.page(script)
    code = [cell["source"] for cell in json.loads(hook.notebook(script))["cells"] if cell["cell_type"] == "code"]
    assert code and all(compile(text, name, "exec") for text in code)


def _hook(name: str):
    """A module of docs/hooks, which is no package."""
    spec = spec_from_file_location(name, DOCS / "hooks" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_errors_of_the_troubleshooting_page_are_those_of_the_code():
    said = "\n".join(
        _strings(path) for path in [*(ROOT / "vlm_vision").rglob("*.py"), *(ROOT / "recipes").glob("*.py")]
    )
    for quoted in re.findall(r"^### `(.+)`$", (DOCS / "troubleshooting.md").read_text(), flags=re.MULTILINE):
        for part in re.split(r"\s*\.\.\.\s*", quoted):
            assert part in said, part


def _strings(path: Path) -> str:
    """The fixed parts of all texts of a module."""
    return "\n".join(
        node.value
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    )


def _needs_simulator(text: str) -> None:
    if "vlm-vision record" in text:
        pytest.importorskip("metaworld", reason="Meta-World is not installed: pip install 'vlm-vision[sim]'")
        from vlm_vision.sim.metaworld import MetaWorld

        try:
            MetaWorld("reach-v3", size=32).reset(0)
        except OSError as error:
            pytest.skip(str(error))


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().split()) <= 1200
