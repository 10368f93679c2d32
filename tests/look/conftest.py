"""Pages in a real browser: Debian's chromium, driven by playwright."""

import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.golden import shared_folder

import vlm_vision as vv

CHROMIUM = os.environ.get("VLM_VISION_CHROMIUM") or next(
    filter(None, map(shutil.which, ("chromium", "google-chrome"))), None
)
"""Path of the browser; VLM_VISION_CHROMIUM names another."""
LAPTOP = {"width": 1280, "height": 800}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A browser without a window; the test is skipped where there is none."""
    if CHROMIUM is None:
        pytest.skip("the page is tested in chromium, which is not on the PATH: apt-get install chromium")
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright drives the browser: pip install playwright"
    )
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


class Visit:
    """A page in the browser, and what went wrong on it."""

    def __init__(self, context: Any, address: str):
        self.tab, self.problems, self.requests = context.new_page(), [], []
        self.tab.on("console", lambda message: self.problems.append(message.text) if message.type != "log" else None)
        self.tab.on("pageerror", lambda error: self.problems.append(str(error)))
        self.tab.on("request", lambda request: self.requests.append(request.url))
        self.tab.goto(address)
        self.wait("() => !!(window.vlmVision && window.vlmVision.ready)")
        self.ask("ready")

    def ask(self, name: str, *arguments: Any) -> Any:
        """What window.vlmVision answers."""
        return self.tab.evaluate(
            "async ([name, given]) => { const it = window.vlmVision[name]; return typeof it === 'function' ? await it(...given) : (await it, null) }",
            [name, list(arguments)],
        )

    def wait(self, condition: str, seconds: float = 60) -> None:
        """Until a function of the page gives true; the page's own policy forbids playwright's way, which evaluates text."""
        end = time.monotonic() + seconds
        while not self.tab.evaluate(condition):
            assert time.monotonic() < end, (
                f"{condition} is not true after {seconds} s; {self.tab.inner_text('#problem')}"
            )
            time.sleep(0.02)

    def screenshot(self, name: str) -> None:
        """Keep an image of the page where VLM_VISION_SCREENSHOTS names a folder."""
        if folder := os.environ.get("VLM_VISION_SCREENSHOTS"):
            Path(folder).mkdir(parents=True, exist_ok=True)
            self.tab.screenshot(path=Path(folder) / f"{name}.png", full_page=True)


@pytest.fixture
def visit(browser: Any) -> Iterator[Callable[..., Visit]]:
    """Opens an address; the test fails at its end if a page wrote an error to its console."""
    contexts, visits = [], []

    def open_(address: str | Path, *, viewport: dict[str, int] = LAPTOP, **options: Any) -> Visit:
        contexts.append(browser.new_context(viewport=viewport, **options))
        visits.append(Visit(contexts[-1], address.as_uri() if isinstance(address, Path) else address))
        return visits[-1]

    yield open_
    for one in visits:
        assert one.problems == []
    for context in contexts:
        context.close()


@pytest.fixture(scope="session")
def second_encoder() -> Any:
    """The real tower beside the checkout, or where there is none another mini."""
    folder = shared_folder() / "models/dinov2-small-saliency"
    return vv.load(folder, image_size=112) if folder.is_dir() else vv.load("mini", image_size=96)
