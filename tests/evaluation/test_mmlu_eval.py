"""evaluation.py --task mmlu: the log to the letter, scores without and with sharing, files."""

import csv
import json
import logging
import re

import numpy as np
import pytest

from mindspeed_llm.tasks.evaluation.choice_model import ParallelChoiceModel
from mindspeed_llm.tasks.evaluation.eval_impl import mmlu_eval
from mindspeed_llm.tasks.evaluation.job import run
from mindspeed_llm.tasks.evaluation.prompt_forms import Prompt
from mindspeed_llm.tasks.evaluation.question_files import Question, Subject
from mindspeed_llm.tasks.evaluation.results import SubjectResult, table
from tests.generation.golden_model import full_logits, golden_generator
from tests.inference.tiny_job import QUESTIONS, SUBJECTS, configs, write_job


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("mmlu_job")
    write_job(path)
    return path


class KnowsAll:
    """A model that rates the right letter highest, but for questions whose prompt ends with 0."""

    def score_choices(self, prompts, choices):
        return np.array([[float(choice == (prompt[-1] or 2)) for choice in choices] for prompt in prompts], np.float32)


class FakeWriter:
    """A prompt is the number of the right letter, or 0 for one that the model shall not know."""

    choice_ids = (1, 2, 3, 4)

    def write(self, subject, question):
        return Prompt([7, "ABCD".index(question.answer) + 1 if question.text == "known" else 0], len(subject.shots))


def subject(name, answers, unknown):
    return Subject(name, tuple(Question("unknown" if place in unknown else "known", tuple("wxyz"), answer)
                               for place, answer in enumerate(answers)), ())


def test_documented_log_lines(caplog, capsys):
    subjects = [subject("anatomy", "ABCD", {0}), subject("sociology", "DDA", set())]
    with caplog.at_level(logging.INFO):
        mmlu_eval.evaluate(subjects, KnowsAll(), FakeWriter(), speaks=True)
    records = [(record.name, record.getMessage()) for record in caplog.records]
    name = "mindspeed_llm.tasks.evaluation.eval_impl.mmlu_eval"
    assert records[:3] == [(name, "mmlu acc = 3/4=0.75"), (name, "mmlu acc = 3/3=1.0"),
                           (name, "mmlu acc = 6/7=0.8571428571428571")]
    assert records[3] == ("main", "\n     subject  question_n       acc\n0    anatomy           4  0.750000\n"
                                  "1  sociology           3  1.000000\n2      total           7  0.857143")
    assert records[4][0] == "main" and re.fullmatch(r"MMLU Running Time:, \d+\.\d+(e-\d+)?", records[4][1])
    bar = capsys.readouterr().err.split("\r")[-1]
    assert re.fullmatch(r"total: 100%\|█+\| 2/2 \[\d\d:\d\d<\d\d:\d\d, .*(it/s|s/it)\]", bar)


def test_silent_ranks_say_nothing(caplog, capsys):
    with caplog.at_level(logging.INFO):
        results = mmlu_eval.evaluate([subject("anatomy", "AB", set())], KnowsAll(), FakeWriter(), speaks=False)
    assert results[0].right == 2 and not caplog.records and capsys.readouterr().err == ""


def test_accuracy_is_weighted_by_questions():
    scores = np.eye(4, dtype=np.float32)
    results = [SubjectResult("a", ("A", "B", "C", "D"), scores, (0,) * 4), SubjectResult("b", ("B",), scores[:1], (0,))]
    assert table(results).iloc[-1].tolist() == ["total", 5, 0.8]


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_scores_equal_whole_passes(batch_size):
    """Sharing what prompts have in common, batching, reordering by length: the same logits as one pass a prompt."""
    rng = np.random.default_rng(2)
    common = rng.integers(0, 96, 9).tolist()
    prompts = [common + rng.integers(0, 96, length).tolist() for length in (5, 1, 12, 1, 7, 3)]
    choices = [17, 3, 95, 40]
    scores = ParallelChoiceModel(golden_generator(), batch_size).score_choices(prompts, choices)
    for prompt, row in zip(prompts, scores, strict=True):
        np.testing.assert_allclose(row, full_logits(prompt)[-1][choices], rtol=0, atol=1e-5)


def test_prompts_that_are_the_same_or_contain_each_other():
    prompts = [[4, 5, 6], [4, 5, 6], [4, 5, 6, 7]]
    scores = ParallelChoiceModel(golden_generator(), 2).score_choices(prompts, [1, 2])
    np.testing.assert_allclose(scores[0], scores[1], rtol=0, atol=1e-6)
    np.testing.assert_allclose(scores[2], full_logits(prompts[2])[-1][[1, 2]], rtol=0, atol=1e-5)


def test_whole_job_and_its_files(folder, tmp_path):
    flags = ("--evaluation-batch-size", "4", "--num-shots", "2", "--output-dir", str(tmp_path / "out"))
    results = run(configs("evaluation", folder, *flags))
    assert [(result.name, len(result.answers)) for result in results] == [(name, QUESTIONS) for name in SUBJECTS]
    summary = json.loads((tmp_path / "out" / "mmlu_results.json").read_text())
    assert summary["total"] == {"question_n": 2 * QUESTIONS, "right": sum(result.right for result in results),
                                "acc": sum(result.right for result in results) / (2 * QUESTIONS)}
    assert summary["settings"]["num_shots"] == 2 and summary["settings"]["template"] == "glm4"
    with open(tmp_path / "out" / "mmlu_answers.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 2 * QUESTIONS and rows[0]["subject"] == SUBJECTS[0]
    assert sum(row["answer"] == row["prediction"] for row in rows) == summary["total"]["right"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["mmlu_answers.csv", "mmlu_results.json"]


@pytest.mark.parametrize("flags", [("--broadcast",), ("--evaluation-batch-size", "5"), ("--num-shots", "1")])
def test_options_that_change_scores_or_not(folder, flags):
    plain = run(configs("evaluation", folder, "--max-eval-samples", "3", "--no-chat-template"))
    other = run(configs("evaluation", folder, "--max-eval-samples", "3", "--no-chat-template", *flags))
    difference = max(np.abs(a.scores - b.scores).max() for a, b in zip(plain, other, strict=True))
    assert (difference < 1e-5) == (flags[0] != "--num-shots")


def test_prompts_that_are_too_long_lose_shots(folder, caplog):
    with caplog.at_level(logging.INFO):
        results = run(configs("evaluation", folder, "--seq-length", "128", "--max-eval-samples", "2"))
    assert {shots for result in results for shots in result.shots} < {0, 1, 2, 3, 4}
    assert [r.getMessage() for r in caplog.records if "longer" in r.getMessage()] == [
        "4 of 4 prompts were longer than the model's sequence: their first shots were left out; 0 questions lost their "
        "beginning"]
