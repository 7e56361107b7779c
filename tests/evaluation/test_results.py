"""Tables to the letter, totals weighted by questions, standard errors, comparison of two evaluations."""

import math

import pytest

from mindspeed_llm.config.command_line import parse
from mindspeed_llm.config.errors import UserError
from mindspeed_llm.tasks import evaluation
from mindspeed_llm.tasks.evaluation.comparison import compare, difference, mcnemar_exact
from mindspeed_llm.tasks.evaluation.results import (QuestionResult, SubjectResult, by_category, category_table, summary,
                                                    table, write_results)


def result(name, scores):
    return SubjectResult(name, tuple(
        QuestionResult(f"{name}{number}", "A", "A" if score else "B", score, (-1.0, -2.0), "", 0)
        for number, score in enumerate(scores)))


def some(name, right, questions):
    return result(name, [1.0] * right + [0.0] * (questions - right))


def test_table_is_the_documented_one():
    """The block in MindSpeed-LLM's documentation, with its 387 questions."""
    results = [some("abstract_algebra", 72, 100), some("astronomy", 141, 152), some("anatomy", 108, 135)]
    assert "\n" + table(results) == """
             subject   question_n   acc
0   abstract_algebra          100   0.720000
1          astronomy          152   0.927632
2            anatomy          135   0.800000
3              total          387   0.829457"""


def test_total_is_weighted_by_questions_and_has_an_error():
    entry = summary([some("a", 1, 4), some("b", 1, 1)])
    assert (entry.question_n, entry.right, entry.acc) == (5, 2, 0.4)
    assert entry.stderr == pytest.approx(math.sqrt(0.4 * 0.6 / 4))  # of n - 1 degrees of freedom
    assert summary([some("b", 1, 1)]).stderr is None
    assert summary([result("c", [0.25, 0.5])]).right == 0.75


def test_categories():
    groups = by_category([some("a", 1, 2), some("b", 2, 2), some("x", 0, 3)], {"b": "two", "a": "one", "c": "three"})
    assert {name: (entry.question_n, entry.acc) for name, entry in groups.items()} == {"two": (2, 1.0), "one": (2, 0.5)}
    assert category_table(groups).split("\n")[1] == "two            2   1.000000   0.000000"


def test_mcnemar():
    """Ten discordant pairs, two of one kind: 2 * (1 + 10 + 45) / 1024, as in tables of the sign test."""
    assert mcnemar_exact(2, 8) == mcnemar_exact(8, 2) == pytest.approx(112 / 1024)
    assert mcnemar_exact(0, 0) == mcnemar_exact(3, 3) == 1.0
    assert 0 < mcnemar_exact(6000, 6500) < 1e-4


def test_difference_is_paired():
    entry = difference([(1.0, 1.0)] * 6 + [(0.0, 1.0)] * 3 + [(1.0, 0.0)])
    assert (entry.a, entry.b, entry.only_a, entry.only_b) == (0.7, 0.9, 1, 3)
    assert entry.stderr == pytest.approx(math.sqrt((4 - 10 * 0.2**2) / 9 / 10)) and entry.p == pytest.approx(10 / 16)
    parts = difference([(0.2, 0.4), (0.5, 1.0), (0.1, 0.3)])
    assert 0 < parts.p < 0.01 and difference([(0.5, 0.5)]).p == 1.0


def folders(tmp_path, *scores):
    for name, values in zip("AB", scores, strict=True):
        write_results(str(tmp_path / name), "mmlu", [result("law", values)], {}, {})
    return str(tmp_path / "A"), str(tmp_path / "B")


def test_compare(tmp_path, capsys):
    a, b = folders(tmp_path, [1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 0.0])
    evaluation.run(parse("evaluation", ["--compare", a, b]))
    text = capsys.readouterr().out
    assert "law            4   0.250000   0.750000   +0.50000   0.288675        0        2   0.5000" in text
    assert text.splitlines()[-1] == "B - A = +0.50000, 95% interval -0.06580 to +1.06580, p = 0.5"


def test_compare_what_cannot_be_compared(tmp_path):
    a, b = folders(tmp_path, [1.0, 0.0], [1.0, 1.0, 0.0])
    with pytest.raises(UserError, match=r"mmlu was not asked the same questions \(first difference: law, number 3\)"):
        compare(a, b)
    with pytest.raises(FileNotFoundError, match="no such directory"):
        compare(a, str(tmp_path / "absent"))
    with pytest.raises(UserError, match="no benchmark whose"):
        compare(a, str(tmp_path))
    with pytest.raises(UserError, match="takes two directories"):
        parse("evaluation", ["--compare", a])
