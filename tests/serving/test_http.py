"""The OpenAI API over an engine that says what a test wants: the openai client, raw requests, errors, who leaves."""

import http.client
import json
import re
import socket
import threading
import time
from urllib.parse import urlparse

import openai
import pytest

from mindspeed_llm.generation.engine import EngineClosed
from mindspeed_llm.tasks.inference.serving import app
from tests.serving.standin import LONGEST, MODEL, running

USER = [{"role": "user", "content": "What is the capital?"}]
TOOL = {"type": "function", "function": {"name": "weather", "description": "d", "parameters": {"type": "object"}}}
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


@pytest.fixture(scope="module")
def server(glm_tokenizer):
    with running(glm_tokenizer) as found:
        yield found


@pytest.fixture(autouse=True)
def fresh(server):
    server.engine.pace = 0.0
    server.engine.say("\nhello")
    server.engine.requests.clear()
    server.engine.ended.clear()
    server.lines.clear()


@pytest.fixture
def client(server):
    with openai.OpenAI(base_url=server.url + "/v1", api_key="unused", max_retries=0) as found:
        yield found


def ask(server, method, path, body=None, **headers):
    """(status, headers, parsed JSON) of one request; `body` may be bytes."""
    connection = http.client.HTTPConnection(urlparse(server.url).netloc, timeout=20)
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"} | {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, data, headers)
    response = connection.getresponse()
    text = response.read()
    connection.close()
    return response.status, response.headers, json.loads(text) if text.startswith(b"{") else text.decode()


def chat(**more):
    return {"model": MODEL, "messages": USER, **more}


def wait_for(condition):
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_models_health_and_page(server, client):
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).owned_by == "mindspeed_llm"
    assert ask(server, "GET", "/health")[::2] == (200, {"status": "ok"})
    status, headers, text = ask(server, "GET", "/")
    assert status == 200 and "<html" in text and "script-src 'sha256-" in headers["Content-Security-Policy"]


def test_chat_in_one_piece(server, client, glm_tokenizer):
    server.engine.say("\n你好, Paris")
    answer = client.chat.completions.create(model=MODEL, messages=[{"role": "system", "content": "Be brief."}, *USER])
    assert answer.object == "chat.completion" and answer.id.startswith("chatcmpl-") and answer.model == MODEL
    (choice,) = answer.choices
    assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", "你好, Paris", "stop")
    assert choice.message.tool_calls is None and choice.logprobs is None
    (request,) = server.engine.requests
    assert glm_tokenizer.decode(list(request.prompt), skip_special=False) == (
        "[gMASK]<sop><|system|>\nBe brief.<|user|>\nWhat is the capital?<|assistant|>")
    assert answer.usage.prompt_tokens == len(request.prompt)
    assert answer.usage.completion_tokens == len(glm_tokenizer.encode("\n你好, Paris"))
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    config = request.config     # OpenAI's defaults
    assert (config.do_sample, config.temperature, config.top_p, config.top_k) == (True, 1.0, 1.0, 0)
    assert config.max_new_tokens == LONGEST and config.stop_ids == frozenset(glm_tokenizer.stop_ids)
    assert not any(word in line for line in server.lines for word in ("capital", "Paris", "brief"))
    assert len(server.lines) == 1 and answer.id in server.lines[0]


def test_chat_in_a_stream(server, client):
    server.engine.say("\n<think>\nwell</think>\nIt is 你好😀.")
    chunks = list(client.chat.completions.create(model=MODEL, messages=USER, stream=True,
                                                 stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    *pieces, usage = chunks
    deltas = [chunk.choices[0].delta for chunk in pieces]
    assert "".join(delta.content or "" for delta in deltas) == "It is 你好😀."
    assert "".join(getattr(delta, "reasoning_content", "") for delta in deltas) == "well"
    assert [chunk.choices[0].finish_reason for chunk in pieces] == [None] * (len(pieces) - 1) + ["stop"]
    assert usage.choices == [] and usage.usage.completion_tokens > 10 and len({chunk.id for chunk in chunks}) == 1


def test_raw_events(server):
    connection = http.client.HTTPConnection(urlparse(server.url).netloc, timeout=20)
    connection.request("POST", CHAT, json.dumps(chat(stream=True)), {"Content-Type": "application/json"})
    response = connection.getresponse()
    assert response.headers["Content-Type"].startswith("text/event-stream")
    events = response.read().decode().split("\n\n")
    assert events[-1] == "" and events[-2] == "data: [DONE]"
    assert all(json.loads(event.removeprefix("data: "))["object"] for event in events[:-2])


def test_choices_have_seeds_of_their_own(server, client):
    answer = client.chat.completions.create(model=MODEL, messages=USER, n=3, seed=7, temperature=0.5, top_p=0.9)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    configs = [request.config for request in server.engine.requests]
    assert [config.seed for config in configs] == [7, 8, 9] and {config.temperature for config in configs} == {0.5}
    assert answer.usage.prompt_tokens == len(server.engine.requests[0].prompt)      # once, though three answers
    client.chat.completions.create(model=MODEL, messages=USER, temperature=0)
    client.chat.completions.create(model=MODEL, messages=USER)
    client.chat.completions.create(model=MODEL, messages=USER)
    greedy, *drawn = [request.config for request in server.engine.requests[3:]]
    assert not greedy.do_sample and drawn[0].seed != drawn[1].seed
    streamed = list(client.chat.completions.create(model=MODEL, messages=USER, n=2, stream=True))
    assert sorted(chunk.choices[0].index for chunk in streamed if chunk.choices[0].finish_reason) == [0, 1]


def test_stop_and_length(server, client):
    server.engine.say("\none two three")
    stopped = client.chat.completions.create(model=MODEL, messages=USER, stop=[" three", "x"]).choices[0]
    assert (stopped.message.content, stopped.finish_reason) == ("one two", "stop")
    assert server.engine.ended[0].reason in ("cancelled", "stop")
    for name in ("max_tokens", "max_completion_tokens"):
        short = client.chat.completions.create(model=MODEL, messages=USER, **{name: 2})
        assert short.choices[0].finish_reason == "length" and short.usage.completion_tokens == 2


def test_log_probs(server, client, glm_tokenizer):
    server.engine.say("\n你!")
    content = client.chat.completions.create(model=MODEL, messages=USER, logprobs=True,
                                             top_logprobs=2).choices[0].logprobs.content
    assert [entry.logprob for entry in content] == [-0.5 - place for place in range(len(content))]
    assert b"".join(bytes(entry.bytes) for entry in content).decode() == "\n你!"
    assert [[top.logprob for top in entry.top_logprobs] for entry in content] == [[-1.0, -2.0]] * len(content)
    server.engine.say("one two")
    for stream in (False, True):
        answer = client.completions.create(model=MODEL, prompt="x", logprobs=1, stream=stream)
        probs = [piece.choices[0].logprobs for piece in (answer if stream else [answer])]
        tokens = [token for one in probs for token in one.tokens]
        assert "".join(tokens) == "one two" and [offset for one in probs for offset in one.text_offset] == [
            len("".join(tokens[:place])) for place in range(len(tokens))]
        assert all(len(top) == 1 for one in probs for top in one.top_logprobs)


def test_completions(server, client, glm_tokenizer):
    server.engine.say(" and two")
    answer = client.completions.create(model=MODEL, prompt=["one", "三"], n=2, max_tokens=50)
    assert [(choice.index, choice.text, choice.finish_reason) for choice in answer.choices] == [
        (place, " and two", "stop") for place in range(4)]
    prompts = [list(request.prompt) for request in server.engine.requests]
    assert prompts == [glm_tokenizer.encode(text, add_special=True) for text in ("one", "one", "三", "三")]
    assert answer.usage.prompt_tokens == len(prompts[0]) + len(prompts[2])
    client.completions.create(model=MODEL, prompt=[5, 6])
    assert server.engine.requests[-1].prompt == (5, 6) and server.engine.requests[-1].config.max_new_tokens == 16
    chunks = list(client.completions.create(model=MODEL, prompt="one", stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == " and two"
    assert chunks[-1].choices[0].finish_reason == "stop" and {chunk.object for chunk in chunks} == {"text_completion"}


def test_tools(server, client, glm_tokenizer):
    server.engine.say('weather\n{"city": "Paris"}')
    for stream in (False, True):
        answer = client.chat.completions.create(model=MODEL, messages=USER, tools=[TOOL], stream=stream)
        if stream:
            chunks = [chunk.choices[0] for chunk in answer]
            pieces = [call for chunk in chunks for call in chunk.delta.tool_calls or ()]
            call_id, name, reason = pieces[0].id, pieces[0].function.name, chunks[-1].finish_reason
            arguments = "".join(piece.function.arguments for piece in pieces)
            assert all(piece.index == 0 and piece.id is None for piece in pieces[1:])
        else:
            (call,) = answer.choices[0].message.tool_calls
            call_id, name, arguments, reason = (call.id, call.function.name, call.function.arguments,
                                                answer.choices[0].finish_reason)
            assert answer.choices[0].message.content is None
            first = answer.choices[0].message
        assert call_id.startswith("call_")
        assert (name, arguments, reason) == ("weather", '{"city": "Paris"}', "tool_calls")
    prompt = glm_tokenizer.decode(list(server.engine.requests[0].prompt), skip_special=False)
    assert prompt.startswith("[gMASK]<sop><|system|>\n") and "\n## weather\n\n{\n    \"name\": \"weather\"" in prompt
    server.engine.say("\nSunny.")
    said = client.chat.completions.create(model=MODEL, tools=[TOOL], messages=[
        *USER, first, {"role": "tool", "tool_call_id": call_id, "content": "sunny"}])
    assert said.choices[0].message.content == "Sunny." and said.choices[0].finish_reason == "stop"
    assert glm_tokenizer.decode(list(server.engine.requests[-1].prompt), skip_special=False).endswith(
        '<|assistant|>weather\n{"city": "Paris"}<|observation|>\nsunny<|assistant|>')


def test_tool_choice(server, client, glm_tokenizer):
    server.engine.say('{"city": "Rome"}')
    for choice in ("required", {"type": "function", "function": {"name": "weather"}}):
        answer = client.chat.completions.create(model=MODEL, messages=USER, tools=[TOOL], tool_choice=choice).choices[0]
        assert answer.message.tool_calls[0].function.arguments == '{"city": "Rome"}'
        assert answer.finish_reason == "tool_calls"
        assert glm_tokenizer.decode(list(server.engine.requests[-1].prompt)).endswith("weather\n")
    server.engine.say('weather\n{}')
    none = client.chat.completions.create(model=MODEL, messages=USER, tools=[TOOL], tool_choice="none").choices[0]
    assert none.message.tool_calls is None and none.message.content == "weather\n{}"
    assert "weather" not in glm_tokenizer.decode(list(server.engine.requests[-1].prompt))
    server.engine.say('weather\n{}<|assistant|>weather\n{}')
    one = client.chat.completions.create(model=MODEL, messages=USER, tools=[TOOL], parallel_tool_calls=False).choices[0]
    assert len(one.message.tool_calls) == 1 and one.finish_reason == "tool_calls"


ERRORS = [
    (CHAT, b"{", 400, "invalid_json", None),
    (CHAT, b"\xff", 400, "invalid_json", None),
    (CHAT, b"[" * 5000, 400, "invalid_json", None),
    (CHAT, [], 400, "invalid_value", None),
    (CHAT, {"model": MODEL}, 400, "invalid_value", "messages"),
    (CHAT, chat(messages=[]), 400, "invalid_value", "messages"),
    (CHAT, chat(messages=[{"role": "king", "content": "x"}]), 400, "invalid_value", "messages[0]"),
    (CHAT, chat(messages=[{"role": "user", "content": 3}]), 400, "invalid_value", None),
    (CHAT, chat(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]), 400,
     "invalid_value", None),
    (CHAT, chat(messages=[*USER, {"role": "assistant", "content": "x"}]), 400, "invalid_value", None),
    (CHAT, chat(messages=[{"role": "user", "content": "word " * LONGEST}]), 400, "context_length_exceeded", None),
    (CHAT, chat(model="other"), 404, "model_not_found", "model"),
    (CHAT, chat(model=None), 400, "invalid_value", "model"),
    (CHAT, chat(temperature="1"), 400, "invalid_value", "temperature"),
    (CHAT, chat(temperature=2.5), 400, "invalid_value", "temperature"),
    (CHAT, b'{"model": "stand-in", "messages": [], "temperature": NaN}', 400, "invalid_value", "temperature"),
    (CHAT, chat(top_p=-0.1), 400, "invalid_value", "top_p"),
    (CHAT, chat(n=0), 400, "invalid_value", "n"),
    (CHAT, chat(n=True), 400, "invalid_value", "n"),
    (CHAT, chat(n=1000), 400, "invalid_value", "n"),
    (CHAT, chat(max_tokens=0), 400, "invalid_value", "max_tokens"),
    (CHAT, chat(seed=2**63), 400, "invalid_value", "seed"),
    (CHAT, chat(stop=[""]), 400, "invalid_value", None),
    (CHAT, chat(stop="x" * 1001), 400, "invalid_value", None),
    (CHAT, chat(stop=["x"] * 17), 400, "invalid_value", None),
    (CHAT, chat(top_logprobs=3), 400, "invalid_value", "top_logprobs"),
    (CHAT, chat(presence_penalty=1.0), 400, "invalid_value", "presence_penalty"),
    (CHAT, chat(logit_bias={"5": 1}), 400, "invalid_value", "logit_bias"),
    (CHAT, chat(response_format={"type": "json_object"}), 400, "invalid_value", "response_format.type"),
    (CHAT, chat(beam="x"), 400, "unknown_parameter", "beam"),
    (CHAT, chat(tools=[{"type": "function", "function": {"name": "no good"}}]), 400, "invalid_value", None),
    (CHAT, chat(tools=[TOOL], tool_choice={"type": "function", "function": {"name": "x"}}), 400, "invalid_value",
     "tool_choice"),
    (CHAT, chat(tool_choice="required"), 400, "invalid_value", "tool_choice"),
    (COMPLETIONS, {"model": MODEL}, 400, "invalid_value", "prompt"),
    (COMPLETIONS, {"model": MODEL, "prompt": []}, 400, "invalid_value", None),
    (COMPLETIONS, {"model": MODEL, "prompt": [10**6]}, 400, "invalid_value", "prompt"),
    (COMPLETIONS, {"model": MODEL, "prompt": ["x"] * 9, "n": 2}, 400, "invalid_value", "prompt"),
    (COMPLETIONS, {"model": MODEL, "prompt": "x", "suffix": "y"}, 400, "invalid_value", "suffix"),
    (COMPLETIONS, {"model": MODEL, "prompt": "x", "logprobs": 6}, 400, "invalid_value", "logprobs"),
    ("/v1/nothing", {}, 404, "unknown_url", None),
    ("/v1/models", {}, 405, "unknown_url", None),
]


def test_errors_are_objects(server):
    for path, body, status, code, param in ERRORS:
        found, _, content = ask(server, "POST", path, body)
        assert found == status, (body, content)
        error = content["error"]
        assert error["code"] == code and set(error) == {"message", "type", "param", "code"}, (body, error)
        assert param is None or error["param"] == param, (body, error)
        assert error["type"] == "invalid_request_error" and error["message"]
    assert server.engine.requests == []
    assert ask(server, "POST", CHAT, chat(), Content_Type="text/plain")[0] == 415
    with_effectless = chat(user="me", metadata={"a": "b"}, store=False, frequency_penalty=0, logit_bias={}, n=None)
    assert ask(server, "POST", CHAT, with_effectless)[0] == 200
    lone = b'{"model": "\\ud83d", "messages": [{"role": "user", "content": "x\\ud83d"}]}'
    assert ask(server, "POST", CHAT, lone)[0] in (400, 404)


def test_the_openai_client_knows_the_errors(client):
    with pytest.raises(openai.NotFoundError, match="there is no model other"):
        client.chat.completions.create(model="other", messages=USER)
    with pytest.raises(openai.BadRequestError, match=r"the prompt has \d+ tokens") as caught:
        client.completions.create(model=MODEL, prompt="word " * LONGEST)
    assert caught.value.code == "context_length_exceeded"


def test_huge_bodies(server, monkeypatch):
    monkeypatch.setattr(app, "MAX_BODY", 1000)
    monkeypatch.setattr(app, "_READ_AWAY", 10**7)
    status, _, content = ask(server, "POST", CHAT, chat(user="x" * 10**6))
    assert status == 413 and content["error"]["code"] == "body_too_large"
    assert ask(server, "POST", CHAT, chat())[0] == 200
    monkeypatch.setattr(app, "_BODY_SECONDS", 0.2)
    with socket.create_connection(urlparse(server.url).netloc.split(":")) as slow:
        slow.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                     b"Content-Length: 50\r\n\r\n{")
        assert slow.recv(100).startswith(b"HTTP/1.1 408 ")


def test_keys(glm_tokenizer):
    with running(glm_tokenizer, api_key="secret", system_prompt="A B") as server:
        for given in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic secret"},
                      {"Authorization": "Bearer secret2"}, {"Authorization": "Bearer \xe9"}):
            for path in (CHAT, "/v1/models"):
                status, headers, content = ask(server, "GET" if path != CHAT else "POST", path,
                                               chat() if path == CHAT else None, **given)
                assert status == 401 and content["error"]["code"] == "invalid_api_key"
                assert headers["WWW-Authenticate"] == "Bearer" and "secret" not in json.dumps(content)
        assert ask(server, "POST", CHAT, chat(), Authorization="bearer secret")[0] == 200
        assert ask(server, "GET", "/health")[0] == 200
        assert "A B" in glm_tokenizer.decode(list(server.engine.requests[0].prompt))    # --system-prompt
        told = chat(messages=[{"role": "developer", "content": "C"}, *USER])
        ask(server, "POST", CHAT, told, Authorization="Bearer secret")
        assert "A B" not in glm_tokenizer.decode(list(server.engine.requests[1].prompt))
        assert "secret" not in " ".join(server.lines)


def test_without_a_chat_template(glm_tokenizer):
    with running(glm_tokenizer, template=None) as server:
        assert ask(server, "POST", CHAT, chat())[0] == 200
        assert list(server.engine.requests[0].prompt) == glm_tokenizer.encode("What is the capital?", add_special=True)
        assert ask(server, "POST", CHAT, chat(tools=[TOOL]))[0] == 400


@pytest.mark.parametrize("stream", [False, True])
def test_who_leaves_is_cancelled(server, stream):
    server.engine.pace = 0.02
    server.engine.say("\n" + "word " * 100)
    connection = socket.create_connection(urlparse(server.url).netloc.split(":"))
    body = json.dumps(chat(stream=stream, n=2)).encode()
    connection.sendall(b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
                       % (CHAT.encode(), len(body), body))
    wait_for(lambda: len(server.engine.requests) == 2)
    if stream:
        connection.settimeout(20)
        seen = b""
        while not re.search(rb'"content":"[^"]', seen):
            seen += connection.recv(1000) or pytest.fail("the stream has ended")
    connection.close()
    wait_for(lambda: len(server.engine.ended) == 2)
    assert {end.reason for end in server.engine.ended} == {"cancelled"}
    wait_for(lambda: server.lines)
    assert server.lines[0].endswith(" s, 2 cancelled")
    assert not stream or " 0 new" not in server.lines[0]
    wait_for(lambda: not server.hub._queues)


def test_too_much_to_do(glm_tokenizer):
    with running(glm_tokenizer, limit=2) as server:
        server.engine.pace = 0.05
        first = threading.Thread(target=ask, args=(server, "POST", CHAT, chat(n=2)))
        first.start()
        wait_for(lambda: len(server.engine.requests) == 2)
        status, _, content = ask(server, "POST", CHAT, chat())
        assert status == 503 and content["error"]["code"] == "overloaded"
        assert content["error"]["type"] == "server_error"
        first.join()
        assert ask(server, "POST", CHAT, chat())[0] == 200
        server.hub.closed = True
        for path in (CHAT, "/health"):
            status, _, content = ask(server, "POST" if path == CHAT else "GET", path, chat() if path == CHAT else None)
            assert status == 503
        assert content == {"status": "shutting down"}


def test_an_answer_that_the_end_cuts_off(server):
    """The engine stops: an error, not a short answer."""
    server.engine.pace = 0.05
    answers = []
    asking = [threading.Thread(target=lambda body=chat(stream=stream): answers.append(ask(server, "POST", CHAT, body)))
              for stream in (False, True)]
    for thread in asking:
        thread.start()
    wait_for(lambda: len(server.engine.requests) == 2)
    for request in server.engine.requests:
        server.engine.cancel(request.name)
    for thread in asking:
        thread.join()
    (whole,) = [content for status, _, content in answers if status == 503]
    assert whole["error"]["code"] == "shutting_down"
    (streamed,) = [content for status, _, content in answers if status == 200]
    assert '"code":"shutting_down"' in streamed and streamed.endswith("data: [DONE]\n\n")


def test_an_engine_that_closes_meanwhile(server, monkeypatch):
    """The first of two requests is taken, the second is not: nothing is left of the first."""
    submit = server.engine.submit

    def once(request):
        if server.engine.requests:
            raise EngineClosed("closed")
        submit(request)
    monkeypatch.setattr(server.engine, "submit", once)
    server.engine.pace = 0.05
    status, _, content = ask(server, "POST", CHAT, chat(n=2))
    assert status == 503 and content["error"]["code"] == "shutting_down" and not server.hub._queues
    wait_for(lambda: [end.reason for end in server.engine.ended] == ["cancelled"])


def test_metrics(server):
    for body in (chat(), chat(n=2, max_tokens=1), chat(n=0)):
        ask(server, "POST", CHAT, body)
    text = ask(server, "GET", "/metrics")[2]
    lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if line and not line.startswith("#"))
    assert float(lines['mindspeed_llm_responses_total{endpoint="/v1/chat/completions",status="200"}']) >= 2
    assert float(lines['mindspeed_llm_answers_total{reason="length"}']) >= 2
    assert float(lines["mindspeed_llm_request_seconds_count"]) >= 2
    assert lines["mindspeed_llm_blocks_total"] == "7.0" and "mindspeed_llm_running" in lines
    assert float(lines["mindspeed_llm_time_to_first_token_seconds_count"]) >= 2
