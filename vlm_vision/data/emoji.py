"""Images with captions: every emoji in three styles, from npm packages, split by emoji.

    vlm-vision emoji --out emoji
    vlm-vision emoji --out emoji_112 --size 112 --packages FOLDER_WITH_THE_THREE_TGZ

Needs `pip install resvg-py` and, without the packages, npm. Writes openmoji/, noto/ and twemoji/ with a PNG named
by code points for each emoji, laid on white, and emoji.csv with the columns `picture`, caption, label, style, hexcode and
split; train.csv and test.csv are its two parts, train_without_STYLE.csv and test_STYLE.csv keep one style for the test.
Flags and images outside Unicode's list are left out. The split is a
hash of the emoji without its skin tone: no emoji is in both parts, in any style or tone.
"""

import csv
import hashlib
import io
import json
import shutil
import subprocess
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from vlm_vision.files import read_json, whole, write_json
from vlm_vision.preprocess.images import load_image

PACKAGES = ("openmoji-17.0.0", "emoji-datasource-google-16.0.0", "emoji-datasource-twitter-16.0.0")
"""Names of the packages by `npm pack`, for openmoji/, noto/ and twemoji/."""
FOLDERS = {"openmoji": "package/color/svg/", "noto": "package/img/google/64/", "twemoji": "package/img/twitter/64/"}
"""Folder of each style's images in its package."""
LEFT_OUT = ("flags", "extras-openmoji", "extras-unicode")
"""Groups of OpenMoji."""
COLUMNS = ("picture", "caption", "label", "style", "hexcode", "split")
TAGS = 4
"""Most words added to a caption."""

README = """Emoji in three styles, one image of {size}x{size} pixels each, made by `vlm-vision emoji`.

| folder | drawings | package | license |
|---|---|---|---|
| openmoji | OpenMoji, https://openmoji.org | npm {0} | CC BY-SA 4.0 |
| noto | Noto Emoji by Google | npm {1} | Apache 2.0 |
| twemoji | Twemoji by Twitter and contributors | npm {2} | CC BY 4.0 |

Changed: rasterized or resized, and laid on white. Captions and labels in emoji.csv are OpenMoji's annotations, tags and
subgroups (CC BY-SA 4.0).
"""


@dataclass(frozen=True)
class Emoji:
    """OpenMoji's description of an image."""

    caption: str
    label: str
    split: str


def build(out: Path, packages: Path, *, size: int = 64) -> dict[str, int]:
    """Make the folder, unless it exists.

    Args:
        out: the folder; it appears whole or not at all.
        packages: folder with the three `PACKAGES`, as .tgz.
        size: side of the images in pixels.

    Returns:
        Images by style and split.

    Raises:
        ValueError: a missing or damaged package, or an `out` with other content.
    """
    if not is_complete(out, size):
        with whole(out) as staging:
            rows = sorted(_drawn(staging, packages, size))
            for name, kept in _tables(rows).items():
                with (staging / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
                    csv.writer(file).writerows([COLUMNS, *kept])
            (staging / "README.md").write_text(README.format(*PACKAGES, size=size))
            write_json(staging / "config.json", _config(size))
    with (out / "emoji.csv").open(newline="", encoding="utf-8") as file:
        return dict(Counter(f"{row['style']} {row['split']}" for row in csv.DictReader(file)))


def is_complete(out: Path, size: int) -> bool:
    """Whether `out` is complete. Raises ValueError if it holds anything else."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    if not (out / "config.json").is_file() or read_json(out / "config.json") != _config(size):
        raise ValueError(f"{out} is not a folder of emoji of {size} pixels: choose a new folder, or remove it")
    return True


def _config(size: int) -> dict[str, Any]:
    return {"size": size, "packages": list(PACKAGES)}


def _drawn(staging: Path, packages: Path, size: int) -> Iterator[tuple[str, ...]]:
    """Write the images; rows of emoji.csv."""
    about = _annotations(packages / f"{PACKAGES[0]}.tgz")
    for (style, inside), package in zip(FOLDERS.items(), PACKAGES, strict=True):
        (staging / style).mkdir()
        for name, data in _members(packages / f"{package}.tgz", lambda name, inside=inside: name.startswith(inside)):
            hexcode = _key(Path(name).stem)
            if hexcode not in about:
                continue
            image = f"{style}/{hexcode}.png"
            _on_white(data, size).save(staging / image)
            one = about[hexcode]
            yield image, one.caption, one.label, style, hexcode, one.split


def _tables(rows: list[tuple[str, ...]]) -> dict[str, list[tuple[str, ...]]]:
    """Name of a .csv -> its rows."""
    parts = {part: [row for row in rows if row[-1] == part] for part in ("train", "test")}
    tables = {"emoji": rows, **parts}
    for style in FOLDERS:
        tables[f"train_without_{style}"] = [row for row in parts["train"] if row[3] != style]
        tables[f"test_{style}"] = [row for row in parts["test"] if row[3] == style]
    return tables


def _annotations(package: Path) -> dict[str, Emoji]:
    """Code points -> OpenMoji's description."""
    table = "package/data/openmoji.json"
    found = dict(_members(package, lambda name: name == table))
    if table not in found:
        raise ValueError(f"{package} has no {table}: fetch the package again")
    records = {_key(one["hexcode"]): one for one in json.loads(found[table]) if one["group"] not in LEFT_OUT}
    about = {}
    for hexcode, one in records.items():
        base = _key(one["skintone_base_hexcode"]) or hexcode
        tags = (records.get(base) or one)["tags"]
        about[hexcode] = Emoji(_caption(one["annotation"], tags), one["subgroups"], split(base))
    return about


def split(base: str) -> str:
    """ "test" for a fifth of the emoji, by a hash of the code points without skin tone; "train" for the others."""
    return "test" if hashlib.sha256(base.encode()).digest()[0] % 5 == 0 else "train"


def _caption(annotation: str, tags: str) -> str:
    """The annotation, and the first tags that it does not contain."""
    said = annotation.lower()
    new = [tag for tag in tags.split(", ") if tag and tag.lower() not in said]
    return ", ".join([annotation, *new[:TAGS]])


def _key(hexcode: str) -> str:
    """Code points without the selector of a colored image: packages set it differently."""
    return hexcode.upper().replace("-FE0F", "")


def _on_white(data: bytes, size: int) -> Image.Image:
    """A PNG or SVG as an RGB image."""
    if not data.startswith(b"\x89PNG"):
        data = _rasterized(data.decode(), size)
    image = load_image(Image.open(io.BytesIO(data)))
    return image if image.size == (size, size) else image.resize((size, size), Image.Resampling.LANCZOS)


def _rasterized(svg: str, size: int) -> bytes:
    try:
        from resvg_py import svg_to_bytes
    except ImportError:
        raise ValueError("drawing OpenMoji's SVG files needs resvg: pip install resvg-py") from None
    return bytes(svg_to_bytes(svg_string=svg, width=size, height=size, skip_system_fonts=True))


def _members(package: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    """Names and contents of the chosen files in a .tgz, read once; nothing is unpacked to disk."""
    try:
        with tarfile.open(package, "r|gz") as archive:
            for member in archive:
                file = archive.extractfile(member) if member.isfile() and wanted(member.name) else None
                if file is not None:
                    yield member.name, file.read()
    except (OSError, EOFError, tarfile.TarError) as error:
        raise ValueError(
            f"{package} cannot be read ({error}): expected a package of npm pack; fetch it again"
        ) from None


def fetch(folder: Path) -> Path:
    """Bring the packages from the npm registry into `folder`. Raises ValueError without npm or a connection."""
    npm = shutil.which("npm")
    names = ["@".join(package.rsplit("-", 1)) for package in PACKAGES]
    if npm is None:
        raise ValueError(
            f"npm is not installed: get {', '.join(names)} by npm pack on another machine and pass --packages"
        )
    command = [npm, "pack", "--silent", "--pack-destination", str(folder), *names]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"npm pack failed: {done.stderr.strip() or done.stdout.strip()}")
    return folder
