"""JPEG encoding and decoding of an image in integers, as in TensorFlow, without a file or library.

`tf.io.decode_image` takes libjpeg's fast inverse transform (JDCT_IFAST), Pillow the accurate one: pixels of
the same file differ by up to 16 of 255, most of them somewhat. `round_trip` equals TensorFlow's to the bit. Entropy coding is
lossless and left out. ITU-T T.81; Loeffler, Ligtenberg and Moschytz 1989 (forward); Arai, Agui and Nakajima 1988 (inverse); integer
widths and roundings as libjpeg's.
"""

from functools import cache

import numpy as np

_LUMINANCE = """
16 11 10 16 24 40 51 61 12 12 14 19 26 58 60 55 14 13 16 24 40 57 69 56 14 17 22 29 51 87 80 62
18 22 37 56 68 109 103 77 24 35 55 64 81 104 113 92 49 64 78 87 103 121 120 101 72 92 95 98 112 100 103 99
"""
_CHROMINANCE = """
17 18 24 47 99 99 99 99 18 21 26 66 99 99 99 99 24 26 56 99 99 99 99 99 47 66 99 99 99 99 99 99
99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99
"""
"""Quantization tables of T.81 annex K, row by row."""


def round_trip(pixels: np.ndarray, quality: int = 95) -> np.ndarray:
    """uint8 RGB (H, W, 3) -> the same shape, with the losses of JPEG at `quality` 1..100, chroma at half resolution."""
    height, width = pixels.shape[:2]
    luma, blue, red = _to_ycc(pixels.astype(np.int32))
    luma = _decoded(luma, _table(_LUMINANCE, quality))[:height, :width]
    chroma = []
    for plane in (blue, red):
        seen = _decoded(_halved(plane), _table(_CHROMINANCE, quality))
        chroma.append(_doubled(seen[: -(-height // 2), : -(-width // 2)])[:height, :width])
    return _to_rgb(luma, *chroma)


@cache
def _table(base: str, quality: int) -> np.ndarray:
    """(8, 8) divisors of the quality, by the Independent JPEG Group's scale."""
    percent = 5000 // quality if quality < 50 else 200 - 2 * quality
    return np.clip((np.array(base.split(), dtype=np.int32) * percent + 50) // 100, 1, 255).reshape(8, 8)


def _to_ycc(rgb: np.ndarray) -> list[np.ndarray]:
    """Luma and two chromas, int32 in 0..255: CCIR 601 in 16 bit fractions."""
    r, g, b = rgb[..., 0], rgb[..., 1], rgb[..., 2]
    half, center = 1 << 15, (128 << 16) + (1 << 15) - 1
    return [
        (19595 * r + 38470 * g + 7471 * b + half) >> 16,
        (-11059 * r - 21709 * g + 32768 * b + center) >> 16,
        (32768 * r - 27439 * g - 5329 * b + center) >> 16,
    ]


def _to_rgb(luma: np.ndarray, blue: np.ndarray, red: np.ndarray) -> np.ndarray:
    blue, red, half = blue - 128, red - 128, 1 << 15
    planes = [
        luma + ((91881 * red + half) >> 16),
        luma + ((-22554 * blue - 46802 * red + half) >> 16),
        luma + ((116130 * blue + half) >> 16),
    ]
    return np.clip(np.stack(planes, axis=-1), 0, 255).astype(np.uint8)


def _halved(plane: np.ndarray) -> np.ndarray:
    """Means of two by two; 0.5 goes down in even columns, up in odd ones. Edges repeat: columns to whole blocks."""
    height, width = plane.shape
    plane = np.pad(plane, ((0, height % 2), (0, -width % 16)), mode="edge")
    total = plane[::2, ::2] + plane[::2, 1::2] + plane[1::2, ::2] + plane[1::2, 1::2]
    return (total + 1 + np.arange(total.shape[1]) % 2) >> 2


def _doubled(plane: np.ndarray) -> np.ndarray:
    """Twice as high and wide: 9, 3, 3 and 1 parts of 16 of the nearest four, the edges repeated; of one or two columns
    plain copies."""
    if plane.shape[1] <= 2:
        return plane.repeat(2, axis=0).repeat(2, axis=1)
    around = np.pad(plane, 1, mode="edge")
    rows = np.stack([3 * plane + around[:-2, 1:-1], 3 * plane + around[2:, 1:-1]], axis=1).reshape(-1, plane.shape[1])
    beside = np.pad(rows, ((0, 0), (1, 1)), mode="edge")
    columns = [(3 * rows + beside[:, :-2] + 8) >> 4, (3 * rows + beside[:, 2:] + 7) >> 4]
    return np.stack(columns, axis=2).reshape(len(rows), -1)


def _decoded(plane: np.ndarray, table: np.ndarray) -> np.ndarray:
    """(H, W) in blocks of 8 by 8, quantized and back: 0..255, the edges repeated to whole blocks."""
    height, width = plane.shape
    plane = np.pad(plane, ((0, -height % 8), (0, -width % 8)), mode="edge")
    rows, columns = plane.shape[0] // 8, plane.shape[1] // 8
    blocks = plane.reshape(rows, 8, columns, 8).transpose(1, 3, 0, 2).reshape(8, 8, -1)  # row, column, which block
    coefficients, divisors = _forward(blocks - 128), 8 * table[..., None]
    levels = np.sign(coefficients) * ((np.abs(coefficients) + divisors // 2) // divisors)
    found = _inverse(levels * ((table * _SCALES + (1 << 11)) >> 12)[..., None]) + 128
    return np.clip(found, 0, 255).reshape(8, 8, rows, columns).transpose(2, 0, 3, 1).reshape(plane.shape)


def _forward_matrix() -> np.ndarray:
    """sqrt(2) cos((2 x + 1) k pi / 16) in 13 bit fractions, (8, 8): the flow graph on unit vectors, products exact."""
    c = [round(8192 * value) for value in _FLOW]
    unit = np.eye(8, dtype=np.int32)
    s0, s1, s2, s3 = (unit[i] + unit[7 - i] for i in range(4))
    d0, d1, d2, d3 = (unit[i] - unit[7 - i] for i in range(4))
    turned = c[0] * (s0 - s3 + s1 - s2)
    outer, inner, near, far = -c[7] * (d3 + d0), -c[8] * (d2 + d1), -c[9] * (d3 + d1), -c[10] * (d2 + d0)
    shared = c[11] * (d3 + d1 + d2 + d0)
    rows = [
        8192 * (s0 + s3 + s1 + s2),
        c[6] * d0 + outer + far + shared,
        turned + c[1] * (s0 - s3),
        c[5] * d1 + inner + near + shared,
        8192 * (s0 + s3 - s1 - s2),
        c[4] * d2 + inner + far + shared,
        turned - c[2] * (s1 - s2),
        c[3] * d3 + outer + near + shared,
    ]
    return np.stack(rows)


_FLOW = (
    *(0.541196100, 0.765366865, 1.847759065),  # the even half
    *(0.298631336, 2.053119869, 3.072711026, 1.501321110),  # the odd half: of each difference
    *(0.899976223, 2.562915447, 1.961570560, 0.390180644, 1.175875602),  # of their sums
)
_COSINES = _forward_matrix()
_AAN = np.array([1.0, *(np.sqrt(2) * np.cos(np.arange(1, 8) * np.pi / 16))])
_SCALES = np.round(2**14 * np.outer(_AAN, _AAN)).astype(np.int32)


def _forward(blocks: np.ndarray) -> np.ndarray:
    """Eight times the cosine transform of (8, 8, n): along rows with two more bits, then along columns."""
    rows = (_transformed(blocks.swapaxes(0, 1)) + (1 << 10)) >> 11
    return (_transformed(rows.swapaxes(0, 1)) + (1 << 14)) >> 15


def _transformed(blocks: np.ndarray) -> np.ndarray:
    """_COSINES over the first axis, by the fast routines for float64, which is exact for whole numbers below 2**53."""
    found = _COSINES.astype(np.float64) @ blocks.reshape(8, -1).astype(np.float64)
    return found.astype(np.int32).reshape(blocks.shape)


def _inverse(scaled: np.ndarray) -> np.ndarray:
    """The fast inverse of coefficients (8, 8, n) that carry the scales: along columns, then rows; products rounded down."""
    return _inverted(_inverted(scaled).swapaxes(0, 1)).swapaxes(0, 1) >> 5


def _inverted(c: np.ndarray) -> np.ndarray:
    """One pass over the first axis: five products, by 1.414, 1.848, 1.082 and 2.613 in 8 bit fractions."""
    plus, minus, both = c[0] + c[4], c[0] - c[4], c[2] + c[6]
    turned = ((c[2] - c[6]) * 362 >> 8) - both
    e0, e3, e1, e2 = plus + both, plus - both, minus + turned, minus - turned
    z13, z10, z11, z12 = c[5] + c[3], c[5] - c[3], c[1] + c[7], c[1] - c[7]
    o7 = z11 + z13
    middle = (z11 - z13) * 362 >> 8
    shared = (z10 + z12) * 473 >> 8
    o6 = (z10 * -669 >> 8) + shared - o7
    o5 = middle - o6
    o4 = (z12 * 277 >> 8) - shared + o5
    return np.stack([e0 + o7, e1 + o6, e2 + o5, e3 - o4, e3 + o4, e2 - o5, e1 - o6, e0 - o7])
