"""`--task serve` with a model: what clients get, how it ends; in this process, and as whole jobs under --full."""

import os
import re
import signal
import socket
import threading
import time

import openai
import pytest

from mindspeed_llm.config.errors import UserError
from mindspeed_llm.generation.config import GenerationConfig
from mindspeed_llm.generation.decoding import generate
from mindspeed_llm.tasks.inference import run
from mindspeed_llm.tasks.inference.loading import load
from mindspeed_llm.tasks.inference.prompting import Prompter
from tests.inference.tiny_job import configs, write_job
from tests.serving.launched import Launched, free_port, serve_beside

QUESTIONS = ("A. one", "B. two", "C. three", "D. 三")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("serve_job")
    write_job(path)
    return path


def answers(url, model, count=1):
    """Greedy answers to QUESTIONS, all asked at once: [(text, reason, usage)]."""
    with openai.OpenAI(base_url=url + "/v1", api_key="k", max_retries=0) as client:
        found = {}

        def ask(question):
            found[question] = client.chat.completions.create(
                model=model, messages=[{"role": "user", "content": question}], temperature=0, max_tokens=8, n=count)
        asking = [threading.Thread(target=ask, args=(question,)) for question in QUESTIONS]
        for thread in asking:
            thread.start()
        for thread in asking:
            thread.join()
    return [found[question] for question in QUESTIONS]


def test_serving_a_model(folder, capsys, monkeypatch):
    """Answers at once are those of each alone; SIGTERM finishes what is under way, refuses more, and ends the job."""
    loaded = load(configs("inference", folder))
    prompter = Prompter.of(loaded.configs, loaded.tokenizer, no_chat_template=False)
    expected = [prompter.text(answer.ids) for answer in generate(
        loaded.generator(), [prompter.prompt(text) for text in QUESTIONS],
        GenerationConfig(8, frozenset(loaded.tokenizer.stop_ids)))]
    monkeypatch.setenv("MINDSPEED_LLM_API_KEY", "k")
    port, found = free_port(), {}

    def talk(url):
        found["answers"] = answers(url, "tiny", count=2)
        with openai.OpenAI(base_url=url + "/v1", api_key="k", max_retries=0) as client:
            stream = client.completions.create(model="tiny", prompt="A. one", max_tokens=200, stream=True,
                                               extra_body={"repetition_penalty": 1.3})
            chunks = [next(iter(stream))]
            os.kill(os.getpid(), signal.SIGTERM)
            with pytest.raises(openai.InternalServerError, match="shutting down"):
                while True:
                    client.completions.create(model="tiny", prompt="A. one", max_tokens=1)
            found["last"] = chunks + list(stream)

    serve_beside(lambda: run(configs("inference", folder, "--task", "serve", "--port", str(port),
                                     "--served-model-name", "tiny")), talk, port)
    assert [choice.message.content for answer in found["answers"] for choice in answer.choices] == [
        text for text in expected for _ in range(2)]
    assert {answer.usage.completion_tokens for answer in found["answers"]} <= set(range(2, 17))
    reason = found["last"][-1].choices[0].finish_reason
    assert reason in ("length", "stop") and (len(found["last"]) > 50 or reason == "stop")
    out = capsys.readouterr().out
    assert f"serving tiny at http://127.0.0.1:{port} (API under /v1" in out and out.endswith("the server has ended\n")
    assert re.search(r"draining: \d requests are finished first, for 30 s at most", out)
    assert not any(question in out for question in QUESTIONS)


@pytest.mark.parametrize(("flags", "words"), [
    (("--port", "{taken}"), r"--host 127.0.0.1 --port \d+: Address already in use; give an address"),
    (("--host", "203.0.113.1"), "--host 203.0.113.1 --port 8000: Cannot assign requested address"),
    (("--api-key", "a b"), "the key for clients .* without spaces"),
    (("--prompt", "A"), "--prompt is not for --task serve"),
    (("--temperature", "0.5"), "--temperature is not for --task serve"),
    (("--task", "serve", "greedy"), "--task serve greedy: serve goes on until it is ended"),
    (("--kv-cache-tokens", "20", "--seq-length", "64"),
     r"--kv-cache-tokens \(20\) must be at least --seq-length \(64\)"),
])
def test_mistakes_come_before_the_model(folder, monkeypatch, flags, words):
    monkeypatch.setattr("mindspeed_llm.tasks.inference.serving.server.load",
                        lambda _: pytest.fail("the model was loaded"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        flags = [flag.format(taken=taken.getsockname()[1]) for flag in flags]
        with pytest.raises(UserError, match=words):
            run(configs("inference", folder, "--task", "serve", *flags))


@pytest.mark.full
@pytest.mark.parametrize(("tp", "pp"), [(2, 1), (1, 2), (2, 2)])
def test_ranks_serve_and_drain(folder, tp, pp):
    job = Launched(folder, tp=tp, pp=pp)
    texts = [answer.choices[0].message.content for answer in answers(job.url, job.model)]
    assert len(texts) == len(QUESTIONS)
    job.process.send_signal(signal.SIGTERM)
    status, out = job.end()
    assert status == 0 and "draining: 0 requests" in out and "the server has ended" in out


@pytest.mark.full
@pytest.mark.parametrize(("tp", "pp", "rank"), [(2, 1, 0), (2, 1, 1), (2, 2, 0), (2, 2, 3)])
def test_a_killed_rank_ends_the_server(folder, tp, pp, rank):
    job = Launched(folder, tp=tp, pp=pp)
    killed = time.monotonic()
    os.kill(job.rank(rank), signal.SIGKILL)
    status, out = job.end()
    assert time.monotonic() - killed < 15 and status == 1
    # what comes first: the launcher's word about the rank, or that of one that waited for it
    assert f"rank {rank} was ended by signal 9" in out or re.search(rf"rank {rank} \(pid \d+\) died while", out)
