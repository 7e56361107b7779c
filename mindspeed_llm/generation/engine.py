"""Continuous batching: requests arrive and leave at any time, and share each forward pass with what else is under way.

    engine = Engine(generator, EngineLimits(cache_tokens=65536))     # every rank
    threading.Thread(target=serve, args=(engine,)).start()           # rank 0: engine.submit(Request(...)), ...
    engine.run(show)                                                 # every rank; show(events) is called on rank 0

Rank 0 tells the others at each step what arrived (one small broadcast); from the same requests every rank comes to the
same decisions. While there is nothing to do rank 0 gives a sign of life every HEARTBEAT seconds, for which the others
wait; after IDLE seconds it has them prepare for what may follow on past answers. An answer is the same bits, with the
CPU kernels, whatever else is under way, wherever its prompt's beginning comes from and however often it lost its
memory: see `scheduler`.
"""

import json
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np

from mindspeed_llm.config.errors import UserError
from mindspeed_llm.generation import sampling
from mindspeed_llm.generation.config import GenerationConfig
from mindspeed_llm.generation.generator import Generator
from mindspeed_llm.generation.scheduler import EngineLimits, Scheduler, Sequence
from mindspeed_llm.generation.vocab_shard import VocabShard
from mindspeed_llm.runtime.messages import HEARTBEAT, broadcast_text

__all__ = ["EndEvent", "Engine", "EngineClosed", "EngineLimits", "EngineStats", "Request", "TokenEvent"]


IDLE = 0.2
"""Seconds without requests after which past answers are put through as prompts: a client that asks anew as soon as it
is answered should not wait for that.
"""


class EngineClosed(UserError):
    """The engine takes no more requests."""


@dataclass(frozen=True)
class Request:
    """A prompt to be answered. `name` is unique among the requests under way. Of `config` everything but `num_beams` is
    respected; the random stream is that of the seed's first prompt.
    """

    name: str
    prompt: tuple[int, ...]
    config: GenerationConfig


@dataclass(frozen=True)
class TokenEvent:
    """A token of an answer. log_prob, of the model before temperature and penalty: None unless asked for. top: ids and
    log-probabilities of the `top_log_probs` likeliest tokens at its place, descending.
    """

    name: str
    token: int
    log_prob: float | None
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class EndEvent:
    """An answer's end: `stop` (a stop token, which is not told), `length` (max_new_tokens), `positions` (the longest
    sequence) or `cancelled`. Numbers of tokens of the prompt, of the answer, and of the prompt's beginning that was in
    memory already.
    """

    name: str
    reason: str
    prompt_tokens: int
    new_tokens: int
    cached_tokens: int


@dataclass(frozen=True)
class EngineStats:
    """Sequences and blocks as they are, and totals since the start: prompt tokens computed, prompt tokens found in
    memory, tokens of answers, tokens of past answers that were put through as prompts, sequences that lost their
    memory, steps.
    """

    running: int = 0
    waiting: int = 0
    blocks_used: int = 0
    blocks_total: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    new_tokens: int = 0
    reread_tokens: int = 0
    preempted: int = 0
    steps: int = 0


class Engine:
    """Answers requests over a generator, whose ranks all make one and `run` it. Methods that take requests are rank
    0's, for any thread.

    Raises UserError when the limits leave no room for one longest sequence.
    """

    def __init__(self, generator: Generator, limits: EngineLimits) -> None:
        self._generator, self._world = generator, generator.state.world
        self._scheduler = Scheduler(limits, generator.max_length)
        self._stats = EngineStats(blocks_total=self._scheduler.pool.bound)
        self._closing = False           # all ranks: no more requests will come
        self._changed = threading.Condition()
        self._orders: list[str] = []    # rank 0: what the ranks have not been told yet, each as JSON
        self._names: set[str] = set()   # of the requests under way
        self._closed = False            # rank 0: takes no more requests
        self._resting = False           # rank 0: past answers are being put through, as no requests came for IDLE s

    def check(self, request: Request) -> None:
        """Raise PromptLengthError, EngineClosed or another UserError if `submit` would."""
        if self._closed:
            raise EngineClosed("the engine takes no more requests: it is being stopped")
        self._generator.check_length(request.prompt)
        if not all(0 <= token < self._generator.vocab_size for token in request.prompt):
            raise UserError(f"the prompt has ids that are not among the tokenizer's {self._generator.vocab_size}")
        config = request.config
        for name, value, fits, allowed in (
                ("max_new_tokens", config.max_new_tokens, config.max_new_tokens >= 1, "at least 1"),
                ("temperature", config.temperature, 0 < config.temperature < np.inf, "above 0"),
                ("top_k", config.top_k, config.top_k >= 0, "at least 0"),
                ("top_p", config.top_p, 0 < config.top_p <= 1, "above 0 and at most 1"),
                ("repetition_penalty", config.repetition_penalty, 0 < config.repetition_penalty < np.inf, "above 0"),
                ("num_beams", config.num_beams, config.num_beams == 1, "1"),
                ("top_log_probs", config.top_log_probs, 0 <= config.top_log_probs <= self._generator.vocab_size,
                 f"0 to {self._generator.vocab_size}")):
            if not fits:
                raise UserError(f"{name} ({value}) must be {allowed}")

    def submit(self, request: Request) -> None:
        """Queue a request. Raises as `check`, and UserError for a name that is under way."""
        self.check(request)
        with self._changed:
            if self._closed:
                raise EngineClosed("the engine takes no more requests: it is being stopped")
            if request.name in self._names:
                raise UserError(f"a request of the name {request.name} is under way")
            config = asdict(request.config) | {"stop_ids": sorted(request.config.stop_ids)}
            self._order("add", request.name, list(request.prompt), config)
            self._names.add(request.name)

    def cancel(self, name: str) -> None:
        """End a request with `cancelled`. An unknown name, or one whose answer has ended, is ignored."""
        with self._changed:
            if name in self._names:
                self._order("cancel", name)

    def drain(self) -> None:
        """Take no more requests; `run` returns when those under way are answered."""
        self._close("drain")

    def stop(self) -> None:
        """Take no more requests and cancel those under way; `run` returns."""
        self._close("stop")

    def stats(self) -> EngineStats:
        """As of the last step."""
        return self._stats

    def run(self, on_events: Callable[[list[TokenEvent | EndEvent]], None]) -> None:
        """Answer requests until `drain` or `stop`. Rank 0 gives `on_events` what happened in each step, in order."""
        try:
            while not self._closing or self._scheduler.busy:
                events = self._follow(self._receive())
                if self._scheduler.busy:
                    events += self._step()
                if events and self._world.rank == 0:
                    with self._changed:
                        self._names -= {event.name for event in events if isinstance(event, EndEvent)}
                    on_events(events)
        finally:
            self._closed = True

    def _close(self, how: str) -> None:
        with self._changed:
            self._closed = True
            self._order(how)

    def _order(self, *order: object) -> None:
        if self._world.rank:
            raise RuntimeError(f"rank {self._world.rank} was given an order ({order[0]}), which is rank 0's to take")
        self._orders.append(json.dumps(order))
        self._changed.notify_all()

    def _receive(self) -> list[list]:
        """What rank 0 was told since the last step, on every rank."""
        text = None
        if self._world.rank == 0:
            with self._changed:
                if not self._scheduler.busy:
                    self._wait()
                text = f"[{','.join(self._orders)}]" if self._orders else ""
                self._orders = []
        text = broadcast_text(text, self._world)
        return json.loads(text) if text else []

    def _wait(self) -> None:
        """Until there are orders, for HEARTBEAT seconds at most; give one when there is time for past answers."""
        past = self._scheduler.has_past and not self._closed
        came = self._changed.wait_for(lambda: self._orders, HEARTBEAT if not past else 0 if self._resting else IDLE)
        self._resting = past and not came
        if self._resting:
            self._order("reread")

    def _follow(self, orders: list[list]) -> list[EndEvent]:
        """Carry orders out; what has ended by them."""
        events = []
        for kind, *rest in orders:
            if kind == "add":
                name, prompt, config = rest
                config["stop_ids"] = frozenset(config["stop_ids"])
                self._scheduler.add(name, tuple(prompt), GenerationConfig(**config))
                continue
            if kind == "reread":
                self._generator.logits(self._scheduler.plan_past().passes)
                self._count()
                continue
            if kind == "cancel":
                ended = [one for one in (self._scheduler.named(rest[0]),) if one is not None]
            else:
                self._closing = True
                ended = [*self._scheduler.running, *self._scheduler.waiting] if kind == "stop" else []
            events += [self._end(one, "cancelled") for one in ended]
        return events

    def _step(self) -> list[TokenEvent | EndEvent]:
        """One forward pass of what the scheduler chose, and what came of it."""
        step = self._scheduler.plan()
        logits = self._generator.logits(step.passes)
        events: list[TokenEvent | EndEvent] = []
        for sequence, (token, log_prob, top) in zip(step.asked, self._choose(logits, step.asked), strict=True):
            sequence.answer.take(token, sequence.config, full=sequence.cache.length + 1 >= self._generator.max_length)
            if sequence.answer.reason != "stop":
                events.append(TokenEvent(sequence.name, token, log_prob, top))
            if sequence.answer.reason:
                events.append(self._end(sequence, sequence.answer.reason))
        self._count(new_tokens=sum(isinstance(event, TokenEvent) for event in events), steps=1)
        return events

    def _choose(self, logits: VocabShard | None,
                asked: list[Sequence]) -> list[tuple[int, float | None, tuple[tuple[int, float], ...]]]:
        """Each sequence's next token, its log-probability and the likeliest ones, as its config asks; on every rank."""
        if not asked:
            return []
        configs = [sequence.config for sequence in asked]
        most = max(config.top_log_probs for config in configs)
        told = [row for row, config in enumerate(configs) if config.log_probs or config.top_log_probs]
        packed = None
        if logits is not None:
            packed = np.zeros((len(asked), 2 + 2 * most), np.int32)
            penalized = logits.penalized([(*sequence.prompt, *sequence.answer.ids) for sequence in asked],
                                         [config.repetition_penalty for config in configs])
            packed[:, 0] = sampling.choose(penalized, configs, [sequence.stream for sequence in asked])
            if told:
                rows = logits.rows(told)
                packed[told, 1] = rows.log_probs_of(packed[told, 0]).view(np.int32)
                if most:
                    values, ids = rows.log_probs().top(most)
                    packed[told, 2:2 + most], packed[told, 2 + most:] = ids, values.view(np.int32)
        packed = self._generator.from_last_stage(packed, (len(asked), 2 + 2 * most))
        floats = packed.copy().view(np.float32)
        return [(int(row[0]), float(numbers[1]) if config.log_probs else None,
                 tuple(zip(row[2:2 + config.top_log_probs].tolist(),
                           numbers[2 + most:2 + most + config.top_log_probs].tolist(), strict=True)))
                for row, numbers, config in zip(packed, floats, configs, strict=True)]

    def _end(self, sequence: Sequence, reason: str) -> EndEvent:
        event = EndEvent(sequence.name, reason, len(sequence.prompt), len(sequence.answer.ids), sequence.cached)
        self._scheduler.remove(sequence)
        self._count()
        return event

    def _count(self, *, new_tokens: int = 0, steps: int = 0) -> None:
        scheduler, before = self._scheduler, self._stats
        self._stats = EngineStats(len(scheduler.running), len(scheduler.waiting), scheduler.pool.used,
                                  scheduler.pool.bound, scheduler.computed, scheduler.found,
                                  before.new_tokens + new_tokens, scheduler.reread, scheduler.preempted,
                                  before.steps + steps)
