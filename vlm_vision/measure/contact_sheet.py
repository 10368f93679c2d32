"""One image of many answers: test images with question, answer, right or wrong."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from vlm_vision.data.stored_image import ImageSource, StoredImage, open_stored_images
from vlm_vision.preprocess.images import ImageInput, load_image

_RIGHT, _WRONG, _INK, _PAPER = "#1a7f37", "#cf222e", "#1f2328", "#ffffff"


def contact_sheet(
    file: str | Path,
    rows: Sequence[tuple[ImageSource | ImageInput, str, str, bool]],
    *,
    columns: int = 6,
    side: int = 160,
    title: str = "",
    marks: tuple[str, str] = ("right", "wrong"),
) -> None:
    """Draw a PNG of (image, question, answer, whether it is right), `side` pixels an image; `marks` name right and wrong."""
    font, small = ImageFont.load_default(15), ImageFont.load_default(13)
    pad, text_height, top = 12, 66, 40 if title else 0
    cell_width, cell_height = side + 2 * pad, side + text_height + 2 * pad
    lines = -(-len(rows) // columns)
    sheet = Image.new("RGB", (columns * cell_width, lines * cell_height + top), _PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((pad, pad), title, fill=_INK, font=font)
    for i, (image, question, answer, is_right) in enumerate(rows):
        x, y = (i % columns) * cell_width + pad, top + (i // columns) * cell_height + pad
        thumbnail = load_image(open_stored_images([image])[0] if isinstance(image, StoredImage) else image)
        thumbnail.thumbnail((side, side))
        if max(thumbnail.size) < side:
            scale = side / max(thumbnail.size)
            thumbnail = thumbnail.resize(
                (round(thumbnail.width * scale), round(thumbnail.height * scale)), Image.Resampling.NEAREST
            )
        sheet.paste(thumbnail, (x, y))
        shown_question = textwrap.shorten(question.replace("<image>", "").strip(), 46, placeholder="...")
        draw.multiline_text(
            (x, y + side + 4), "\n".join(textwrap.wrap(shown_question, 24)), fill=_INK, font=small, spacing=2
        )
        color, mark = (_RIGHT, marks[0]) if is_right else (_WRONG, marks[1])
        draw.rectangle((x, y, x + side - 1, y + side - 1), outline=color, width=2)
        draw.text(
            (x, y + side + 42),
            f"{textwrap.shorten(answer or '(nothing)', 16, placeholder='...')} ({mark})",
            fill=color,
            font=font,
        )
    sheet.save(file)
