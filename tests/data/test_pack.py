"""Rows that hold several examples."""

from vlm_vision.data.conversations.labels import IGNORED, Example, pack


def test_no_label_crosses_from_one_example_to_the_next() -> None:
    """The first token of an example is predicted by nothing of its own, so it is never a label."""
    rows = pack([Example([5, 6], [5, 6]), Example([7, 8, 9], [7, 8, 9])], 0, length=8)
    assert rows["input_ids"].tolist() == [[5, 6, 7, 8, 9]]
    assert rows["labels"].tolist() == [[IGNORED, 6, IGNORED, 8, 9]]
    assert rows["position_ids"].tolist() == [[0, 1, 0, 1, 2]]
