"""The app: ASGI, made of a configuration, for any server or cluster that runs such."""

import base64
import hashlib
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from toolkit.config import ServeRoot
from toolkit.serving.batcher import Batcher
from toolkit.serving.door import Door
from toolkit.serving.errors import RequestError, body_of
from toolkit.serving.journal import Metrics
from toolkit.serving.model import Model, load_model, run_batch
from toolkit.serving.service import Service
from toolkit.serving.tensor_routes import tensor_routes
from toolkit.serving.text_routes import text_routes

PAGE = Path(__file__).with_name("page.html")


def make_app(config: ServeRoot, load: Callable[[ServeRoot], Model] = load_model) -> FastAPI:
    """Make the app of a served model.

    Args:
        config: As of `toolkit serve`; `toolkit.config.default_serve` makes one.
        load: What loads the model, for a model of another engine's.

    Raises:
        InputError: A file is missing, damaged, or not a model that the engine knows.
        UsageError: The configuration asks for what is not there.
    """
    model, metrics, limits = load(config), Metrics(), config.serve

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        batcher.start()
        yield
        await batcher.close()

    batcher = Batcher(
        partial(run_batch, model),
        limits.max_batch,
        limits.max_wait_ms / 1e3,
        limits.max_batch_tokens,
        limits.max_queue,
        metrics.note_batch,
    )
    metrics.queue_size.set_function(lambda: batcher.size)
    service = Service(model, batcher, limits)
    app = FastAPI(title="toolkit serve", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.include_router(text_routes(service))
    app.include_router(tensor_routes(service))
    app.add_middleware(
        Door, config=limits, metrics=metrics, is_full=lambda: batcher.size >= limits.max_queue
    )
    content, policy = page()

    @app.get("/", include_in_schema=False)
    async def show_page() -> Response:
        headers = {"content-security-policy": policy, "x-content-type-options": "nosniff"}
        return Response(content, media_type="text/html", headers=headers)

    @app.get("/metrics")
    async def show_metrics() -> Response:
        return Response(metrics.render(), media_type="text/plain; version=0.0.4")

    @app.exception_handler(RequestError)
    async def refuse(request: Request, error: RequestError) -> Response:
        request.scope["trace"].error = error.kind
        headers = {"retry-after": "1"} if error.status in (429, 503) else None
        content = body_of(error, request.url.path)
        return Response(content, error.status, headers, "application/json")

    @app.exception_handler(RequestValidationError)
    async def refuse_body(request: Request, error: RequestValidationError) -> Response:
        said = [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()]
        return await refuse(request, RequestError("Validation", "; ".join(said[:3]), 422))

    @app.exception_handler(HTTPException)
    async def refuse_path(request: Request, error: HTTPException) -> Response:
        return await refuse(request, RequestError("Validation", error.detail, error.status_code))

    return app


def page() -> tuple[bytes, str]:
    """Read the page, and make the policy that lets it run its own script and nothing else."""
    text = PAGE.read_text(encoding="utf-8")
    hashes = {
        tag: " ".join(
            f"'sha256-{base64.b64encode(hashlib.sha256(part.encode()).digest()).decode()}'"
            for part in re.findall(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        )
        for tag in ("script", "style")
    }
    policy = (
        f"default-src 'none'; script-src {hashes['script']}; style-src {hashes['style']}; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return text.encode(), policy
