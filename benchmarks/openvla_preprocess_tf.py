"""The steps of OpenVLA's evaluation by TensorFlow's own operations; run by `benchmarks.openvla_preprocess_parity` in another
environment, which has tensorflow and numpy and not this library.

python openvla_preprocess_tf.py IN.npz OUT.npz SIDE: for every uint8 image "i" of IN, in OUT "i.jpeg", "i.resized", "i.cropped",
and in "seconds" the mean time of an image, all three.
"""

import sys
import time

import numpy as np
import tensorflow as tf  # type: ignore[import-not-found]


def steps(pixels: np.ndarray, side: int) -> list[np.ndarray]:
    """uint8 (H, W, 3) through JPEG of quality 95; then side x side; then the middle 0.9 of that."""
    jpeg = tf.io.decode_image(tf.image.encode_jpeg(pixels), expand_animations=False, dtype=tf.uint8)
    resized = tf.image.resize(jpeg, (side, side), method="lanczos3", antialias=True)
    resized = tf.cast(tf.clip_by_value(tf.round(resized), 0, 255), tf.uint8)
    edge = tf.sqrt(0.9)
    box = [(1 - edge) / 2, (1 - edge) / 2, (1 - edge) / 2 + edge, (1 - edge) / 2 + edge]
    values = tf.image.convert_image_dtype(resized, tf.float32)
    cropped = tf.image.crop_and_resize(values[None], tf.stack([box]), [0], (side, side))
    cropped = tf.image.convert_image_dtype(tf.clip_by_value(cropped, 0, 1), tf.uint8, saturate=True)[0]
    return [jpeg.numpy(), resized.numpy(), cropped.numpy()]


def main() -> None:
    source, target, side = sys.argv[1], sys.argv[2], int(sys.argv[3])
    images = np.load(source)
    found = {}
    steps(images[images.files[0]], side)  # what the first call sets up is not timed
    start = time.perf_counter()
    for name in images.files:
        made = steps(images[name], side)
        found |= {f"{name}.{step}": one for step, one in zip(("jpeg", "resized", "cropped"), made, strict=True)}
    seconds = (time.perf_counter() - start) / len(images.files)
    np.savez_compressed(target, seconds=seconds, version=tf.__version__, **found)


if __name__ == "__main__":
    main()
