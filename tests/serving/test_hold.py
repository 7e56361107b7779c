"""Many clients at a time, some of which leave, send nonsense, ask for too much: every answer is right, or an error.

A few dozen requests over the scripted engine; under --full 1,000 from 16 clients over a model on two ranks and on
four, whose memory must not grow.
"""

import gc
import http.client
import json
import random
import signal
import socket
import threading
import time
from collections import Counter
from urllib.parse import urlparse

import pytest

from mindspeed_llm.tasks.inference.serving.hub import EventStream
from mindspeed_llm.tasks.inference.serving.jobs import Job
from mindspeed_llm.tasks.inference.serving.texts import AnswerReader
from tests.inference.tiny_job import write_job
from tests.serving.launched import KEY, Launched
from tests.serving.standin import LONGEST, MODEL, Running, running

QUESTIONS = [f"{letter}. {word}" for letter in "ABCD" for word in ("one", "two", "三")]
# of a rank's memory over 640 requests: measured 0.1 to 2.2% on rank 0, whose allocator levels off after some thousand
# requests (5,120 of them: 195, 195, 196, 197, 198, 200, 200, 200 MB), and 0.1% on rank 1
GROWTH = 0.05


class Crowd:
    """Clients of the server at `url`. `longest`: tokens that no prompt may have."""

    def __init__(self, url: str, model: str, longest: int) -> None:
        self._place, self._model, self._longest = urlparse(url).netloc, model, longest
        self.seen: Counter = Counter()
        self._expected = {question: self._content(self._body(question)) for question in QUESTIONS}
        assert len(set(self._expected.values())) > 1 and all(self._expected.values())

    def send(self, clients: int, requests: int) -> None:
        """Raises the first thing that is not as it should be."""
        failures: list[BaseException] = []

        def client(number: int) -> None:
            draw = random.Random(number)
            try:
                for _ in range(requests // clients):
                    kind = draw.choice(KINDS)
                    kind(self, draw)
                    self.seen[kind.__name__] += 1
            except BaseException as error:
                failures.append(error)
        threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failures:
            raise failures[0]

    def _body(self, question: str, **more) -> dict:
        return {"model": self._model, "messages": [{"role": "user", "content": question}], "temperature": 0,
                "max_tokens": 8, **more}

    def _connect(self, body: dict | bytes, key: str = KEY) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection(self._place, timeout=120)
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        connection.request("POST", "/v1/chat/completions", data, {"Content-Type": "application/json",
                                                                  "Authorization": "Bearer " + key})
        return connection

    def _ask(self, body: dict | bytes, key: str = KEY) -> tuple[int, str]:
        connection = self._connect(body, key)
        response = connection.getresponse()
        text = response.read().decode()
        connection.close()
        return response.status, text

    def _content(self, body: dict) -> str:
        status, text = self._ask(body)
        assert status == 200, text
        return json.loads(text)["choices"][0]["message"]["content"]

    def _refused(self, body: dict | bytes, status: int, code: str, key: str = KEY) -> None:
        found, text = self._ask(body, key)
        assert (found, json.loads(text)["error"]["code"]) == (status, code), text

    # What a client does.

    def asks(self, draw: random.Random) -> None:
        question = draw.choice(QUESTIONS)
        assert self._content(self._body(question)) == self._expected[question]

    def asks_for_a_stream(self, draw: random.Random) -> None:
        question = draw.choice(QUESTIONS)
        status, text = self._ask(self._body(question, stream=True))
        events = [json.loads(line[6:]) for line in text.split("\n\n") if line.startswith("data: {")]
        content = "".join(event["choices"][0]["delta"].get("content", "") for event in events)
        assert status == 200 and content == self._expected[question] and text.endswith("data: [DONE]\n\n")

    def asks_for_several(self, draw: random.Random) -> None:
        status, text = self._ask(self._body(draw.choice(QUESTIONS), temperature=1.0, n=3, logprobs=True, top_logprobs=2,
                                            seed=draw.randrange(5)))
        assert status == 200 and len(json.loads(text)["choices"]) == 3

    def leaves(self, draw: random.Random) -> None:
        connection = self._connect(self._body(draw.choice(QUESTIONS), stream=draw.random() < 0.5, max_tokens=200, n=2))
        time.sleep(draw.random() * 0.1)
        connection.close()

    def leaves_before_it_has_asked(self, draw: random.Random) -> None:
        with socket.create_connection(self._place.split(":")) as connection:
            connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                               b"Content-Length: 1000\r\n\r\n{"[:draw.randrange(100)])

    def speaks_no_http(self, draw: random.Random) -> None:
        with socket.create_connection(self._place.split(":")) as connection:
            connection.sendall(draw.randbytes(300) + b"\r\n\r\n")
            connection.settimeout(60)
            assert connection.recv(100)[:12] in (b"HTTP/1.1 400", b"")

    def sends_bad_json(self, draw: random.Random) -> None:
        whole = json.dumps(self._body(draw.choice(QUESTIONS))).encode()
        self._refused(whole[:draw.randrange(len(whole))], 400, "invalid_json")

    def sends_wrong_types(self, draw: random.Random) -> None:
        name = draw.choice(("messages", "temperature", "max_tokens", "n", "stop", "stream", "seed", "tools"))
        value = draw.choice(({"a": 1}, [[1]], "much" if name != "stop" else 5.5, -1e300))
        self._refused(self._body("A. one", **{name: value}), 400, "invalid_value")

    def sends_a_huge_body(self, _: random.Random) -> None:
        self._refused(b'{"model": "' + b"x" * (9 * 2**20), 413, "body_too_large")

    def sends_a_long_prompt(self, _: random.Random) -> None:
        self._refused(self._body("word " * self._longest), 400, "context_length_exceeded")

    def wants_another_model(self, _: random.Random) -> None:
        self._refused(self._body("A. one", model="another"), 404, "model_not_found")

    def has_no_key(self, draw: random.Random) -> None:
        self._refused(self._body("A. one"), 401, "invalid_api_key", draw.choice(("", "K", "kk")))


KINDS = [Crowd.asks, Crowd.asks, Crowd.asks, Crowd.asks_for_a_stream, Crowd.asks_for_a_stream, Crowd.asks_for_several,
         Crowd.leaves, Crowd.leaves, Crowd.leaves_before_it_has_asked, Crowd.speaks_no_http, Crowd.sends_bad_json,
         Crowd.sends_wrong_types, Crowd.sends_a_huge_body, Crowd.sends_a_long_prompt, Crowd.wants_another_model,
         Crowd.has_no_key]


def test_a_few_clients(glm_tokenizer):
    with running(glm_tokenizer, api_key=KEY, limit=1000) as server:
        server.engine.says = lambda request: glm_tokenizer.encode(f"\n{sum(request.prompt)} and so on")
        server.engine.pace = 0.001
        crowd = Crowd(server.url, MODEL, LONGEST)
        crowd.send(clients=4, requests=120)
        assert set(crowd.seen) == {kind.__name__ for kind in KINDS}
        end = time.monotonic() + 20
        while left := held(server):     # nothing is left of those who left, when the server has noticed the last of them
            assert time.monotonic() < end, left
            time.sleep(0.02)


def held(server: Running) -> dict[str, int]:
    """What the server and its engine hold for requests, by kind. Only counted: a list of it would keep it.

    Empty queues do not mean that all is over: a request is read and tokenized before it has a queue, and its answer is
    sent when it has none any more.
    """
    gc.collect()
    kinds = Counter(type(kept).__name__ for kept in gc.get_objects() if type(kept) in (Job, AnswerReader, EventStream))
    return +(kinds + Counter(queues=len(server.hub._queues), running=server.engine.stats().running))


@pytest.mark.full
@pytest.mark.parametrize(("tp", "pp"), [(2, 1), (2, 2)])
def test_a_thousand_requests(tmp_path, tp, pp):
    write_job(tmp_path)
    job = Launched(tmp_path, "--max-sequences", "12", tp=tp, pp=pp)
    crowd = Crowd(job.url, job.model, 400)
    crowd.send(clients=16, requests=400)
    before = job.memory()
    crowd.send(clients=16, requests=640)
    after = job.memory()
    assert sum(crowd.seen.values()) >= 1000
    assert all(late < early * (1 + GROWTH) for early, late in zip(before, after, strict=True)), (before, after)
    crowd.asks(random.Random(0))
    job.process.send_signal(signal.SIGTERM)
    status, out = job.end()
    assert status == 0 and "Traceback" not in out and not any(question in out for question in QUESTIONS)
