"""A server over an engine that says what a test wants, in this process and without a model."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import uvicorn

from mindspeed_llm.data.templates import get_template
from mindspeed_llm.data.tokenizer import Tokenizer
from mindspeed_llm.generation.engine import EndEvent, EngineStats, Request, TokenEvent
from mindspeed_llm.generation.generator import PromptLengthError
from mindspeed_llm.tasks.inference.serving.app import Served, application
from mindspeed_llm.tasks.inference.serving.hub import Hub
from mindspeed_llm.tasks.inference.serving.jobs import Jobs
from mindspeed_llm.tasks.inference.serving.server import bind

MODEL = "stand-in"
LONGEST = 2000  # tokens


class StandIn:
    """An engine with the interface of generation.engine.Engine. `says(request)` gives the ids of an answer, which come
    one by one, `pace` seconds apart; the answer ends with `stop` after them.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer, self.pace = tokenizer, 0.0
        self.says: Callable[[Request], list[int]] = lambda request: tokenizer.encode("\nhello")
        self.requests: list[Request] = []
        self.ended: list[EndEvent] = []
        self.deliver: Callable[[list], None] | None = None
        self._cancelled: set[str] = set()
        self._running = 0

    def say(self, text: str) -> None:
        """Answer everything with a text, `<|assistant|>` in it being the token."""
        mark = self.tokenizer.special("<|assistant|>")
        ids: list[int] = []
        for number, part in enumerate(text.split("<|assistant|>")):
            ids += ([mark] if number else []) + self.tokenizer.encode(part)
        self.says = lambda request: ids

    def check(self, request: Request) -> None:
        if len(request.prompt) >= LONGEST:
            raise PromptLengthError(f"the prompt has {len(request.prompt)} tokens, but a sequence may have {LONGEST}")

    def submit(self, request: Request) -> None:
        self.requests.append(request)
        threading.Thread(target=self._answer, args=(request,), daemon=True).start()

    def cancel(self, name: str) -> None:
        self._cancelled.add(name)

    def stats(self) -> EngineStats:
        return EngineStats(running=self._running, blocks_total=7)

    def _answer(self, request: Request) -> None:
        self._running += 1
        reason, ids = "stop", self.says(request)
        if len(ids) > request.config.max_new_tokens:
            reason, ids = "length", ids[:request.config.max_new_tokens]
        told = 0
        for number, token in enumerate(ids):
            time.sleep(self.pace)
            if request.name in self._cancelled:
                reason = "cancelled"
                break
            log_prob = -0.5 - number if request.config.log_probs else None
            top = tuple((place, -1.0 - place) for place in range(request.config.top_log_probs))
            self.deliver([TokenEvent(request.name, token, log_prob, top)])
            told += 1
        end = EndEvent(request.name, reason, len(request.prompt), told, 0)
        self.ended.append(end)
        self._running -= 1
        self.deliver([end])


@dataclass
class Running:
    """A server that listens at `url`."""

    url: str
    engine: StandIn
    hub: Hub
    lines: list[str] = field(default_factory=list)


@contextmanager
def running(tokenizer: Tokenizer, *, api_key: str | None = None, limit: int = 64, template: str | None = "glm4",
            system_prompt: str = "") -> Iterator[Running]:
    """A server on a port of its own, for as long as the context lasts."""
    engine = StandIn(tokenizer)
    hub, lines = Hub(engine, limit), []
    engine.deliver = hub.on_events
    jobs = Jobs(tokenizer, None if template is None else get_template(template), MODEL, LONGEST, system_prompt)
    listener = bind("127.0.0.1", 0)
    web = uvicorn.Server(uvicorn.Config(application(Served(MODEL, api_key), jobs, hub, lines.append), http="h11",
                                        loop="asyncio", lifespan="on", log_level="warning", access_log=False))
    thread = threading.Thread(target=web.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not web.started:
        time.sleep(0.01)
    yield Running(f"http://127.0.0.1:{listener.getsockname()[1]}", engine, hub, lines)
    web.should_exit = True
    thread.join(10)
    assert not thread.is_alive()
