"""Right and wrong: of subjects, categories and in total, with standard errors, as a table and as files."""

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from mindspeed_llm.checkpoint.files import write_text
from mindspeed_llm.tasks.evaluation.prompts import ALPHABET


@dataclass(frozen=True)
class QuestionResult:
    """One question: the right answer, the model's and its score from 0 to 1.

    key: a hash of what was asked, by which two evaluations are compared. log_probs: of each choice, where they were
    rated (else None). text: what the model wrote (else ""). shots: solved examples that were in the prompt.
    """

    key: str
    answer: str
    prediction: str
    score: float
    log_probs: tuple[float, ...] | None
    text: str
    shots: int


@dataclass(frozen=True)
class SubjectResult:
    """The questions of one subject, in the order of its file."""

    name: str
    questions: tuple[QuestionResult, ...]

    @property
    def right(self) -> int | float:
        """Questions answered correctly, or the sum of scores where there are parts of a point."""
        total = math.fsum(question.score for question in self.questions)
        return int(total) if total == int(total) else total

    @property
    def predictions(self) -> list[str]:
        """The model's answers."""
        return [question.prediction for question in self.questions]

    def to_dict(self) -> dict:
        """JSON-ready."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> "SubjectResult":
        """Inverse of `to_dict`."""
        return cls(values["name"], tuple(QuestionResult(**{**item, "log_probs": _as_tuple(item["log_probs"])})
                                         for item in values["questions"]))


@dataclass(frozen=True)
class Summary:
    """Mean score of some questions. `stderr`: its standard error, sample standard deviation / sqrt(n); None for one
    question (Miller, "Adding Error Bars to Evals", 2024, arXiv:2411.00640, section 2).
    """

    question_n: int
    right: int | float
    acc: float
    stderr: float | None


def summary(results: Sequence[SubjectResult]) -> Summary:
    """Over all questions of all `results`, at least one."""
    scores = [question.score for result in results for question in result.questions]
    total = sum(result.right for result in results)
    mean = total / len(scores)
    spread = math.fsum((score - mean) ** 2 for score in scores)
    stderr = math.sqrt(spread / (len(scores) - 1) / len(scores)) if len(scores) > 1 else None
    return Summary(len(scores), total, mean, stderr)


def by_category(results: Sequence[SubjectResult], categories: Mapping[str, str]) -> dict[str, Summary]:
    """The summary of each category that occurs, in the order of `categories`."""
    grouped = {category: [result for result in results if categories.get(result.name) == category]
               for category in dict.fromkeys(categories.values())}
    return {category: summary(members) for category, members in grouped.items() if members}


def table(results: Sequence[SubjectResult]) -> str:
    """The documented table: columns subject, question_n and acc; the last row is the total.

    Three spaces between columns, numbers of rows at the left, subject and question_n to the right, the title acc above
    the beginning of its numbers, which have six digits.
    """
    rows = [(result.name, summary([result])) for result in results] + [("total", summary(results))]
    number, subject, count = len(str(len(rows) - 1)), max(len("subject"), *(len(name) for name, _ in rows)), 10
    lines = [f"{'':{number}}   {'subject':>{subject}}   {'question_n':>{count}}   acc"]
    lines += [f"{place:<{number}}   {name:>{subject}}   {entry.question_n:>{count}}   {entry.acc:.6f}"
              for place, (name, entry) in enumerate(rows)]
    return "\n".join(lines)


def category_table(categories: Mapping[str, Summary]) -> str:
    """The same of categories, with standard errors."""
    width = max(map(len, categories))
    lines = [f"{'category':>{width}}   question_n   acc        stderr"]
    lines += [f"{name:>{width}}   {entry.question_n:>10}   {entry.acc:.6f}   "
              f"{'-' if entry.stderr is None else f'{entry.stderr:.6f}'}" for name, entry in categories.items()]
    return "\n".join(lines)


def write_results(directory: str, task: str, results: Sequence[SubjectResult], categories: Mapping[str, str],
                  settings: dict) -> None:
    """Write `<task>_results.json` (settings, accuracies), `<task>_subjects.csv`, `<task>_answers.csv` (one line a
    question) and `<task>_accuracy.png`.

    `directory` is made when missing; each file appears whole or not at all.
    """
    from mindspeed_llm.tasks.evaluation.chart import write_chart

    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    groups, total = by_category(results, categories), summary(results)
    content = {
        "task": task, "settings": settings,
        "subjects": [{"subject": result.name, "category": categories.get(result.name), **asdict(summary([result]))}
                     for result in results],
        "categories": {name: asdict(entry) for name, entry in groups.items()}, "total": asdict(total),
    }
    write_text(folder / f"{task}_results.json", json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    rows = [("subject", result.name, categories.get(result.name, ""), *_cells(summary([result]))) for result in results]
    rows += [("category", name, name, *_cells(entry)) for name, entry in groups.items()]
    rows.append(("total", "total", "", *_cells(total)))
    write_text(folder / f"{task}_subjects.csv",
               _csv(("level", "name", "category", "question_n", "right", "acc", "stderr"), rows))
    write_text(folder / f"{task}_answers.csv", _answers(results))
    write_chart(folder / f"{task}_accuracy.png", task, results, categories)


def _answers(results: Sequence[SubjectResult]) -> str:
    most = max(len(question.log_probs or ()) for result in results for question in result.questions)
    rows = []
    for result in results:
        for number, question in enumerate(result.questions, start=1):
            rated = [f"{value:.6g}" for value in question.log_probs or ()]
            rows.append((result.name, number, question.answer, question.prediction, f"{question.score:g}",
                         *rated, *[""] * (most - len(rated)), question.shots, question.key, question.text))
    return _csv(("subject", "number", "answer", "prediction", "score",
                 *(f"log_prob_{letter}" for letter in ALPHABET[:most]), "shots", "key", "text"), rows)


def _csv(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return buffer.getvalue()


def _cells(entry: Summary) -> tuple[object, ...]:
    return (entry.question_n, entry.right, f"{entry.acc:.6f}", "" if entry.stderr is None else f"{entry.stderr:.6f}")


def _as_tuple(values: list[float] | None) -> tuple[float, ...] | None:
    return None if values is None else tuple(values)
