"""Right and wrong: per subject and in total, as a table and as files."""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from mindspeed_llm.checkpoint.files import write_text
from mindspeed_llm.tasks.evaluation.prompts import LETTERS


@dataclass(frozen=True)
class SubjectResult:
    """Of one subject: right letters, the model's logits of the four, fp32 `(questions, 4)`, shots in each prompt."""

    name: str
    answers: tuple[str, ...]
    scores: np.ndarray
    shots: tuple[int, ...]

    @property
    def predictions(self) -> list[str]:
        """The letter with the highest logit; among equals the first."""
        return [LETTERS[index] for index in self.scores.argmax(axis=1)]

    @property
    def right(self) -> int:
        """Questions answered correctly."""
        return sum(given == wanted for given, wanted in zip(self.predictions, self.answers, strict=True))


def table(results: Sequence[SubjectResult]) -> pd.DataFrame:
    """Columns subject, question_n and acc (share of right answers); the last row is the total."""
    rows = [(result.name, len(result.answers), result.right / len(result.answers)) for result in results]
    right, questions = totals(results)
    return pd.DataFrame([*rows, ("total", questions, right / questions)], columns=["subject", "question_n", "acc"])


def totals(results: Sequence[SubjectResult]) -> tuple[int, int]:
    """(right answers, questions) over all subjects."""
    return sum(result.right for result in results), sum(len(result.answers) for result in results)


def write_results(directory: str, task: str, results: Sequence[SubjectResult], settings: dict) -> None:
    """Write `<task>_results.json` (settings, accuracies) and `<task>_answers.csv` (one line a question).

    `directory` is made when missing; each file appears whole or not at all.
    """
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    right, questions = totals(results)
    summary = {
        "task": task, "settings": settings,
        "subjects": [{"subject": result.name, "question_n": len(result.answers), "right": result.right,
                      "acc": result.right / len(result.answers)} for result in results],
        "total": {"question_n": questions, "right": right, "acc": right / questions},
    }
    write_text(folder / f"{task}_results.json", json.dumps(summary, indent=2) + "\n")
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(("subject", "number", "answer", "prediction", *(f"logit_{letter}" for letter in LETTERS), "shots"))
    for result in results:
        rows = zip(result.answers, result.predictions, result.scores.tolist(), result.shots, strict=True)
        for number, (answer, prediction, scores, shots) in enumerate(rows, start=1):
            writer.writerow((result.name, number, answer, prediction, *(f"{score:.6g}" for score in scores), shots))
    write_text(folder / f"{task}_answers.csv", buffer.getvalue())
