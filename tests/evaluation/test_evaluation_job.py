"""evaluation.py: the log to the letter, whole jobs and their files, every benchmark, going on after a kill."""

import csv
import json
import logging
import re
from itertools import count
from pathlib import Path

import numpy as np
import pytest

from mindspeed_llm.config.errors import UserError
from mindspeed_llm.config.training import BENCHMARKS
from mindspeed_llm.tasks.evaluation import extraction
from mindspeed_llm.tasks.evaluation.eval_impl import TASKS
from mindspeed_llm.tasks.evaluation.job import EvaluationPlan, run
from mindspeed_llm.tasks.evaluation.language_model import Likelihoods
from mindspeed_llm.tasks.evaluation.progress import Progress
from mindspeed_llm.tasks.evaluation.prompt_writer import Prompt
from mindspeed_llm.tasks.evaluation.prompts import STANDARD, Question
from mindspeed_llm.tasks.evaluation.question_files import Subject
from mindspeed_llm.tasks.evaluation.runner import Answering, Runner
from tests.data.test_hf_template import FORMS
from tests.evaluation.layouts import write_all, write_lines
from tests.inference.tiny_job import QUESTIONS, SUBJECTS, configs, write_job


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("evaluation_job")
    write_job(path)
    return path


@pytest.fixture(scope="module")
def layouts(tmp_path_factory):
    return write_all(tmp_path_factory.mktemp("layouts"))


class KnowsAll:
    """A model that rates the choice highest whose number its context ends with."""

    def log_likelihoods(self, requests):
        return [Likelihoods(-np.array([float(ids[0] != request.context[-1]) for ids in request.continuations]), None)
                for request in requests]


class FakeWriter:
    """A prompt ends with the number of the right letter, or with another for one that the model shall not know."""

    form = STANDARD

    def write(self, subject, question, rated):
        right = "ABCD".index(question.answer)
        return Prompt([7, right if question.text == "known" else (right + 1) % 4], [[0], [1], [2], [3]], 0)


def subject(name, answers, unknown=()):
    return Subject(name, tuple(Question("unknown" if place in unknown else "known", tuple("wxyz"), answer)
                               for place, answer in enumerate(answers)), ())


def runner(speaks):
    return Runner(TASKS["mmlu"], Answering("logprob", 1, (), None), KnowsAll(), FakeWriter(), None, speaks, None)


def test_documented_log_lines(caplog, capsys):
    with caplog.at_level(logging.INFO):
        runner(True).run([subject("anatomy", "ABCD", {0}), subject("sociology", "DDA")])
    records = [(record.name, record.getMessage()) for record in caplog.records]
    name = "mindspeed_llm.tasks.evaluation.eval_impl.mmlu_eval"
    assert records[:3] == [(name, "mmlu acc = 3/4=0.75"), (name, "mmlu acc = 3/3=1.0"),
                           (name, "mmlu acc = 6/7=0.8571428571428571")]
    assert records[3] == ("main", "\n      subject   question_n   acc\n0     anatomy            4   0.750000\n"
                                  "1   sociology            3   1.000000\n2       total            7   0.857143")
    assert records[4][0] == "main" and re.fullmatch(r"MMLU Running Time:, \d+\.\d+(e-\d+)?", records[4][1])
    assert [line.split() for line in records[5][1].split("\n")[2:]] == [
        ["social", "sciences", "3", "1.000000", "0.000000"], ["other", "4", "0.750000", "0.250000"]]
    bar = capsys.readouterr().err.split("\r")[-1]
    assert re.fullmatch(r"total: 100%\|█+\| 2/2 \[\d\d:\d\d<\d\d:\d\d, .*(it/s|s/it)\]", bar)


def test_silent_ranks_say_nothing(caplog, capsys):
    with caplog.at_level(logging.INFO):
        results = runner(False).run([subject("anatomy", "AB")])
    assert results[0].right == 2 and not caplog.records and capsys.readouterr().err == ""


def test_whole_job_and_its_files(folder, tmp_path):
    flags = ("--evaluation-batch-size", "4", "--num-shots", "2", "--output-dir", str(tmp_path / "out"))
    results = run(configs("evaluation", folder, *flags))
    assert [(result.name, len(result.questions)) for result in results] == [(name, QUESTIONS) for name in SUBJECTS]
    content = json.loads((tmp_path / "out" / "mmlu_results.json").read_text())
    right = sum(result.right for result in results)
    total = content["total"]
    assert (total["question_n"], total["right"], total["acc"]) == (2 * QUESTIONS, right, right / (2 * QUESTIONS))
    assert list(content["categories"]) == ["humanities", "other"]
    assert content["settings"]["num_shots"] == 2 and content["settings"]["template"] == "glm4"
    with open(tmp_path / "out" / "mmlu_answers.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 2 * QUESTIONS and rows[0]["subject"] == SUBJECTS[0]
    assert sum(row["answer"] == row["prediction"] for row in rows) == right == sum(int(row["score"]) for row in rows)
    with open(tmp_path / "out" / "mmlu_subjects.csv", newline="") as stream:
        levels = [(row["level"], row["name"]) for row in csv.DictReader(stream)]
    assert levels == [*(("subject", name) for name in SUBJECTS), ("category", "humanities"), ("category", "other"),
                      ("total", "total")]
    assert (tmp_path / "out" / "mmlu_accuracy.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "mmlu_accuracy.png", "mmlu_answers.csv", "mmlu_results.json", "mmlu_subjects.csv"]


@pytest.mark.parametrize("flags", [("--broadcast",), ("--evaluation-batch-size", "5"), ("--num-shots", "1")])
def test_options_that_change_scores_or_not(folder, flags):
    plain = run(configs("evaluation", folder, "--max-eval-samples", "3", "--no-chat-template"))
    other = run(configs("evaluation", folder, "--max-eval-samples", "3", "--no-chat-template", *flags))
    scores = [np.array([question.log_probs for result in results for question in result.questions])
              for results in (plain, other)]
    assert (np.abs(scores[0] - scores[1]).max() < 1e-5) == (flags[0] != "--num-shots")


# A question, and the letter of its answer after a space.
PLAIN = "[gMASK]<sop>{{ messages[0].content }}{% if messages[1] %} {{ messages[1].content }}{% endif %}"


def test_chat_template_of_the_tokenizer(folder):
    """--hf-chat-template: the prompt is what the tokenizer's directory says it is."""
    flags = ("--max-eval-samples", "2", "--num-shots", "1")
    given = [run(configs("evaluation", folder, *flags, *more)) for more in (("--no-chat-template",), ())]
    file, found = folder / "tokenizer" / "chat_template.jinja", []
    for text in (PLAIN, FORMS["glm4"]):
        file.write_text(text)
        found.append(run(configs("evaluation", folder, *flags, "--hf-chat-template")))
    file.unlink()
    scores = [[question.log_probs for result in results for question in result.questions]
              for results in (*given, *found)]
    np.testing.assert_allclose(scores[2], scores[0], rtol=0, atol=1e-5)
    np.testing.assert_allclose(scores[3], scores[1], rtol=0, atol=1e-5)
    assert np.abs(np.array(scores[0]) - scores[1]).max() > 1e-3


def test_first_rule_of_mindspeed_llm_reads_written_answers(folder):
    (result, _) = run(configs("evaluation", folder, "--origin-postprocess", "--max-eval-samples", "2", "--num-shots", "1",
                              "--max-new-tokens", "4"))
    for question in result.questions:
        assert question.log_probs is None and question.text
        assert question.prediction == extraction.letter_original(question.text, Question("", tuple("wxyz")))


def test_prompts_that_are_too_long_lose_shots(folder, caplog):
    with caplog.at_level(logging.INFO):
        results = run(configs("evaluation", folder, "--seq-length", "128", "--max-eval-samples", "2"))
    assert {question.shots for result in results for question in result.questions} < {0, 1, 2, 3, 4}
    assert [r.getMessage() for r in caplog.records if "longer" in r.getMessage()] == [
        "4 of 4 prompts were longer than the model's sequence: their first shots were left out; 0 questions lost their "
        "beginning"]


LINES = {  # of the total and of the time, with the number of questions
    "ceval": (r"ceval acc = \d/3=\d", "Ceval Running Time: ", ()),
    "cmmlu": (r"cmmlu acc = \d/3=\d", "CMMLU Running Time:, ", ("--eval-language", "en")),
    "boolq": (r"boolq acc = \d/3=\d", "Boolq Running Time: ", ("--alternative-prompt",)),
    "hellaswag": (r"HellaSwag accuracy = \d/3=\d", "HellaSwag Running Time: ", ("--alternative-prompt",)),
    "gsm8k": (r"gsm8k acc = \d/3=\d", "GSM8k Running Time: ", ("--chain-of-thought",)),
    "bbh": (r"bbh acc = \d/4=\d", "bbh Running Time: ", ("--chain-of-thought", "--origin-postprocess")),
    "agieval": (r"AGIEval acc = \d/3=\d\.\d{6}e[+-]\d\d", "agi_eval Running Time: ", ("--scoring", "generate")),
    "humaneval": (r"acc = \{\d\.\d\}", "Human_eval Running Time: ", ("--alternative-prompt",)),
}


@pytest.mark.parametrize("task", LINES)
def test_every_benchmark_runs(folder, layouts, caplog, task):
    """Its files are read, its lines are logged, and its variants give other prompts."""
    total, seconds, variant = LINES[task]
    flags = ["--task", task, "--task-data-path", str(layouts[task]), "--no-chat-template", "--max-new-tokens", "6",
             "--num-shots", str(min(2, TASKS[task].most_shots)), "--allow-code-execution"]
    with caplog.at_level(logging.INFO):
        run(configs("evaluation", folder, *flags))
    mine = [record.getMessage() for record in caplog.records if record.name == TASKS[task].logger]
    assert re.match(total, mine[-1])
    assert [record for record in caplog.records if record.name == "main" and record.getMessage().startswith(seconds)]
    assert all(question.prediction or question.text for result in run(configs("evaluation", folder, *flags, *variant))
               for question in result.questions)


def test_table_of_benchmarks_is_the_flags():
    assert tuple(TASKS) == BENCHMARKS
    assert all(task.logger == f"mindspeed_llm.tasks.evaluation.eval_impl.{task.logger.rsplit('.', 1)[1]}"
               for task in TASKS.values())


@pytest.mark.parametrize(("flags", "words"), [
    ("--task humaneval", "add --allow-code-execution"),
    ("--task gsm8k --scoring logprob", "the answers of --task gsm8k are written"),
    ("--task gsm8k --alternative-prompt", "--task gsm8k has no such form"),
    ("--task mmlu --chain-of-thought", "--task mmlu has no such form"),
    ("--task mmlu --eval-language zh", "--task mmlu has en only"),
    ("--task boolq --num-shots 1", "--task boolq has no solved examples"),
    ("--task bbh --num-shots 5", "--task bbh has 3 solved examples"),
    ("--task needlebench --origin-postprocess", "one way to find the answer"),
    ("--task bbh --alternative-prompt --chain-of-thought", "exclude each other"),
])
def test_what_a_benchmark_does_not_have(folder, flags, words):
    with pytest.raises(UserError, match=words):
        EvaluationPlan.of(configs("evaluation", folder, *flags.split()).evaluation)


class Killed(Exception):
    pass


def test_goes_on_after_a_kill(folder, tmp_path, monkeypatch):
    """The finished subject is not computed again, the other is; the whole result is that of one run."""
    flags = ("--output-dir", str(tmp_path), "--num-shots", "1")
    keep, answer, calls = Progress.keep, Runner.answer, count()

    def killed(self, result):
        keep(self, result)
        raise Killed

    monkeypatch.setattr(Progress, "keep", killed)
    with pytest.raises(Killed):
        run(configs("evaluation", folder, *flags))
    monkeypatch.setattr(Progress, "keep", keep)
    with pytest.raises(UserError, match=r"other settings \(num_shots was 1, is 2"):
        run(configs("evaluation", folder, "--output-dir", str(tmp_path), "--num-shots", "2"))
    monkeypatch.setattr(Runner, "answer", lambda self, subject: (next(calls), answer(self, subject))[1])
    resumed = run(configs("evaluation", folder, *flags, "--evaluation-batch-size", "7"))
    assert next(calls) == 1 and not (tmp_path / "mmlu_progress").exists()
    assert [result.predictions for result in resumed] == [
        result.predictions for result in run(configs("evaluation", folder, "--num-shots", "1"))]


def test_documented_new_benchmark(folder, tmp_path, monkeypatch):
    """The description in docs/evaluation.md runs as it stands, in 30 lines."""
    page = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text(encoding="utf-8")
    (text,) = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert len(text.splitlines()) <= 30
    scope = {"__name__": "sentiment"}
    exec(text, scope)
    monkeypatch.setitem(TASKS, "mmlu", scope["TASK"])
    write_lines(tmp_path / "films.jsonl", [{"text": f"one {number}", "label": number % 2} for number in range(3)])
    write_lines(tmp_path / "train" / "films.jsonl", [{"text": f"two {number}", "label": 1} for number in range(3)])
    (films,) = run(configs("evaluation", folder, "--task-data-path", str(tmp_path), "--no-chat-template"))
    assert [question.answer for question in films.questions] == list("ABA")
    assert all(question.shots == 2 and question.prediction in "AB" for question in films.questions)
