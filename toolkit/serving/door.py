"""Who gets in, and how much of it: the outermost layer of the server, plain ASGI.

Every request passes here once on its way in (token, bytes, time to send them) and once on its way
out (headers, log, metrics). Whoever hangs up before the answer has the work for it cancelled.
"""

import asyncio
import hmac
import logging
import time
from collections.abc import Callable
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from toolkit.config import ServeConfig
from toolkit.serving.errors import RequestError, body_of
from toolkit.serving.journal import Metrics, Trace, log

# What answers without a token: probes have none, and the page asks for it.
OPEN_PATHS = ("/", "/health", "/ping", "/v2/health/live", "/v2/health/ready")
GONE = 499  # "client closed request", as nginx logs it: nobody is there to read it
COMPUTE_TYPE = b"cpu"


class Door:
    """Middleware around an ASGI app."""

    def __init__(
        self, app: ASGIApp, config: ServeConfig, metrics: Metrics, is_full: Callable[[], bool]
    ) -> None:
        """Wrap an app.

        Args:
            app: Any ASGI app.
            config: The limits.
            metrics: Where requests are counted.
            is_full: Whether the queue has no room for a single text.
        """
        self._app, self._config, self._metrics = app, config, metrics
        self._is_full = is_full
        self._secret = None if config.token is None else f"Bearer {config.token}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request pass; what is no request (start-up, shutdown) passes anyway."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, trace, status = time.monotonic(), Trace(), GONE
        scope["trace"] = trace

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", []), *_headers(trace, began)]
            await send(message)

        try:
            await self._pass(scope, receive, answer)
        except Exception as error:  # a bug: its words may hold a text, its kind and place do not
            trace.error = type(error).__name__
            last = _last_line(error)
            log("error", logging.ERROR, error=trace.error, place=last)
            if status == GONE:
                await _refuse(answer, scope, RequestError("Backend", "internal error"))
        finally:
            path = getattr(scope.get("route"), "path", "other")
            seconds = time.monotonic() - began
            self._metrics.note_request(path, status, seconds, trace)
            log(
                "request",
                method=scope["method"],
                path=path,
                status=status,
                ms=round(1e3 * seconds, 2),
                texts=trace.texts,
                tokens=trace.tokens,
                queue_ms=round(1e3 * trace.queue_s, 2),
                inference_ms=round(1e3 * trace.inference_s, 2),
                error=trace.error,
            )

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        try:
            self._check_token(scope, headers)
            if scope["method"] == "POST" and self._is_full():
                # before anything is read or parsed: under overload most requests end here
                raise RequestError("Overloaded", "Model is overloaded")
            if headers.get(b"content-encoding", b"identity") != b"identity":
                raise RequestError("Validation", "send the body as it is, not compressed", 415)
            async with asyncio.timeout(self._config.read_timeout_s):
                body = await self._read(headers, receive)
        except TimeoutError:
            await _refuse(send, scope, RequestError("Validation", "the body takes too long", 408))
            return
        except RequestError as error:
            await _refuse(send, scope, error)
            return
        if body is None:  # hung up while sending
            return
        await _until_gone(self._app, scope, body, receive, send)

    def _check_token(self, scope: Scope, headers: dict[bytes, bytes]) -> None:
        is_open = scope["path"] in OPEN_PATHS and scope["method"] == "GET"
        if self._secret is None or is_open:
            return
        if not hmac.compare_digest(headers.get(b"authorization", b""), self._secret):
            raise RequestError("Validation", "expected the header Authorization: Bearer TOKEN", 401)

    async def _read(self, headers: dict[bytes, bytes], receive: Receive) -> bytes | None:
        """Read a body; None if the client hung up.

        Raises:
            RequestError: It has too many bytes.
        """
        limit = self._config.max_body_bytes
        told = headers.get(b"content-length", b"0")
        body, is_more = bytearray(), True
        while is_more:
            if len(body) > limit or (told.isdigit() and int(told) > limit):
                raise RequestError("Validation", f"a request has at most {limit} bytes", 413)
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            body += message.get("body", b"")
            is_more = message.get("more_body", False)
        if len(body) > limit:
            raise RequestError("Validation", f"a request has at most {limit} bytes", 413)
        return bytes(body)


async def _until_gone(
    app: ASGIApp, scope: Scope, body: bytes, receive: Receive, send: Send
) -> None:
    """Run the app on a body that has been read, as long as the client is there."""
    gone = asyncio.create_task(_hung_up(receive))
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        if messages:
            return messages.pop()
        await asyncio.wait({gone})
        return {"type": "http.disconnect"}

    work = asyncio.ensure_future(app(scope, replay, send))
    try:
        await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            work.result()  # raises what it raised
    finally:
        for task in (work, gone):
            task.cancel()
        await asyncio.gather(work, gone, return_exceptions=True)


async def _hung_up(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _refuse(send: Send, scope: Scope, error: RequestError) -> None:
    scope["trace"].error = error.kind
    content = body_of(error, scope["path"])
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(content)).encode()),
    ]
    if error.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if error.status == 429:
        headers.append((b"retry-after", b"1"))
    if error.status in (408, 413):
        headers.append((b"connection", b"close"))  # the rest of the body is not read
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": content})


def _headers(trace: Trace, began: float) -> list[tuple[bytes, bytes]]:
    """Tell where the time went, in whole milliseconds, under the names of others' servers."""
    if not trace.texts:
        return []
    milliseconds: dict[bytes, float] = {
        b"x-total-time": time.monotonic() - began,
        b"x-tokenization-time": trace.tokenize_s,
        b"x-queue-time": trace.queue_s,
        b"x-inference-time": trace.inference_s,
    }
    told = [(name, str(round(1e3 * seconds)).encode()) for name, seconds in milliseconds.items()]
    tokens = str(trace.tokens).encode()
    return [*told, (b"x-compute-tokens", tokens), (b"x-compute-type", COMPUTE_TYPE)]


def _last_line(error: BaseException) -> str:
    trace: Any = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    code = trace.tb_frame.f_code
    return f"{code.co_filename.rpartition('/')[2]}:{trace.tb_lineno}"
