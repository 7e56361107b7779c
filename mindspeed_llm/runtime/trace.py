"""Where a rank's time goes: spans with a begin and an end, kept in memory while a trace is on.

Off, a span costs a look at one variable. Times are those of the machine's monotonic clock, so the spans of all ranks of
one machine lie on one axis.
"""

import functools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Span:
    """Something that took from `start` to `stop` (ns of the monotonic clock) on a thread. `details` are shown beside it."""

    name: str
    category: str
    start: int
    stop: int
    thread: int
    details: dict[str, Any]


_spans: list[Span] | None = None


def start() -> None:
    """Forget all spans and keep those that begin from now on."""
    global _spans
    _spans = []


def stop() -> list[Span]:
    """Keep no more spans; returns those since `start`, in the order in which they ended."""
    global _spans
    spans, _spans = _spans or [], None
    return spans


@contextmanager
def span(name: str, category: str, **details: Any) -> Iterator[None]:
    """The time inside is a span."""
    kept = _spans
    if kept is None:
        yield
        return
    begun = time.monotonic_ns()
    try:
        yield
    finally:
        kept.append(Span(name, category, begun, time.monotonic_ns(), threading.get_ident(), details))


def traced(category: str, name: str | None = None) -> Callable[[Callable], Callable]:
    """Every call of the decorated function is a span of `name` (default: the function's)."""
    def decorate(function: Callable) -> Callable:
        @functools.wraps(function)
        def call(*args, **kwargs):
            if _spans is None:
                return function(*args, **kwargs)
            with span(name or function.__name__, category):
                return function(*args, **kwargs)
        return call
    return decorate
