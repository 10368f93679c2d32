"""Where the images of a contact sheet stand."""

from PIL import Image

from vlm_vision.measure.contact_sheet import contact_sheet


def test_images_stand_row_by_row_with_their_verdict(tmp_path) -> None:
    colors = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (0, 255, 255)]
    rows = [(Image.new("RGB", (20, 20), color), "what color ?", "red", i == 0) for i, color in enumerate(colors)]
    contact_sheet(tmp_path / "sheet.png", rows, columns=3, side=40)
    sheet = Image.open(tmp_path / "sheet.png")
    width, height = sheet.width // 3, sheet.height // 2
    for i, color in enumerate(colors):
        assert sheet.getpixel((i % 3 * width + width // 2, i // 3 * height + 32)) == color
    right, wrong = (sheet.getpixel((i * width + 12, 20)) for i in (0, 1))
    assert right[1] > right[0] and wrong[0] > wrong[1]  # a green frame, a red one
