"""Prompts out of files and answers into one: what is read, refused, written."""

import json

import numpy as np
import pytest

from mindspeed_llm.config.errors import UserError
from mindspeed_llm.tasks.inference import job, run
from mindspeed_llm.tasks.inference.files import AnswerFile, read_prompts, read_tools
from tests.inference.tiny_job import configs, write_job


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("prompt_files")
    write_job(path)
    return path


@pytest.mark.parametrize(("name", "text", "expected"), [
    ("a.txt", "one\n\n  two \r\n三", ("one", "  two ", "三")),
    ("a.txt", "\ufeffone\n", ("one",)),
    ("a.txt", "one\u2028still one\n", ("one\u2028still one",)),
    ("a.jsonl", '{"prompt": "two\\nlines", "more": 1}\n\n{"prompt": "三"}\r\n', ("two\nlines", "三")),
])
def test_prompts_are_read(tmp_path, name, text, expected):
    (tmp_path / name).write_bytes(text.encode())
    assert read_prompts(str(tmp_path / name)) == expected


@pytest.mark.parametrize(("name", "data", "words"), [
    ("a.csv", b"one", r"a.csv: give a .txt file \(a prompt a line\) or a .jsonl file"),
    ("missing.txt", None, "missing.txt: no such file"),
    ("a.txt", b"one\n\xff\n", "is not UTF-8 .* at byte 4"),
    ("a.txt", b" \n\n", "holds no prompts"),
    ("a.jsonl", b'{"prompt": "a"}\nprompt\n', "a.jsonl line 2 is no JSON object with a text `prompt`"),
    ("a.jsonl", b'["prompt"]', "line 1"),
    ("a.jsonl", b'{"prompt": 3}', "line 1"),
    ("a.jsonl", b'{"prompt": " "}', "line 1 .* not empty"),
    ("a.jsonl", b"[" * 100_000, "line 1"),
])
def test_what_is_no_prompt_is_refused(tmp_path, name, data, words):
    if data is not None:
        (tmp_path / name).write_bytes(data)
    with pytest.raises((UserError, FileNotFoundError), match=words):
        read_prompts(str(tmp_path / name))


@pytest.mark.parametrize("data", [None, b"{", b"{}", b"[]", b'["a"]', b'[{"function": {}}]', b'[{"name": 3}]'])
def test_what_is_no_list_of_tools_is_refused(tmp_path, data):
    if data is not None:
        (tmp_path / "tools.json").write_bytes(data)
    with pytest.raises((UserError, FileNotFoundError), match=r"--tools .*tools.json.* a JSON list of descriptions"):
        read_tools(str(tmp_path / "tools.json"))


def test_answers_are_written(folder, tmp_path, monkeypatch, capsys):
    """Also in groups: each prompt's answer is the one that it gets among all."""
    prompts = [f"{letter}. {word}" for letter in "AB" for word in ("one", "two", "三")][:5]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in prompts))
    flags = ["--prompt-file", str(tmp_path / "in.jsonl"), "--task", "greedy", "do_sample", "beam_search", "--num-beams",
             "2", "--max-new-tokens", "6", "--repetition-penalty", "1.1", "--output"]
    found = {}
    for together in (32, 2):
        monkeypatch.setattr(job, "TOGETHER", together)
        run(configs("inference", folder, *flags, str(tmp_path / "made" / f"{together}.jsonl")))
        text = (tmp_path / "made" / f"{together}.jsonl").read_text(encoding="utf-8")
        found[together] = [json.loads(line) for line in text.splitlines()]
    records = found[32]
    assert [(one["task"], one["prompt"]) for one in records] == [
        (task, prompt) for task in ("greedy", "do_sample", "beam_search") for prompt in prompts]
    for one, grouped in zip(records, found[2], strict=True):
        assert one["ids"] == grouped["ids"] and one["text"] == grouped["text"]
        np.testing.assert_allclose(one["log_probs"], grouped["log_probs"], rtol=1e-4)
        assert len(one["log_probs"]) == len(one["ids"]) <= 6 and all(value < 0 for value in one["log_probs"])
        assert one["finish_reason"] in ("stop", "length") and ("score" in one) == (one["task"] == "beam_search")
        assert one["finish_reason"] == "stop" or len(one["ids"]) == 6
    assert capsys.readouterr().out.count("You:\n") == 30


def test_every_state_of_the_file_is_whole(tmp_path):
    answers = AnswerFile(str(tmp_path / "a" / "b.jsonl"))
    for count in (1, 2):
        answers.add([{"text": "三"}])
        assert (tmp_path / "a" / "b.jsonl").read_text(encoding="utf-8") == '{"text": "三"}\n' * count
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b.jsonl"]


def test_mistakes_come_before_the_model(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(job, "load", lambda _: pytest.fail("the model was loaded"))
    with pytest.raises(UserError, match="is a directory: name a file in it"):
        run(configs("inference", folder, "--output", str(tmp_path)))
    with pytest.raises(FileNotFoundError, match="--prompt-file none.txt: no such file"):
        run(configs("inference", folder, "--prompt-file", "none.txt"))


def test_a_long_prompt_is_named_by_its_number(folder, tmp_path):
    (tmp_path / "in.txt").write_text("one\n" + "word " * 400 + "\n")
    with pytest.raises(UserError, match=r"prompt 2: the prompt has \d+ tokens"):
        run(configs("inference", folder, "--prompt-file", str(tmp_path / "in.txt")))
