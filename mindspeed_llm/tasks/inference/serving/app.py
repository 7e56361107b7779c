"""The web application: paths, keys, sizes of bodies, errors. What an answer is, jobs.py knows."""

import asyncio
import hashlib
import json
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from mindspeed_llm.config.errors import UserError
from mindspeed_llm.generation.engine import EngineClosed
from mindspeed_llm.generation.generator import PromptLengthError
from mindspeed_llm.tasks.inference.serving.errors import ApiError, invalid, stopping
from mindspeed_llm.tasks.inference.serving.hub import EventStream, Hub
from mindspeed_llm.tasks.inference.serving.jobs import Job, Jobs
from mindspeed_llm.tasks.inference.serving.metrics import CONTENT_TYPE, Metrics
from mindspeed_llm.tasks.inference.serving.page import Page
from mindspeed_llm.tasks.inference.serving.protocol import ChatBody, CompletionBody

MAX_BODY = 8 * 2**20    # bytes; the longest prompts of GLM-4, as ids, are a tenth of it
_READ_AWAY = 8 * MAX_BODY   # of a body that is too large: a client that is still sending does not read the error
_BODY_SECONDS = 60.0

Say = Callable[[str], None]


@dataclass(frozen=True)
class Served:
    """What the application is about: the name of the model, and the key that clients must give (None: any)."""

    model: str
    api_key: str | None


def application(served: Served, jobs: Jobs, hub: Hub, say: Say) -> Starlette:
    """The application. `say` gets a line about each answered request, with no word of what was asked or answered."""
    api = _Api(served, jobs, hub, Metrics(hub.engine), say)
    page = Page(needs_key=served.api_key is not None)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        hub.attach()
        yield

    async def show_page(_: Request) -> Response:
        return Response(page.body, media_type="text/html", headers=page.headers)
    return Starlette(lifespan=lifespan, routes=[
        Route("/", show_page),
        Route("/health", api.health),
        Route("/metrics", api.metrics),
        Route("/v1/models", api.protected(api.models)),
        Route("/v1/models/{name:path}", api.protected(api.model)),
        Route("/v1/chat/completions", api.protected(api.chat), methods=["POST"]),
        Route("/v1/completions", api.protected(api.completions), methods=["POST"]),
    ], exception_handlers={HTTPException: api.no_such_path, Exception: api.failure})


Endpoint = Callable[[Request], Awaitable[Response]]


class _Api:
    def __init__(self, served: Served, jobs: Jobs, hub: Hub, metrics: Metrics, say: Say) -> None:
        self._served, self._jobs, self._hub, self._metrics, self._say = served, jobs, hub, metrics, say
        self._created = int(time.time())
        self._key = None if served.api_key is None else _digest(served.api_key)

    def protected(self, endpoint: Endpoint) -> Endpoint:
        """The endpoint for those who have the key, with errors as the API has them."""
        async def answer(request: Request) -> Response:
            try:
                self._check_key(request)
                response = await endpoint(request)
            except ClientDisconnect:
                response = Response(status_code=499)    # nobody reads it
            except ApiError as error:
                response = _error(error)
            except EngineClosed:
                response = _error(stopping())
            except PromptLengthError as error:
                response = _error(ApiError(400, str(error), code="context_length_exceeded"))
            except UserError as error:
                response = _error(ApiError(400, str(error), code="invalid_value"))
            self._metrics.responses.labels(request.scope["route"].path, response.status_code).inc()
            return response
        return answer

    async def health(self, _: Request) -> Response:
        """200 while requests are taken, then 503."""
        closed = self._hub.closed
        return _json({"status": "shutting down" if closed else "ok"}, 503 if closed else 200)

    async def metrics(self, _: Request) -> Response:
        """Numbers for Prometheus."""
        return Response(self._metrics.page(), headers={"Content-Type": CONTENT_TYPE})

    async def models(self, _: Request) -> Response:
        """The one model."""
        return _json({"object": "list", "data": [self._card]})

    async def model(self, request: Request) -> Response:
        """The one model by its name."""
        self._check_model(request.path_params["name"])
        return _json(self._card)

    async def chat(self, request: Request) -> Response:
        """POST /v1/chat/completions."""
        body = await _parsed(request, ChatBody)
        return await self._answer(request, body, self._jobs.chat)

    async def completions(self, request: Request) -> Response:
        """POST /v1/completions."""
        body = await _parsed(request, CompletionBody)
        return await self._answer(request, body, self._jobs.completion)

    async def no_such_path(self, request: Request, error: HTTPException) -> Response:
        """404 and 405."""
        text = (f"{request.method} is not for {request.url.path}" if error.status_code == 405
                else f"there is nothing at {request.url.path}: the API is at /v1/chat/completions, /v1/completions and "
                     "/v1/models")
        return _error(ApiError(error.status_code, text, code="unknown_url"), error.headers)

    async def failure(self, _request: Request, error: Exception) -> Response:
        """A bug of ours: the web server logs it."""
        return _error(ApiError(500, f"the server failed ({type(error).__name__}): see its log", code="internal_error"))

    @property
    def _card(self) -> dict[str, Any]:
        return {"id": self._served.model, "object": "model", "created": self._created, "owned_by": "mindspeed_llm"}

    def _check_key(self, request: Request) -> None:
        if self._key is None:
            return
        scheme, _, given = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not secrets.compare_digest(_digest(given.strip()), self._key):
            raise ApiError(401, "no key or a wrong one: send the header Authorization: Bearer KEY",
                           code="invalid_api_key")

    def _check_model(self, name: str) -> None:
        if name != self._served.model:
            raise ApiError(404, f"there is no model {name}: this server has {self._served.model}", param="model",
                           code="model_not_found")

    async def _answer(self, request: Request, body: ChatBody | CompletionBody, plan: Callable[[Any], Job]) -> Response:
        self._check_model(body.model)
        started = time.monotonic()
        job = await run_in_threadpool(plan, body)   # tokenizing a long prompt takes a while
        stream = self._hub.open(job.requests)
        if body.stream:
            return _EventsResponse(self._events(job, stream, usage=body.wants_usage),
                                   lambda: self._close(job, stream, started))
        try:
            return _json(await _unless_left(request, job.whole(stream, self._hub)))
        finally:
            self._close(job, stream, started)

    async def _events(self, job: Job, stream: EventStream, *, usage: bool) -> AsyncIterator[bytes]:
        """Server-sent events. An error after the first one can only be told as one more."""
        try:
            async for chunk in job.chunks(stream, self._hub, usage=usage):
                yield _event(_encoded(chunk))
        except ApiError as error:
            yield _event(_encoded(error.body))
        yield _event(b"[DONE]")

    def _close(self, job: Job, stream: EventStream, started: float) -> None:
        left = stream.close()
        seconds = time.monotonic() - started
        if job.first_token_at is not None:
            self._metrics.first_token.observe(job.first_token_at - started)
        self._metrics.duration.observe(seconds)
        reasons = job.reasons + ["cancelled"] * left
        for reason in reasons:
            self._metrics.finished.labels(reason).inc()
        usage = job.usage
        self._say(f"{job.name}: {usage.prompt_tokens} prompt tokens ({usage.cached_tokens} known), "
                  f"{job.new_tokens} new, {seconds:.2f} s, "
                  + ", ".join(reason if count == 1 else f"{count} {reason}" for reason, count in Counter(reasons).items()))


class _EventsResponse(StreamingResponse):
    """Server-sent events; `close` is called in the end, also when nobody has begun to read them."""

    def __init__(self, events: AsyncIterator[bytes], close: Callable[[], None]) -> None:
        super().__init__(events, media_type="text/event-stream",
                         headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        self._close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._close()


async def _unless_left(request: Request, work: Awaitable[dict[str, Any]]) -> dict[str, Any]:
    """The result of `work`, which is given up when the client leaves. Raises ClientDisconnect then."""
    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()


async def _parsed(request: Request, model: type[Any]) -> Any:
    if request.headers.get("Content-Type", "").partition(";")[0].strip().lower() != "application/json":
        # keeps other sites' pages, which cannot send this type unasked, from using a server on the reader's machine
        raise ApiError(415, "the body must be JSON: send the header Content-Type: application/json",
                       code="unsupported_media_type")
    body = await _body(request)
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise invalid(error) from None


async def _body(request: Request) -> bytes:
    """The body of a request, unless it is too large or takes too long."""
    pieces, size = [], 0
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            async for piece in request.stream():
                size += len(piece)
                if size <= MAX_BODY:
                    pieces.append(piece)
                elif size > _READ_AWAY:
                    break
    except TimeoutError:
        raise ApiError(408, f"the body did not arrive within {_BODY_SECONDS:.0f} s", code="timeout") from None
    if size > MAX_BODY:
        raise ApiError(413, f"the body has more than {MAX_BODY} bytes", code="body_too_large")
    return b"".join(pieces)


def _digest(key: str) -> bytes:
    """Of equal length whatever the key's, so that comparing two says nothing of it."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()


def _encoded(content: dict[str, Any]) -> bytes:
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def _event(data: bytes) -> bytes:
    return b"data: " + data + b"\n\n"


def _json(content: dict[str, Any], status: int = 200) -> Response:
    return Response(_encoded(content), status, media_type="application/json")


def _error(error: ApiError, headers: dict[str, str] | None = None) -> Response:
    response = _json(error.body, error.status)
    if error.status == 401:
        response.headers["WWW-Authenticate"] = "Bearer"
    response.headers.update(headers or {})
    return response
