"""Numbers for Prometheus (`/metrics`)."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from mindspeed_llm.tasks.inference.serving.hub import Engine

_PREFIX = "mindspeed_llm_"
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
CONTENT_TYPE = CONTENT_TYPE_LATEST


class Metrics:
    """Counts what the server does, and asks the engine for its own numbers when somebody looks."""

    def __init__(self, engine: Engine) -> None:
        self._registry = CollectorRegistry()
        self.responses = Counter(_PREFIX + "responses", "Responses by endpoint and status", ("endpoint", "status"),
                                 registry=self._registry)
        self.finished = Counter(_PREFIX + "answers", "Answers by why they ended", ("reason",), registry=self._registry)
        self.first_token = Histogram(_PREFIX + "time_to_first_token_seconds", "From a request to its first token",
                                     buckets=_SECONDS, registry=self._registry)
        self.duration = Histogram(_PREFIX + "request_seconds", "From a request to the end of its answer",
                                  buckets=_SECONDS, registry=self._registry)
        self._registry.register(_EngineNumbers(engine))

    def page(self) -> bytes:
        """All numbers in Prometheus' text format."""
        return generate_latest(self._registry)


class _EngineNumbers:
    """A collector of prometheus_client over an engine's `stats`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def collect(self) -> Iterator[Metric]:
        stats = self._engine.stats()
        for name, text in (("running", "Requests that are being answered"),
                           ("waiting", "Requests that wait for room"),
                           ("blocks_used", "Blocks of the key/value cache that hold something"),
                           ("blocks_total", "Blocks of the key/value cache")):
            yield GaugeMetricFamily(f"{_PREFIX}{name}", text, getattr(stats, name))
        for name, text in (("prompt_tokens", "Tokens of prompts that were computed"),
                           ("cached_tokens", "Tokens of prompts that were known from earlier requests"),
                           ("new_tokens", "Tokens of answers"),
                           ("reread_tokens", "Tokens of past answers that were put through as a prompt"),
                           ("preempted", "Times that a request lost its memory to others"),
                           ("steps", "Steps of the engine")):
            yield CounterMetricFamily(f"{_PREFIX}{name}", text, getattr(stats, name))
