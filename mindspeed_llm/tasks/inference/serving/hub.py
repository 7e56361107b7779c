"""Between the event loop of the web server and the thread in which the engine runs."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Protocol

from mindspeed_llm.generation.engine import EndEvent, EngineStats, Request, TokenEvent
from mindspeed_llm.tasks.inference.serving.errors import ApiError, stopping

Event = TokenEvent | EndEvent


class Engine(Protocol):
    """What the server asks of a `generation.engine.Engine`; any thread may call it."""

    def check(self, request: Request) -> None:
        """Raise UserError for a request that can never be answered."""

    def submit(self, request: Request) -> None:
        """Answer a request when there is room."""

    def cancel(self, name: str) -> None:
        """End a request, if it is under way."""

    def stats(self) -> EngineStats:
        """What it is doing."""


class Hub:
    """Takes requests to the engine and brings its events back to those who wait for them.

    All but `on_events` is for the event loop's thread. `limit`: requests that may be under way, those that wait for
    room in the engine included.
    """

    def __init__(self, engine: Engine, limit: int) -> None:
        self.engine, self._limit = engine, limit
        self._loop: asyncio.AbstractEventLoop | None = None
        self._queues: dict[str, asyncio.Queue[Event]] = {}
        self.closed = False
        """Whether requests are refused because the server ends."""

    def attach(self) -> None:
        """Deliver events to the running event loop."""
        self._loop = asyncio.get_running_loop()

    def on_events(self, events: list[Event]) -> None:
        """The engine's callback; called in its thread."""
        self._loop.call_soon_threadsafe(self._deliver, events)

    def open(self, requests: Sequence[Request]) -> "EventStream":
        """Send requests to the engine; their events come out of the stream, which must be closed.

        Raises ApiError when the server ends or has too much to do, and what the engine raises for a request that it
        cannot answer; then none is sent.
        """
        if self.closed:
            raise stopping()
        if len(self._queues) + len(requests) > self._limit:
            raise ApiError(503, f"{len(self._queues)} requests are under way already: ask again later",
                           code="overloaded")
        for request in requests:
            self.engine.check(request)
        stream = EventStream(self)
        try:
            for request in requests:
                self.engine.submit(request)     # no event can be delivered before this returns to the event loop
                stream.names.add(request.name)
                self._queues[request.name] = stream.queue
        except BaseException:   # the engine has been closed since it was asked
            stream.close()
            raise
        return stream

    def forget(self, name: str) -> None:
        """Take no more events of a request."""
        del self._queues[name]

    def _deliver(self, events: list[Event]) -> None:
        for event in events:
            queue = self._queues.get(event.name)
            if queue is not None:   # else nobody listens any more
                queue.put_nowait(event)


class EventStream:
    """Events of some requests, until each has ended. Closed earlier, it cancels those that have not."""

    def __init__(self, hub: Hub) -> None:
        self._hub, self.names, self.queue = hub, set(), asyncio.Queue()

    def __aiter__(self) -> AsyncIterator[Event]:
        return self

    async def __anext__(self) -> Event:
        if not self.names:
            raise StopAsyncIteration
        event = await self.queue.get()
        if isinstance(event, EndEvent):
            self.names.discard(event.name)
            self._hub.forget(event.name)
        return event

    def close(self) -> int:
        """Want no more; returns how many requests that ends."""
        left, self.names = self.names, set()
        for name in left:
            self._hub.forget(name)
            self._hub.engine.cancel(name)
        return len(left)
