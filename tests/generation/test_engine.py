"""Continuous batching on the recorded model: answers do not depend on what else is under way, nor on memory."""

import threading
import time
from dataclasses import replace

import numpy as np
import pytest

from mindspeed_llm.config.errors import UserError
from mindspeed_llm.generation import engine as engines
from mindspeed_llm.generation.config import GenerationConfig
from mindspeed_llm.generation.decoding import generate
from mindspeed_llm.generation.engine import EndEvent, Engine, EngineClosed, EngineLimits, Request, TokenEvent
from mindspeed_llm.generation.generator import PromptLengthError
from tests.generation.golden_model import full_logits, golden_generator

ROOMY = EngineLimits(cache_tokens=1024, block_tokens=16, step_tokens=32)
TIGHT = replace(ROOMY, cache_tokens=80, max_sequences=5)    # 5 blocks; a longest sequence has 4
GREEDY = GenerationConfig(12, log_probs=True, top_log_probs=3)
DRAWN = replace(GREEDY, do_sample=True, temperature=1.3, top_p=0.9, seed=5, repetition_penalty=1.2)


def prompt(length: int, seed: int = 0) -> tuple[int, ...]:
    return tuple(np.random.default_rng(seed).integers(0, 96, length).tolist())


REQUESTS = [Request("long", prompt(50), GREEDY), Request("drawn", prompt(21, 1), DRAWN),
            Request("top_k", prompt(3, 2), replace(DRAWN, top_k=5, top_p=1.0, top_log_probs=0)),
            Request("same beginning", (*prompt(50)[:40], *prompt(9, 3)), replace(GREEDY, max_new_tokens=20)),
            Request("block", prompt(16, 4), replace(GREEDY, log_probs=False)), Request("one", (7,), DRAWN),
            Request("grows", prompt(5, 5), replace(GREEDY, max_new_tokens=50)),
            Request("grows too", prompt(9, 6), replace(DRAWN, max_new_tokens=45))]


class Client:
    """Submits `arrivals`, pairs (step, request or name to cancel), and keeps what it is told, step by step."""

    def __init__(self, limits, arrivals):
        self.engine, self.steps = Engine(golden_generator(), limits), []
        self._arrivals = list(arrivals)
        self._arrive()
        self.engine.run(self._told)
        self.events = [event for step in self.steps for event in step]

    def _told(self, events):
        self.steps.append(events)
        self._arrive()

    def _arrive(self):
        while self._arrivals and self._arrivals[0][0] <= len(self.steps):
            _, what = self._arrivals.pop(0)
            self.engine.submit(what) if isinstance(what, Request) else self.engine.cancel(what)
        if not self._arrivals:
            self.engine.drain()

    def answer(self, name):
        """Everything that was told about a request, but for how much was in memory."""
        return [replace(event, cached_tokens=0) if isinstance(event, EndEvent) else event
                for event in self.events if event.name == name]

    def end(self, name):
        return next(event for event in self.events if event.name == name and isinstance(event, EndEvent))


@pytest.fixture(scope="module")
def alone():
    """Each request's answer on an engine of its own."""
    return {request.name: Client(ROOMY, [(0, request)]).answer(request.name) for request in REQUESTS}


@pytest.mark.parametrize("limits", [ROOMY, TIGHT], ids=["roomy", "tight"])
@pytest.mark.parametrize("arrivals", [(0,) * 8, (0, 1, 1, 5, 9, 11, 12, 12)], ids=["together", "in turn"])
def test_an_answer_has_the_same_bits_whatever_is_beside_it(alone, limits, arrivals):
    client = Client(limits, list(zip(arrivals, REQUESTS, strict=True)))
    for request in REQUESTS:
        assert client.answer(request.name) == alone[request.name]
    stats = client.engine.stats()
    assert (stats.running, stats.waiting, stats.blocks_used) == (0, 0, 0)
    assert stats.blocks_total == limits.cache_tokens // 16
    assert stats.new_tokens == sum(isinstance(event, TokenEvent) for event in client.events)
    if limits is TIGHT:
        assert stats.preempted > 0
    else:
        assert stats.preempted == 0
        assert client.end("same beginning").cached_tokens == stats.cached_tokens == 32
        assert stats.prompt_tokens + stats.cached_tokens == sum(len(request.prompt) for request in REQUESTS)


def test_answers_are_those_of_the_generator():
    greedy = [Request(str(number), prompt(length, number), GREEDY) for number, length in enumerate((50, 20, 4, 52))]
    client = Client(ROOMY, [(0, request) for request in greedy])
    answers = generate(golden_generator(), [request.prompt for request in greedy], GREEDY)
    for request, answer in zip(greedy, answers, strict=True):
        *tokens, end = client.answer(request.name)
        assert [event.token for event in tokens] == answer.ids
        assert end == EndEvent(request.name, answer.reason, len(request.prompt), len(answer.ids), 0)
        np.testing.assert_allclose([event.log_prob for event in tokens], answer.log_probs, rtol=0, atol=1e-5)
        row = full_logits([*request.prompt, *answer.ids])[len(request.prompt) + 4].astype(np.float64)
        row -= np.log(np.exp(row).sum())
        assert [token for token, _ in tokens[5].top] == np.argsort(-row)[:3].tolist()
        np.testing.assert_allclose([value for _, value in tokens[5].top], np.sort(row)[:-4:-1], rtol=0, atol=1e-5)
    assert {end.reason for end in client.events if isinstance(end, EndEvent)} == {"length"}


def test_seeds_are_those_of_the_first_prompt():
    (answer,) = generate(golden_generator(), [REQUESTS[1].prompt], DRAWN)
    *tokens, _ = Client(ROOMY, [(0, REQUESTS[1])]).answer("drawn")
    assert [event.token for event in tokens] == answer.ids
    *others, _ = Client(ROOMY, [(0, replace(REQUESTS[1], config=replace(DRAWN, seed=6)))]).answer("drawn")
    assert [event.token for event in others] != answer.ids


def test_why_an_answer_ends(alone):
    stop = alone["long"][4].token
    before = [event.token for event in alone["long"][:-1]].index(stop)
    stopped = Request("stopped", prompt(50), replace(GREEDY, stop_ids=frozenset([stop])))
    full = Request("full", prompt(60, 8), GREEDY)
    client = Client(ROOMY, [(0, stopped), (0, full)])
    assert client.end("stopped") == EndEvent("stopped", "stop", 50, before, 0)
    assert client.end("full") == EndEvent("full", "positions", 60, 4, 0)


def test_answers_go_on_while_a_long_prompt_is_processed():
    """Sixty tokens at 16 a step: four steps, in each of which the first request gets a token."""
    first = Request("first", prompt(3), replace(GREEDY, max_new_tokens=20))
    limits = replace(ROOMY, step_tokens=16)
    client = Client(limits, [(0, first), (2, Request("second", prompt(60, 1), GREEDY))])
    names = [[event.name for event in step if isinstance(event, TokenEvent)] for step in client.steps]
    start = next(number for number, step in enumerate(names) if "second" in step)
    assert names[2:start] == [["first"]] * 3
    assert set(names[start]) == {"first", "second"}


def test_requests_that_arrive_together_share_their_beginning():
    requests = [Request(str(number), (*prompt(48), number), GREEDY) for number in range(3)]
    client = Client(ROOMY, [(0, request) for request in requests])
    assert [client.end(request.name).cached_tokens for request in requests] == [0, 48, 48]
    assert client.engine.stats().prompt_tokens == 48 + 3
    for request in requests:
        assert client.answer(request.name) == Client(ROOMY, [(0, request)]).answer(request.name)


def test_blocks_that_are_not_used_are_forgotten_the_oldest_first():
    """Five blocks. After `b` the blocks of `a` are still known; `c` takes their memory."""
    a, b, c = (Request(name, prompt(33, seed), replace(GREEDY, max_new_tokens=2)) for seed, name in enumerate("abc"))
    again = replace(a, name="again")
    client = Client(TIGHT, [(0, a), (2, b), (4, again)])
    assert client.end("again").cached_tokens == 32
    client = Client(TIGHT, [(0, a), (2, b), (4, c), (6, again)])
    assert client.end("again").cached_tokens == 0
    assert client.answer("again")[0].log_prob == client.answer("a")[0].log_prob


def test_first_come_first_served():
    """The long prompt at the head of the queue is not overtaken by short ones that would fit."""
    requests = [Request("running", prompt(30), replace(GREEDY, max_new_tokens=30)),
                Request("long", prompt(60, 1), GREEDY),
                *(Request(f"short {number}", prompt(4, number), GREEDY) for number in range(5))]
    client = Client(TIGHT, [(0, request) for request in requests])
    first = {}
    for event in client.events:
        first.setdefault(event.name, len(first))
    assert list(first)[:2] == ["running", "long"]


def test_cancelled_requests_leave():
    requests = [Request("running", prompt(30), replace(GREEDY, max_new_tokens=30)),
                Request("waiting", prompt(60, 1), GREEDY), Request("last", prompt(5), GREEDY)]
    client = Client(TIGHT, [*((0, request) for request in requests), (3, "running"), (3, "waiting"), (3, "nobody")])
    assert client.end("running") == EndEvent("running", "cancelled", 30, 3, 0)
    assert client.end("waiting") == EndEvent("waiting", "cancelled", 60, 0, 0)
    assert client.end("last").reason == "length"
    assert client.engine.stats().blocks_used == 0


def test_an_idle_engine_waits_for_requests_and_for_its_end(monkeypatch, alone):
    """Requests come from other threads; between them the engine waits longer than a heartbeat."""
    monkeypatch.setattr(engines, "HEARTBEAT", 0.01)
    engine, events, ended = Engine(golden_generator(), ROOMY), [], threading.Event()

    def told(these):
        events.extend(these)
        if isinstance(these[-1], EndEvent):
            ended.set()

    def user():
        for number in range(2):
            ended.clear()
            ended.wait(0.1)
            engine.submit(replace(REQUESTS[0], name=f"long {number}"))
            ended.wait(30)
        engine.submit(replace(REQUESTS[3], name="never answered", config=replace(GREEDY, max_new_tokens=24)))
        engine.stop()

    thread = threading.Thread(target=user)
    thread.start()
    engine.run(told)
    thread.join()
    tokens = [event.token for event in alone["long"][:-1]]
    for number in range(2):
        assert [event.token for event in events
                if isinstance(event, TokenEvent) and event.name == f"long {number}"] == tokens
    assert events[-1].reason == "cancelled" and events[-1].name == "never answered"
    with pytest.raises(EngineClosed):
        engine.submit(REQUESTS[0])


class Chat:
    """Asks for each turn when the engine has been idle for so long that it has read all past answers again."""

    def __init__(self, monkeypatch, limits=ROOMY):
        monkeypatch.setattr(engines, "IDLE", 0.001)
        self.engine, self.events, self._ended = Engine(golden_generator(), limits), [], threading.Event()
        self._thread = threading.Thread(target=self.engine.run, args=(self._told,), daemon=True)
        self._thread.start()

    def _told(self, events):
        self.events.extend(events)
        if isinstance(events[-1], EndEvent):
            self._ended.set()

    def ask(self, request, reread):
        """(tokens, end); `reread`: tokens that the engine will have read again afterwards."""
        self._ended.clear()
        begin = len(self.events)
        self.engine.submit(request)
        assert self._ended.wait(30)
        until = time.monotonic() + 30
        while self.engine.stats().reread_tokens < reread or self.engine._scheduler.has_past:
            assert time.monotonic() < until
            time.sleep(0.001)
        assert self.engine.stats().reread_tokens == reread and self.engine.stats().blocks_used == 0
        *tokens, end = self.events[begin:]
        return tokens, end

    def close(self):
        self.engine.drain()
        self._thread.join()


def test_the_next_turn_of_a_chat_finds_the_answer_in_memory(monkeypatch):
    """And says the same bits as on an engine that has never seen the first turn."""
    chat = Chat(monkeypatch)
    first = Request("first", prompt(21), replace(GREEDY, max_new_tokens=28))    # block 1 is of both, 2 of the answer
    tokens, _ = chat.ask(first, reread=32)
    second = Request("second", (*first.prompt, *(event.token for event in tokens), 5, 6), GREEDY)
    found, end = chat.ask(second, reread=32)    # 51 tokens and 12 more do not fill a block
    assert end == EndEvent("second", "length", 51, 12, 48)
    assert [*found, replace(end, cached_tokens=0)] == Client(ROOMY, [(0, second)]).answer("second")
    chat.close()


def test_who_asks_anew_at_once_does_not_wait_for_past_answers(monkeypatch):
    chat = Chat(monkeypatch)
    request = Request("first", prompt(21), replace(GREEDY, max_new_tokens=28))
    chat.ask(request, reread=32)
    monkeypatch.setattr(engines, "IDLE", 60)    # so long nothing happens, however much was put through before
    chat._ended.clear()
    chat.engine.submit(replace(request, name="second", prompt=prompt(21, 1)))
    assert chat._ended.wait(30)
    time.sleep(0.1)
    assert chat.engine._scheduler.has_past and chat.engine.stats().reread_tokens == 32
    chat.close()


def test_a_conversation_that_was_forgotten_is_not_read_again(monkeypatch):
    """Four blocks. When there is time, the later request has taken the memory of the earlier one's prompt."""
    client = Client(replace(ROOMY, cache_tokens=64), [
        (0, Request("first", prompt(33), replace(GREEDY, max_new_tokens=20))),
        (20, Request("second", prompt(50, 1), replace(GREEDY, max_new_tokens=2)))])
    scheduler = client.engine._scheduler
    assert scheduler.has_past
    assert scheduler.plan_past().passes == [] and not scheduler.has_past and scheduler.pool.used == 0


def test_answers_are_not_read_again_at_the_cost_of_what_is_known():
    scheduler = Client(ROOMY, [(0, Request("first", prompt(33), replace(GREEDY, max_new_tokens=20)))]).engine._scheduler
    pool = scheduler.pool
    held, known = pool.take(pool.spare), dict(pool._found)
    assert scheduler.has_past and len(known) == 2
    assert scheduler.plan_past().passes == [] and not scheduler.has_past and pool._found == known
    pool.release(held)


@pytest.mark.parametrize(("change", "error", "words"), [
    ({"prompt": ()}, PromptLengthError, "empty"), ({"prompt": prompt(64)}, PromptLengthError, "64 tokens"),
    ({"prompt": (96,)}, UserError, "not among"), ({"config": GenerationConfig(0)}, UserError, r"max_new_tokens \(0\)"),
    ({"config": GenerationConfig(top_p=0.0)}, UserError, "top_p"),
    ({"config": GenerationConfig(temperature=float("nan"))}, UserError, "temperature"),
    ({"config": GenerationConfig(num_beams=2)}, UserError, "num_beams"), ({}, UserError, "under way")])
def test_requests_that_are_refused(change, error, words):
    engine = Engine(golden_generator(), ROOMY)
    request = Request("a", prompt(3), GREEDY)
    engine.submit(request)
    with pytest.raises(error, match=words):
        engine.submit(replace(request, **change))


def test_memory_for_less_than_one_sequence():
    with pytest.raises(UserError, match="too small for a sequence of 64 tokens"):
        Engine(golden_generator(), replace(ROOMY, cache_tokens=63))
