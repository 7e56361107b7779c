"""From tokens to the parts of an answer: characters, stop strings, thoughts, calls of tools."""

import json
import random

import pytest

from mindspeed_llm.generation.engine import TokenEvent
from mindspeed_llm.tasks.inference.serving.texts import AnswerReader, ChatParts, Delta, PlainParts

TOOLS = ("weather", "weather_map")


def read(tokenizer, ids, parts, stops=()):
    """(deltas of the pushes and of the end, reader)."""
    reader = AnswerReader(tokenizer, stops, parts, tokenizer.special("<|assistant|>"))
    deltas = []
    for token in ids:
        deltas.append(reader.push(TokenEvent("a", token, -1.0, ())))
        if reader.stopped:
            break
    return [*deltas, reader.finish()], reader


def joined(deltas):
    calls = {}
    for delta in deltas:
        for call in delta.calls:
            name, arguments = calls.get(call.index, (call.name, ""))
            calls[call.index] = (name, arguments + call.arguments)
    return {"content": "".join(delta.content for delta in deltas), "thoughts": "".join(d.thoughts for d in deltas),
            "calls": list(calls.values())}


def ids_of(tokenizer, text):
    """Ids of a text in which <|assistant|> is the token, cut at random so that borders of tokens are anywhere."""
    ids, draw = [], random.Random(len(text))
    for number, part in enumerate(text.split("<|assistant|>")):
        ids += [tokenizer.special("<|assistant|>")] if number else []
        while part:
            cut = draw.randint(1, 5)
            ids, part = ids + tokenizer.encode(part[:cut]), part[cut:]
    return ids


def test_no_half_characters(glm_tokenizer):
    text = "a 你好😀 é\n"
    ids = glm_tokenizer.encode(text)
    deltas, _ = read(glm_tokenizer, ids, PlainParts())
    assert "".join(delta.content for delta in deltas) == text
    assert all("\ufffd" not in delta.content for delta in deltas) and len(ids) > len(text)
    cut, _ = read(glm_tokenizer, glm_tokenizer.encode("😀")[:-1], PlainParts())
    assert joined(cut)["content"] == "\ufffd"


@pytest.mark.parametrize(("text", "stops", "expected"), [
    ("one two three", (" two",), "one"),
    ("one two three", ("o t",), "one tw"),
    ("one two", ("two!", "x"), "one two"),
    ("aaab", ("aab",), "a"),
    ("abcd", ("bcx", "cd"), "ab"),
    ("你好。世界", ("。",), "你好"),
    ("one", ("one",), ""),
    ("END of", ("END",), ""),
])
def test_stop_strings(glm_tokenizer, text, stops, expected):
    deltas, reader = read(glm_tokenizer, ids_of(glm_tokenizer, text), PlainParts(), stops)
    assert joined(deltas)["content"] == expected
    assert reader.stopped == (text != expected)
    shown = ""
    for delta in deltas:
        shown += delta.content
        assert expected.startswith(shown)   # nothing is ever shown that has to be taken back


def test_log_probs_are_those_of_the_text(glm_tokenizer):
    ids = ids_of(glm_tokenizer, "one two three")
    deltas, _ = read(glm_tokenizer, ids, PlainParts(), (" three",))
    tokens = [event.token for delta in deltas for event in delta.tokens]
    offsets = [offset for delta in deltas for offset in delta.offsets]
    assert tokens == ids[:len(tokens)] and "one two" in glm_tokenizer.decode(tokens)
    assert offsets == [len(glm_tokenizer.decode(ids[:number])) for number in range(len(tokens))]
    assert glm_tokenizer.decode(tokens[:-1]) in "one two"


CASES = {
    "words": ("\nHello  there\n", {"content": "Hello  there\n"}),
    "thoughts": ("\n<think>\nfirst\n\nthen </thin\n</think>\n\nAnswer", {"thoughts": "first\n\nthen </thin",
                                                                      "content": "Answer"}),
    "only thoughts": ("<think>going on", {"thoughts": "going on"}),
    "less than a thought": ("<thin", {"content": "<thin"}),
    "call": ('weather\n{"city": "Paris"}\n', {"calls": [("weather", '{"city": "Paris"}')]}),
    "call after a newline": ('\nweather_map\n{"a": 1}', {"calls": [("weather_map", '{"a": 1}')]}),
    "calls": ('weather\n{"city": "Paris"}<|assistant|>weather\n{"city": "Rome"}',
              {"calls": [("weather", '{"city": "Paris"}'), ("weather", '{"city": "Rome"}')]}),
    "words, then a call": ("\nLet me see.<|assistant|>weather\n{}",
                           {"content": "Let me see.", "calls": [("weather", "{}")]}),
    "thoughts, then a call": ('<think>hm</think>\nweather\n{"x": [1]}', {"thoughts": "hm",
                                                                       "calls": [("weather", '{"x": [1]}')]}),
    "a name and no call": ("weather\nis fine", {"content": "weather\nis fine"}),
    "a name alone": ("weather", {"content": "weather"}),
    "the beginning of a name": ("weather_m", {"content": "weather_m"}),
    "an unknown name": ('wether\n{"a": 1}', {"content": 'wether\n{"a": 1}'}),
    "two turns of words": ("\nOne.<|assistant|>\nTwo.", {"content": "One.\nTwo."}),
    "nothing": ("", {}),
}


@pytest.mark.parametrize("case", CASES)
def test_parts_of_a_chat_answer(glm_tokenizer, case):
    text, expected = CASES[case]
    deltas, reader = read(glm_tokenizer, ids_of(glm_tokenizer, text), ChatParts(TOOLS))
    assert joined(deltas) == {"content": "", "thoughts": "", "calls": []} | expected
    assert reader.calls == len(expected.get("calls", []))
    named = [call for delta in deltas for call in delta.calls if call.name is not None]
    assert len({call.id for call in named}) == len(named) == reader.calls and all(call.id for call in named)


def test_parts_as_asked(glm_tokenizer):
    def parts_of(text, stops=(), **how):
        return joined(read(glm_tokenizer, ids_of(glm_tokenizer, text), ChatParts(TOOLS, **how), stops)[0])
    assert parts_of("\nhm </think>\nyes", thinking=True) == {"content": "yes", "thoughts": "hm", "calls": []}
    assert parts_of('{"city": 1}', forced="weather")["calls"] == [("weather", '{"city": 1}')]
    assert parts_of("", forced="weather")["calls"] == [("weather", "")]
    several = 'weather\n{}<|assistant|>weather\n{"a": 2}'
    assert parts_of(several, several_calls=False)["calls"] == [("weather", "{}")]
    assert parts_of("\nA\nB", stops=("\n",))["content"] == "A"     # the template's newline is no stop


def test_arguments_arrive_in_pieces(glm_tokenizer):
    arguments = json.dumps({"city": "Paris", "days": [1, 2, 3]})
    deltas, _ = read(glm_tokenizer, ids_of(glm_tokenizer, "weather\n" + arguments), ChatParts(TOOLS))
    assert sum(bool(delta.calls) for delta in deltas) > 3
    assert not Delta()
