"""The real pairs, built from packages made by hand."""

import csv
import io
import json
import tarfile

import pytest
from PIL import Image

from vlm_vision.cli.main import main
from vlm_vision.data import emoji

pytest.importorskip("resvg_py", reason="pip install resvg-py")

SVG = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 72 72"><circle cx="36" cy="36" r="20" fill="#ff0000"/></svg>'
)
HEXCODES = [f"1F{i:03X}" for i in range(0x300, 0x328)]


def row(hexcode: str, *, group: str = "objects", base: str = "", tags: str = "") -> dict[str, str]:
    about = {"annotation": f"thing {hexcode}", "subgroups": "tool", "tags": tags, "skintone_base_hexcode": base}
    return {"hexcode": hexcode, "group": group} | about


ROWS = [
    *(row(one, tags="thing, red, round, Thing 1, useful, old, large") for one in HEXCODES),
    *(row(f"{one}-1F3FB", base=one) for one in HEXCODES[:10]),
    row("0023-FE0F-20E3", group="symbols"),
    row("1F1EA-1F1EC", group="flags"),
    row("E000", group="extras-openmoji"),
]


def png(size: int) -> bytes:
    """A blue square on nothing."""
    image = Image.new("RGBA", (size, size))
    image.paste((0, 0, 255, 255), (size // 4, size // 4, 3 * size // 4, 3 * size // 4))
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def packages(tmp_path):
    folder = tmp_path / "packages"
    folder.mkdir()
    contents: list[dict[str, bytes]] = [{"package/data/openmoji.json": json.dumps(ROWS).encode()}, {}, {}]
    for one in ROWS:
        contents[0][f"package/color/svg/{one['hexcode']}.svg"] = SVG.encode()
        if one["hexcode"] != HEXCODES[5]:  # other fonts lag behind
            contents[1][f"package/img/google/64/{one['hexcode'].lower()}.png"] = png(64)
            contents[2][f"package/img/twitter/64/{one['hexcode'].lower()}.png"] = png(64)
    contents[1]["package/img/google/sheets/64.png"] = png(64)
    for name, files in zip(emoji.PACKAGES, contents, strict=True):
        with tarfile.open(folder / f"{name}.tgz", "w:gz") as archive:
            for path, data in files.items():
                member = tarfile.TarInfo(path)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    return folder


def table(folder, name="emoji"):
    with (folder / f"{name}.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_every_row_has_its_image_on_white_and_every_image_its_row(packages, tmp_path):
    counts = emoji.build(tmp_path / "out", packages, size=32)
    rows = table(tmp_path / "out")
    assert sum(counts.values()) == len(rows) == 51 + 50 + 50 and list(rows[0]) == list(emoji.COLUMNS)
    assert {row["picture"] for row in rows} == {
        str(file.relative_to(tmp_path / "out")) for file in (tmp_path / "out").rglob("*.png")
    }
    for name, color in (("openmoji", (255, 0, 0)), ("noto", (0, 0, 255)), ("twemoji", (0, 0, 255))):
        with Image.open(tmp_path / "out" / name / "0023-20E3.png") as image:
            assert (image.size, image.mode) == ((32, 32), "RGB")
            assert image.getpixel((0, 0)) == (255, 255, 255) and image.getpixel((16, 16)) == color
    readme = (tmp_path / "out/README.md").read_text()
    assert all(license in readme for license in ("CC BY-SA 4.0", "Apache 2.0", "CC BY 4.0", "32x32"))


def test_flags_and_extras_are_left_out_and_captions_have_new_words(packages, tmp_path):
    emoji.build(tmp_path / "out", packages)
    rows = {(row["style"], row["hexcode"]): row for row in table(tmp_path / "out")}
    assert not {hexcode for _, hexcode in rows} & {"1F1EA-1F1EC", "E000"}
    first = rows["noto", "1F300"]
    assert first["caption"] == "thing 1F300, red, round, useful, old" and first["label"] == "tool"
    assert rows["noto", "1F300-1F3FB"]["caption"] == "thing 1F300-1F3FB, red, round, useful, old"


def test_no_emoji_is_on_both_sides_in_any_style_or_tone(packages, tmp_path):
    emoji.build(tmp_path / "out", packages)
    for name in ("train", "test"):
        part = [row for row in table(tmp_path / "out") if row["split"] == name]
        assert table(tmp_path / "out", name) == part
    sides: dict[str, set[str]] = {}
    for one in table(tmp_path / "out"):
        sides.setdefault(one["hexcode"].removesuffix("-1F3FB"), set()).add(one["split"])
    assert all(len(side) == 1 for side in sides.values())
    assert {"train", "test"} == {name for side in sides.values() for name in side}
    assert 0.17 < sum(emoji.split(f"{i:X}") == "test" for i in range(4000)) / 4000 < 0.23


def test_a_second_run_does_nothing_and_needs_no_packages(packages, tmp_path, capsys):
    arguments = ["--out", str(tmp_path / "out"), "--size", "16"]
    assert main(["emoji", *arguments, "--packages", str(packages)]) == 0
    first = capsys.readouterr().out
    stamps = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").rglob("*")}
    assert main(["emoji", *arguments]) == 0
    assert capsys.readouterr().out == first and "twemoji test" in first
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "out").rglob("*")} == stamps
    with pytest.raises(ValueError, match="not a folder of emoji of 64 pixels: choose a new folder"):
        emoji.build(tmp_path / "out", packages)


def test_a_damaged_package_leaves_nothing_behind(packages, tmp_path):
    broken = packages / f"{emoji.PACKAGES[2]}.tgz"
    broken.write_bytes(broken.read_bytes()[:-200])
    with pytest.raises(ValueError, match="twitter-16.0.0.tgz cannot be read .* fetch it again"):
        emoji.build(tmp_path / "out", packages)
    broken.unlink()
    with pytest.raises(ValueError, match="cannot be read"):
        emoji.build(tmp_path / "out", packages)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["packages"]


def test_without_npm_a_sentence_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match="npm is not installed: get openmoji@17.0.0, emoji-datasource-google@16.0.0"):
        emoji.fetch(tmp_path)
