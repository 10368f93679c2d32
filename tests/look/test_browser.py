"""Each tab in a real browser, from the disk: what it shows are the values that Python computes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from support.models import make_image

import vlm_vision as vv
from vlm_vision.page.compute.trace import attention_layers

TABS = ["patches", "attention", "flow", "comparison", "similarity", "norms", "text"]
PHONE = {"width": 390, "height": 844}
MARKUP = "<img src=x onerror=alert(1)></script><b>.png"


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    return [make_image(0, 90, 120), make_image(1, 120, 80)]


@pytest.fixture(scope="module")
def page(images: list[Image.Image], second_encoder: vv.Encoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two images, a pair and another tower; a caption of markup."""
    made = vv.look(
        images,
        ["mini", second_encoder],
        texts=["a red square", "</script><i>a cat"],
        names=[MARKUP, "second"],
        layers=[1, -1],
    )
    return made.save(tmp_path_factory.mktemp("page") / "page.html")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", ["laptop", "phone"])
def test_every_tab_opens(visit: Any, page: Path, size: str, scheme: str):
    one = visit(page, color_scheme=scheme, **({"viewport": PHONE} if size == "phone" else {}))
    names = one.tab.eval_on_selector_all("[role=tab]", "tabs => tabs.map(tab => tab.id.slice(4))")
    assert names == TABS
    for name in TABS:
        one.tab.click(f"#tab-{name}")
        one.ask("choose", {})
        assert one.tab.inner_text("#problem") == ""
        assert one.tab.locator("#panel canvas").count() > 0
        assert one.tab.evaluate("document.documentElement.scrollWidth <= innerWidth"), (
            f"{name} is wider than the {size}"
        )
        one.screenshot(f"{size}-{scheme}-{name}")
    assert all(url.startswith(("file:", "data:")) for url in one.requests), one.requests


def test_attention_equals_that_of_the_block(
    visit: Any, page: Path, images: list[Image.Image], second_encoder: vv.Encoder
):
    one = visit(page)
    for number, encoder in enumerate([vv.load("mini"), second_encoder]):
        prefix = encoder.config.num_prefix_tokens
        for at, image in enumerate(images):
            for layer, held in attention_layers(
                encoder, encoder.preprocess(image), [1, encoder.config.depth - 1]
            ).items():
                for token in [*(["cls"] if prefix else []), 0, 17]:
                    expected = held.weights(0 if token == "cls" else prefix + token)[-1, prefix:]
                    got = one.ask(
                        "attention", {"encoder": number, "image": at, "layer": layer, "head": encoder.config.num_heads - 1, "token": token}
                    )  # fmt: skip
                    assert np.abs(np.array(got) - expected.numpy()).max() < 1e-6


def test_a_click_and_the_keys_choose_a_patch(visit: Any, page: Path):
    one = visit(page)
    canvas = one.tab.locator("canvas.map[tabindex]").first
    box = canvas.bounding_box()
    canvas.click(position={"x": box["width"] * 2.5 / 8, "y": box["height"] * 3.5 / 8})
    one.ask("choose", {})
    assert one.ask("state")["token"] == 3 * 8 + 2
    weights = one.ask("attention", {"layer": 5, "head": 0, "token": 26})
    best = int(np.argmax(weights))
    assert f"to patch {best}." in one.tab.inner_text(".reading")
    canvas.focus()
    one.tab.keyboard.press("ArrowRight")
    one.tab.keyboard.press("ArrowDown")
    one.ask("choose", {})
    assert one.ask("state")["token"] == 4 * 8 + 3
    one.tab.focus("#tab-attention")
    one.tab.keyboard.press("ArrowRight")
    one.wait("() => window.vlmVision.state().tab === 'flow'")


def test_heads_are_drawn_in_the_scale_of_their_values(visit: Any, page: Path):
    one = visit(page)
    one.ask("choose", {"layer": 5, "head": 2, "token": 10})
    weights = np.array(one.ask("attention", {"layer": 5, "head": 2, "token": 10}))
    colors = one.tab.evaluate(
        """() => { const canvas = document.querySelectorAll('.head canvas')[2]; const { width, height } = canvas;
        const all = canvas.getContext('2d').getImageData(0, 0, width, height).data;
        return [...Array(64).keys()].map(i => { const x = Math.floor((i % 8 + 0.5) * width / 8), y = Math.floor((Math.floor(i / 8) + 0.5) * height / 8);
        return [...all.slice(4 * (y * width + x), 4 * (y * width + x) + 4)] }) }"""
    )
    brightness = np.array(colors)[:, :3] @ [0.2126, 0.7152, 0.0722]
    order = np.argsort(weights)
    assert (np.diff(brightness[order]) >= -2).all() and brightness[order[-1]] > 200


def test_similarity_lengths_and_texts_equal_those_of_python(visit: Any, page: Path, images: list[Image.Image]):
    one, pair = visit(page), vv.load_pair("mini")
    with torch.no_grad():
        tokens = [pair.image(pair.image.preprocess(image)).patch_tokens[0] for image in images]
        raw = pair.image(pair.image.preprocess(images[1]), tap=vv.Tap(2, norm=False), pool=False).patch_tokens[0]
        alone = pair.image.model.pool(tokens[0][:, None])
        words = pair.embed_texts(pair.text.tokenizer(["a red square"]))[0]
    expected = F.cosine_similarity(tokens[0][5], tokens[1], dim=-1)
    np.testing.assert_allclose(one.ask("similarity", {"image": 0, "other": 1, "patch": 5}), expected, atol=2e-3)
    np.testing.assert_allclose(one.ask("lengths", {"image": 1, "layer": 2}), raw.norm(dim=-1), rtol=1e-4)
    np.testing.assert_allclose(one.ask("text", {"text": 0}), F.cosine_similarity(alone, words, dim=-1), atol=1e-5)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"layer": 5, "head": 0, "token": "cls"}, "no token cls"),
        ({"layer": 0, "head": 0, "token": 0}, "--serve"),
        ({"layer": 5, "head": 9, "token": 0}, "head is 9: expected 0 to 2"),
        ({"layer": 5, "head": 0, "token": 64}, "token is 64: expected 0 to 63"),
        ({"encoder": 7, "layer": 5, "head": 0, "token": 0}, "encoder is 7"),
    ],
)
def test_what_the_page_does_not_have_is_one_sentence(visit: Any, page: Path, asked: dict, words: str):
    one = visit(page)
    with pytest.raises(Exception, match=words):
        one.ask("attention", asked)


def test_a_choice_that_does_not_exist_changes_nothing(visit: Any, page: Path):
    one = visit(page)
    before = one.ask("state")
    for wrong, words in (
        ({"tab": "colors"}, "no tab colors"),
        ({"encoder": 5}, "encoder is 5"),
        ({"image": -1}, "image is -1"),
    ):
        with pytest.raises(Exception, match=words):
            one.ask("choose", wrong)
    assert one.ask("state") == before
    one.ask("choose", {"layer": 1})
    assert one.ask("state")["layer"] == 1


def test_a_notebook_shows_the_page(visit: Any, images: list[Image.Image], tmp_path: Path, page: Path):
    (tmp_path / "notebook.html").write_text(vv.look(images[0], "mini")._repr_html_())
    tab = visit(page).tab
    tab.goto((tmp_path / "notebook.html").as_uri())
    frame = tab.frames[1]
    frame.wait_for_selector("[role=tab]")
    assert len(frame.evaluate("() => window.vlmVision.attention({ layer: 5, head: 0, token: 3 })")) == 64


def test_markup_in_names_is_text(visit: Any, page: Path):
    one = visit(page)
    assert one.tab.locator("img[src=x]").count() == 0 and one.tab.locator("#panel i").count() == 0
    assert MARKUP in one.tab.inner_text("#choices")
    one.tab.click("#tab-text")
    one.ask("choose", {})
    assert "</script><i>a cat" in one.tab.inner_text("#panel")


def test_the_policy_of_the_page_lets_nothing_in(visit: Any, page: Path):
    one = visit(page)
    blocked = one.tab.evaluate(
        """async () => { const fail = promise => promise.then(() => false, () => true);
        const image = new Promise((done, no) => { const one = new Image(); one.onload = done; one.onerror = no; one.src = 'https://example.org/a.png' });
        const script = document.createElement('script'); script.textContent = 'window.broken = 1'; document.body.append(script);
        return [await fail(fetch('https://example.org/')), await fail(image), window.broken === undefined] }"""
    )
    assert blocked == [True, True, True]
    assert any("Content Security Policy" in problem for problem in one.problems)
    one.problems.clear()
