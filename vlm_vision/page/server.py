"""The page on this machine alone, which computes the layers, texts and images that someone asks for."""

import io
import json
import socket
import threading
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from PIL import Image

from vlm_vision import __version__
from vlm_vision.page.arrays import Arrays
from vlm_vision.page.compute.texts import text_features
from vlm_vision.page.compute.trace import attention_layers
from vlm_vision.page.describe import Describer, ShownEncoder, ShownImage, attention_entry
from vlm_vision.page.html import page_html
from vlm_vision.preprocess.images import load_image

HOSTS = ["127.0.0.1", "localhost"]
"""Names by which a browser on this machine asks; others are refused, as of a page elsewhere that points its name here."""
_MOST_BYTES, _MOST_IMAGES = 32 * 1024 * 1024, 16
"""Bytes of an image that someone drops on the page, and images that it shows."""


class LookService:
    """What the server computes. One request at a time.

    Args:
        encoders, images: those of the page at first.
        texts: texts that are compared with patches.
        parts, arrays: additions to the page, see `make_page`.
    """

    def __init__(
        self,
        encoders: Sequence[ShownEncoder],
        images: Sequence[ShownImage],
        *,
        texts: Sequence[str] = (),
        parts: dict[str, Any] | None = None,
        arrays: Arrays | None = None,
    ):
        self._encoders, self._images, self._lock = list(encoders), list(images), threading.Lock()
        self._describer = Describer(encoders, served=True, texts=texts)
        arrays = Arrays() if arrays is None else arrays
        about = self._describer.describe(self._images, arrays)
        self._about = {"version": __version__, "served": True} | inlined(about | (parts or {}), arrays)

    def page(self) -> str:
        """The html file, as it is now."""
        with self._lock:
            return page_html(self._about, Arrays())

    def attention(self, encoder: int, image: int, tower: int, layer: int) -> dict[str, Any]:
        """Queries and keys of one layer. Raises ValueError for numbers that do not exist."""
        with self._lock:
            shown, source = _at("encoder", self._encoders, encoder), _at("image", self._images, image)
            one = _at("tower", shown.towers, tower)
            if not 0 <= layer < one.config.depth:
                raise ValueError(f"layer is {layer}: expected 0 to {one.config.depth - 1}")
            pixels = shown.pixels(source.image)[1][tower]
            arrays = Arrays()
            return inlined(attention_entry(attention_layers(one, pixels, [layer])[layer], arrays), arrays)

    def text(self, encoder: int, text: str) -> dict[str, Any]:
        """Names and features of all texts, with one more. Raises ValueError for an encoder without a text tower."""
        with self._lock:
            shown = _at("encoder", self._encoders, encoder)
            if shown.pair is None:
                raise ValueError(f"{shown.name} has no text tower here: start with --text, and a CLIP or SigLIP")
            if text not in self._describer.texts:
                self._describer.texts.append(text)
            names, arrays = self._describer.texts, Arrays()
            made = {"names": names, "features": arrays.add(text_features(shown.pair, names))}
            described = self._about["encoders"][encoder]["texts"]
            described |= inlined(made, arrays)
            return {name: described[name] for name in made}

    def add(self, name: str, data: bytes) -> dict[str, Any]:
        """The description with one more image. Raises ValueError for a file that is no image, or one too many."""
        if len(data) > _MOST_BYTES:
            raise ValueError(
                f"{name} has {len(data) / 1e6:.0f} MB: expected at most {_MOST_BYTES / 1e6:.0f}; shrink it"
            )
        if len(self._images) >= _MOST_IMAGES:
            raise ValueError(f"the page shows {_MOST_IMAGES} images, its most: start the command again with others")
        try:
            image = load_image(Image.open(io.BytesIO(data)))
        except (ValueError, OSError, Image.DecompressionBombError):
            raise ValueError(
                f"{name} is not an image that Pillow can read: expected JPEG, PNG, WebP or the like"
            ) from None
        with self._lock:
            arrays, images = Arrays(), [*self._images, ShownImage(name, image)]
            about = inlined(self._describer.describe(images, arrays), arrays)
            self._images = images
            self._about |= about
            return about


def inlined(value: Any, arrays: Arrays) -> Any:
    """A description whose arrays hold their texts themselves."""
    if isinstance(value, list):
        return [inlined(one, arrays) for one in value]
    if not isinstance(value, dict):
        return value
    if "array" in value:
        return {"text": arrays.texts[value["array"]], "dtype": value["dtype"], "shape": value["shape"]}
    return {name: inlined(one, arrays) for name, one in value.items()}


def _at(name: str, values: Sequence[Any], index: int) -> Any:
    if not 0 <= index < len(values):
        raise ValueError(f"{name} is {index}: expected 0 to {len(values) - 1}")
    return values[index]


def application(service: LookService) -> Any:
    """An ASGI application (Starlette): the page, and for its own script the layers, texts and images asked for."""
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.requests import Request
    from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
    from starlette.routing import Route

    async def page(_: Request) -> Response:
        return HTMLResponse(await run_in_threadpool(service.page), headers={"Cache-Control": "no-store"})

    async def attention(request: Request) -> Any:
        return await run_in_threadpool(service.attention, **request.path_params)

    async def text(request: Request) -> Any:
        try:
            asked = json.loads(await _body(request, 64 * 1024))
            encoder, words = int(asked["encoder"]), str(asked["text"])
        except (KeyError, TypeError, ValueError):
            raise ValueError("a text came without the number of its encoder: reload the page") from None
        return await run_in_threadpool(service.text, encoder, words)

    async def image(request: Request) -> Any:
        name = request.query_params.get("name") or "image"
        return await run_in_threadpool(service.add, name, await _body(request, _MOST_BYTES))

    def own(handler: Callable[[Request], Awaitable[Any]]) -> Callable[[Request], Awaitable[Response]]:
        """For the page's own script alone: a page elsewhere cannot send this header without leave."""

        async def answer(request: Request) -> Response:
            if request.headers.get("x-vlm-vision") != "1":
                return PlainTextResponse("only the page's own script may ask this", 403)
            try:
                return JSONResponse(await handler(request))
            except ValueError as error:
                return PlainTextResponse(" ".join(str(error).split()), 400)

        return answer

    return Starlette(
        routes=[
            Route("/", page),
            Route("/attention/{encoder:int}/{image:int}/{tower:int}/{layer:int}", own(attention)),
            Route("/text", own(text), methods=["POST"]),
            Route("/image", own(image), methods=["POST"]),
        ],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=HOSTS)],
    )


def serve(service: LookService, port: int) -> None:
    """Serve on the loopback address until interrupted. Raises ValueError without the extra `serve`, OSError for a port in use."""
    try:
        import uvicorn
    except ModuleNotFoundError:
        raise ValueError("--serve needs uvicorn and starlette: pip install 'vlm-vision[serve]'") from None
    with socket.create_server((HOSTS[0], port)) as listener:
        address = f"http://{HOSTS[0]}:{listener.getsockname()[1]}"
        print(f"serving the page at {address} to this machine alone; Ctrl+C ends it", flush=True)
        server = uvicorn.Server(uvicorn.Config(application(service), log_level="warning"))
        server.run(sockets=[listener])


async def _body(request: Any, most: int) -> bytes:
    """The request's body. Raises ValueError if it is larger than `most` bytes, before all of it is read."""
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > most:
            raise ValueError(f"the upload has more than {most / 1e6:.0f} MB: shrink the image")
        parts.append(part)
    return b"".join(parts)
