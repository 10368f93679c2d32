"""The nearest preprocessing that another library can describe, with a warning."""

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from vlm_vision.preprocess.spec import Preprocess


def nearest(spec: Preprocess, library: str, express: Callable[[Preprocess], dict[str, Any]]) -> Preprocess:
    """The preprocessing nearest to `spec` that `express` takes; a warning states the differences.

    In this order: the same; without the camera path; Pillow's resize on 8 bits; the other rounding of the crop's place; a plain
    squash to the size of the result.

    Raises:
        ValueError: the size of the result depends on the image, and none of them fits.
    """
    direct = replace(spec, camera=None, before=())
    candidates = [spec, direct, replace(direct, kernel="pillow", standardize=False, sample_deviation=False)]
    if spec.crop and spec.crop_place == "centre":
        others: list[Any] = [rounding for rounding in ("floor", "half_even") if rounding != spec.crop_rounding]
        candidates += [replace(candidate, crop_rounding=other) for other in others for candidate in candidates]
    if spec.output_size and spec.resize != "squash":
        squash = dict(resize="squash", resize_to=spec.output_size, crop=None, fill=(0, 0, 0), crop_rounding="floor")
        squash |= dict(crop_place="centre", patch_size=0)
        candidates.append(replace(direct, kernel="pillow", standardize=False, sample_deviation=False, **squash))  # type: ignore[arg-type]
    problem: ValueError | None = None
    for candidate in candidates:
        try:
            express(candidate)
        except ValueError as error:
            problem = problem or error
            continue
        if candidate != spec:
            changed = [f"{name} {value!r}" for name, value in vars(spec).items() if value != getattr(candidate, name)]
            warnings.warn(
                f"{library} has no preprocessing with {', '.join(changed)}: its file has the nearest one, "
                "and vlm_vision.json keeps the exact one",
                stacklevel=5,
            )
        return candidate
    assert problem is not None
    raise problem
