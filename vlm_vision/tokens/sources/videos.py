"""Frames of a video by number, in the order of showing."""

from array import array
from collections.abc import Iterator, Sequence
from typing import Any

from vlm_vision.data.shards.fetch import UnreachableError
from vlm_vision.tokens.source import Item, Opened
from vlm_vision.tokens.sources.places import local_path

NO_TIME = -(2**63)
"""`Item.start` of a video that could not be listed: FFmpeg's number for no time."""


def frame_items(key: str, path: str, every: int, label: int | str | None, caption: str | None) -> Iterator[Item]:
    """Every n-th frame of a video: `key/0`, `key/n`, ...; numbers count the frames in the order of showing.

    `start` is the time of the frame in units of the video's clock; of AVI, which states no such times, the number. A video that
    cannot be listed is one item with its key, so that it becomes a bad image with a reason.

    Raises:
        UnreachableError: it is by URL, and cannot be fetched now.
    """
    try:
        with local_path(path) as local:
            starts = _starts(local)
    except ValueError:
        yield Item(key, path, NO_TIME, label=label, caption=caption)
        return
    for number in range(0, len(starts), every):
        yield Item(f"{key}/{number}", path, starts[number], label=label, caption=caption)


def frames(path: str, items: Sequence[Item]) -> Iterator[Opened]:
    """The frames of items of one video, uint8 (H, W, 3) RGB, or the error of one.

    The video is opened once, searched once for the first item, and decoded on from there; AVI is decoded from its beginning.
    """
    try:
        with local_path(path) as local:
            for image in _read(local, items):
                yield ValueError(str(image).replace(local, path)) if isinstance(image, ValueError) else image
    except UnreachableError:
        raise
    except ValueError as error:  # it cannot be fetched at all
        yield from (ValueError(str(error)) for _ in items)


def _starts(path: str) -> array:
    """Times of the frames; of AVI their numbers."""
    if _is_avi(path):
        return array("q", range(sum(1 for _ in _counted(path))))
    reader = _reader()(path, in_order=True)
    try:
        ticks = array("q", reader.ticks())
        if not ticks:
            raise ValueError(f"{path} holds no frame with a time: convert it to mp4")
        if any(first == second for first, second in zip(ticks, ticks[1:], strict=False)):
            raise ValueError(f"{path} has frames with equal times: convert it to mp4")
        return ticks
    finally:
        reader.close()


def _read(path: str, items: Sequence[Item]) -> Iterator[Opened]:
    if any(item.start == NO_TIME for item in items):
        yield from (_unlisted(path) for _ in items)
    elif _is_avi(path):
        yield from _numbered(path, [item.start for item in items])
    else:
        try:
            reader = _reader()(path, in_order=True)
        except ValueError as error:
            yield from (ValueError(str(error)) for _ in items)
            return
        try:
            for item in items:
                try:
                    image = reader.at_tick(item.start)
                except ValueError as error:
                    image = ValueError(str(error))
                yield image
        finally:
            reader.close()


def _unlisted(path: str) -> ValueError:
    """The reason why a video could not be listed."""
    try:
        _starts(path)
    except ValueError as error:
        return ValueError(str(error))
    return ValueError(f"{path} could not be read when the images were listed: add it in another run")


def _numbered(path: str, numbers: Sequence[int]) -> Iterator[Opened]:
    """Frames of an AVI by number, ascending."""
    found, done = _counted(path), -1
    for number in numbers:
        try:
            frame = None
            while done < number:
                frame = next(found)
                done += 1
            if frame is None:
                raise ValueError(f"{path}: frame {number} comes after frame {done}: expected ascending numbers")
            image = frame.to_ndarray(format="rgb24")
        except StopIteration:
            image = ValueError(f"{path} ends before frame {number}: it changed, or it is damaged")
        except ValueError as error:
            image = ValueError(str(error))
        yield image


def _counted(path: str) -> Iterator[Any]:
    """All frames, decoded from the beginning. Raises ValueError for one that cannot be decoded."""
    import av
    from av.error import FFmpegError

    try:
        with av.open(path) as container:
            stream = container.streams.video[0]
            stream.codec_context.options = {"err_detect": "explode"}
            stream.thread_count = 1
            yield from container.decode(stream)
    except (OSError, IndexError, FFmpegError) as error:
        raise ValueError(f"{path} cannot be decoded ({' '.join(str(error).split())})") from None


def _is_avi(path: str) -> bool:
    return path.lower().endswith(".avi")


def _reader():
    """The reader of videos, imported at first use: it needs PyAV."""
    try:
        from vlm_vision.data.lerobot.video import VideoReader
    except ImportError as error:
        raise ImportError(f"videos are read with PyAV ({error}): pip install 'vlm-vision[robot]'") from None
    return VideoReader
