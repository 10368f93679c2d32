"""Images of a data set -> their keys in a store."""

import logging
import os
from collections.abc import Iterable, Iterator

from vlm_vision.data.conversations.hf_dataset import Cell
from vlm_vision.data.stored_image import ImageSource
from vlm_vision.tokens.store import TokenStore

log = logging.getLogger(__name__)


def find_keys(
    store: TokenStore, images: Iterable[ImageSource], *, root: str = "", skip_bad: bool = False
) -> dict[str, str]:
    """`str(image)` -> its key, for the images whose key is not `str(image)` itself.

    A key is looked for as `str(image)`, as the path below `root`, then as the longest end of the path that the store has
    (`shard/member` of a shard); of a data set as `row`, or `row/image`.

    Args:
        root: folder that image paths start from.
        skip_bad: leave out images that the store lists as bad, for data of which bad images are skipped.

    Raises:
        ValueError: an image that the store lacks, or two images that would take one key.
    """
    found: dict[str, str] = {}
    taken: dict[str, str] = {}
    bad, apart = dict(store.failures), ""
    for image in images:
        name = str(image)
        if name in found:
            continue
        key = next((key for key in _possible(image, root) if key in store), None)
        if key is None:
            reason = next((bad[key] for key in _possible(image, root) if key in bad), None)
            if reason is not None and skip_bad:
                continue
            raise _lacking(store, image, reason)
        if key in taken:
            raise ValueError(
                f"the images {taken[key]} and {name} would both take the key {key!r} of {store.folder}: extract the tokens of a "
                "folder above both, so that their keys differ"
            )
        found[name], taken[key] = key, name
        if not apart and isinstance(image, str) and not _is_of(store, name, key, root):
            apart = f"{name} takes the tokens of {key!r}"
    if apart:
        log.warning(
            "images match those of %s by the ends of their paths (%s): make sure that they are the same",
            store.folder,
            apart,
        )
    return {name: key for name, key in found.items() if name != key}


def _is_of(store: TokenStore, name: str, key: str, root: str) -> bool:
    """Whether a key is the path of an image, as it is written, or below `root`, a source of the store or the folder of one."""
    if key == name:
        return True
    sources = [segment["source"] for segment in store.about["segments"]]
    roots = [root, *(place for one in sources for place in one.get("sources", ()))]
    roots += [os.path.dirname(place) for place in roots[1:]]
    roots += [one.get("options", {}).get("image_root", "") for one in sources]
    return any(os.path.abspath(os.path.join(one, key)) == os.path.abspath(name) for one in roots if one)


def _possible(image: ImageSource, root: str) -> Iterator[str]:
    """Keys that an image may have, the best first."""
    name = str(image)
    yield name
    if isinstance(image, Cell):
        yield f"{image.row}/{image.index}"
        if image.index == 0:
            yield str(image.row)
        return
    if root and os.path.abspath(name).startswith(os.path.join(os.path.abspath(root), "")):
        yield os.path.relpath(name, root).replace(os.sep, "/")
    parts = name.replace(os.sep, "/").split("/")
    for start in range(1, len(parts)):
        yield "/".join(parts[start:])


def _lacking(store: TokenStore, image: ImageSource, reason: str | None) -> ValueError:
    if reason is not None:
        return ValueError(
            f"{store.folder} has no tokens of the image {image}, which could not be read ({reason}): replace the image and "
            "extract with --append, or leave it out of the data"
        )
    return ValueError(
        f"{store.folder} has no tokens of the image {image}; its keys are like {store.key(0)!r}: extract that image with "
        "--append, or choose the store of this data"
    )
