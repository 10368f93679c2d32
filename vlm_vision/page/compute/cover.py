"""Gray squares on an image, one at a time: what a model's output depends on (Zeiler and Fergus 2013, arXiv:1311.2901)."""

from PIL import Image

GRAY = (127, 127, 127)


def squares(image: Image.Image, count: int) -> tuple[int, int]:
    """(rows, columns) of about `count` squares over an image."""
    rows = max(1, round((count * image.height / image.width) ** 0.5))
    return rows, max(1, round(count / rows))


def covered(image: Image.Image, grid: tuple[int, int]) -> list[Image.Image]:
    """The image once for each cell of a grid, row by row, with that cell in gray."""
    (rows, columns), made = grid, []
    for row in range(rows):
        for column in range(columns):
            box = (
                image.width * column // columns,
                image.height * row // rows,
                -(-image.width * (column + 1) // columns),
                -(-image.height * (row + 1) // rows),
            )
            one = image.copy()
            one.paste(GRAY, box)
            made.append(one)
    return made
