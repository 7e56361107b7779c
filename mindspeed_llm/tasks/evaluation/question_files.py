"""Multiple-choice questions from CSV files of the original MMLU layout.

No header; six columns: question, option A, B, C, D, letter of the right one. `test/<subject>_test.csv` holds the
questions, `dev/<subject>_dev.csv` beside it the solved examples.
"""

import csv
from dataclasses import asdict, dataclass
from pathlib import Path

from mindspeed_llm.config.errors import UserError
from mindspeed_llm.tasks.evaluation.prompts import LETTERS

COLUMNS = 2 + len(LETTERS)


@dataclass(frozen=True)
class Question:
    """A question, its options in the order of the letters, and the letter of the right one."""

    text: str
    options: tuple[str, ...]
    answer: str

    @property
    def shot(self) -> tuple[str, tuple[str, ...], str]:
        """As `prompts.format_prompt` takes a solved question."""
        return self.text, self.options, self.answer


@dataclass(frozen=True)
class Subject:
    """A subject by its file's name, its questions, and the solved examples to show first."""

    name: str
    questions: tuple[Question, ...]
    shots: tuple[Question, ...]

    def to_dict(self) -> dict:
        """JSON-ready."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> "Subject":
        """Inverse of `to_dict`."""
        questions, shots = ([Question(item["text"], tuple(item["options"]), item["answer"]) for item in values[key]]
                            for key in ("questions", "shots"))
        return cls(values["name"], tuple(questions), tuple(shots))


def read_subjects(test_directory: str, num_shots: int, max_samples: int | None = None) -> list[Subject]:
    """All subjects of a directory, by name.

    Args:
        test_directory: holds `<subject>_test.csv`.
        num_shots: solved examples of each subject, the first ones of `../dev/<subject>_dev.csv`; 0 reads no dev file.
        max_samples: at most so many questions of each subject, the first ones.

    Raises UserError or FileNotFoundError naming file and line.
    """
    directory = Path(test_directory)
    if not directory.is_dir():
        raise FileNotFoundError(f"--task-data-path {test_directory}: no such directory")
    files = sorted(directory.glob("*_test.csv"))
    if not files:
        inside = directory / "test"
        hint = f"give {inside}" if any(inside.glob("*_test.csv")) else "give MMLU's test/ directory"
        raise FileNotFoundError(f"--task-data-path {test_directory} holds no <subject>_test.csv: {hint}")
    subjects = []
    for file in files:
        name = file.name.removesuffix("_test.csv")
        shots = _shots(directory.resolve().parent / "dev" / f"{name}_dev.csv", num_shots) if num_shots else ()
        subjects.append(Subject(name, tuple(read_questions(file)[:max_samples]), shots))
    return subjects


def read_questions(file: Path) -> list[Question]:
    """The questions of one CSV file. Every cell is text ("None" and "NA" are answers like any other).

    Raises UserError when the file is empty or no UTF-8, or a row has not six columns or no letter at its end.
    """
    questions: list[Question] = []
    try:
        with open(file, encoding="utf-8-sig", newline="") as stream:
            reader = csv.reader(stream, strict=True)
            line = 1
            for row in reader:
                if row:
                    questions.append(_question(row, f"{file} line {line}"))
                line = reader.line_num + 1
    except UnicodeDecodeError as problem:
        raise UserError(f"{file} is not UTF-8 text ({problem.reason} at byte {problem.start}): save it as "
                        "UTF-8") from None
    except csv.Error as problem:
        raise UserError(f"{file} line {line} is not CSV ({problem}): is a quotation mark missing?") from None
    if not questions:
        raise UserError(f"{file} is empty: one question a line is wanted, or remove the file")
    return questions


def _question(row: list[str], place: str) -> Question:
    if len(row) != COLUMNS:
        raise UserError(f"{place} has {len(row)} columns, {COLUMNS} are wanted: question, {', '.join(LETTERS)}, answer "
                        "(text with commas needs quotation marks)")
    answer = row[-1].strip()
    if answer not in LETTERS:
        raise UserError(f"{place}: the last column is {answer!r}, one of {', '.join(LETTERS)} is wanted (the file has "
                        "no header line)")
    return Question(row[0], tuple(row[1:-1]), answer)


def _shots(file: Path, count: int) -> tuple[Question, ...]:
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing: put MMLU's dev/ beside test/, or evaluate with --num-shots 0")
    questions = read_questions(file)
    if len(questions) < count:
        raise UserError(f"{file} has {len(questions)} solved examples, --num-shots asks for {count}: use "
                        f"--num-shots {len(questions)}")
    return tuple(questions[:count])
