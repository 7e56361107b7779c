"""Questions and the public file layouts they come in: CSV with or without a header line, JSON lines, JSON.

Every cell is text ("None", "NA", "nan" and "1.0" are answers like any other), and whatever is wrong is told with file
and line.
"""

import csv
import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mindspeed_llm.config.errors import UserError
from mindspeed_llm.data.tokenizer import Tokenizer
from mindspeed_llm.tasks.evaluation.prompts import LETTERS, Question


@dataclass(frozen=True)
class Subject:
    """Questions that are counted together, by the name of their file, and the solved examples to show first."""

    name: str
    questions: tuple[Question, ...]
    shots: tuple[Question, ...] = ()

    def to_dict(self) -> dict:
        """JSON-ready."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> "Subject":
        """Inverse of `to_dict`."""
        questions, shots = (tuple(Question(item["text"], tuple(item["options"]), item["answer"], item["details"])
                                  for item in values[key]) for key in ("questions", "shots"))
        return cls(values["name"], questions, shots)


@dataclass(frozen=True)
class Source:
    """What is read: `--task-data-path`, solved examples of each subject, at most so many questions of each.

    `tokenizer` and `max_length` serve a benchmark that makes prompts of a given number of tokens.
    """

    directory: Path
    num_shots: int = 0
    max_samples: int | None = None
    tokenizer: Callable[[], Tokenizer] | None = field(default=None, compare=False)
    max_length: int | None = None

    def files(self, *patterns: str, hint: str) -> list[Path]:
        """The files of the first pattern that has any, by name. Raises FileNotFoundError with the hint."""
        if not self.directory.is_dir():
            raise FileNotFoundError(f"--task-data-path {self.directory}: no such directory")
        for pattern in patterns:
            if found := sorted(self.directory.glob(pattern)):
                return found
        raise FileNotFoundError(f"--task-data-path {self.directory} holds no {' or '.join(patterns)}: {hint}")

    def shots(self, file: Path, read: Callable[[Path], Sequence[Question]]) -> tuple[Question, ...]:
        """The first `num_shots` questions of a file of solved examples, which is not opened when none are wanted."""
        if not self.num_shots:
            return ()
        if not file.is_file():
            raise FileNotFoundError(f"{file} is missing: put the benchmark's solved examples there, or evaluate with "
                                    "--num-shots 0")
        questions = read(file)
        if len(questions) < self.num_shots:
            raise UserError(f"{file} has {len(questions)} solved examples, --num-shots asks for {self.num_shots}: use "
                            f"--num-shots {len(questions)}")
        return tuple(questions[:self.num_shots])


def csv_subjects(source: Source, patterns: Sequence[str], shots: str, header: bool, hint: str) -> list[Subject]:
    """One subject a file, multiple choice. `shots`: the solved examples' file, `{subject}` in it, seen from the
    directory.

    A subject's name is the file's, without what the pattern adds.
    """
    subjects = []
    for file in source.files(*patterns, hint=hint):
        name = file.stem
        for pattern in patterns:
            name = name.removesuffix(pattern.removeprefix("*").removesuffix(".csv"))
        solved = source.directory.resolve() / shots.format(subject=name)
        subjects.append(Subject(name, tuple(read_choice_csv(file, header)[:source.max_samples]),
                                source.shots(solved, lambda path: read_choice_csv(path, header))))
    return subjects


def read_choice_csv(file: Path, header: bool = False) -> list[Question]:
    """Multiple-choice questions of one CSV file.

    Without a header: six columns, question, option A to D, letter. With one: columns `question`, `A` to `D`, `answer`
    in any place and case, among others. Raises UserError when the file is empty or no UTF-8, or at a row that is not
    so.
    """
    rows = list(_csv_rows(file))
    if header and rows:
        places = _columns(rows[0][1], f"{file} line 1")
        rows = [(number, [row[place] if place < len(row) else None for place in places]) for number, row in rows[1:]]
    questions = [_choice_question(row, f"{file} line {number}", header) for number, row in rows]
    if not questions:
        raise UserError(f"{file} is empty: one question a line is wanted, or remove the file")
    return questions


def read_json_lines(file: Path, parse: Callable[[dict[str, Any]], Question]) -> list[Question]:
    """A question of each line of a file of JSON objects; `parse` makes it of the object.

    Raises UserError naming the line that is no JSON object, or of which `parse` raises KeyError (a field is missing),
    ValueError or TypeError.
    """
    questions = []
    for number, line in enumerate(_text(file).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as problem:
            raise UserError(f"{file} line {number} is not JSON ({problem.msg})") from None
        questions.append(parse_record(parse, record, f"{file} line {number}"))
    if not questions:
        raise UserError(f"{file} is empty: one JSON object a line is wanted, or remove the file")
    return questions


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises UserError when it is none."""
    try:
        content = json.loads(_text(file))
    except json.JSONDecodeError as problem:
        raise UserError(f"{file} line {problem.lineno} is not JSON ({problem.msg})") from None
    if not isinstance(content, dict):
        raise UserError(f"{file} holds no JSON object")
    return content


def read_text(file: Path) -> str:
    """The text of a file. Raises UserError when it is no UTF-8."""
    return _text(file)


def parse_record(parse: Callable[[dict[str, Any]], Question], record: Any, place: str) -> Question:
    """`parse(record)`, its errors told with `place`."""
    if not isinstance(record, dict):
        raise UserError(f"{place} is no JSON object")
    try:
        return parse(record)
    except KeyError as missing:
        raise UserError(f"{place} has no field {missing}: is it a file of this benchmark?") from None
    except (TypeError, ValueError, AttributeError) as problem:
        raise UserError(f"{place}: {problem}") from None


def field_text(record: dict[str, Any], name: str) -> str:
    """A field that must be text. Raises KeyError where it is missing, TypeError where it is something else."""
    value = record[name]
    if not isinstance(value, str):
        raise TypeError(f"the field {name!r} is {json.dumps(value)[:60]}, text is wanted")
    return value


def field_texts(record: dict[str, Any], name: str) -> tuple[str, ...]:
    """A field that must be a list of texts. Raises as `field_text`."""
    value = record[name]
    if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
        raise TypeError(f"the field {name!r} is {json.dumps(value)[:60]}, a list of texts is wanted")
    return tuple(value)


def _text(file: Path) -> str:
    data = file.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        line = data.count(b"\n", 0, problem.start) + 1
        raise UserError(f"{file} line {line} is not UTF-8 text ({problem.reason} at byte {problem.start}): save it as "
                        "UTF-8") from None


def _csv_rows(file: Path) -> Iterator[tuple[int, list[str]]]:
    """(number of its first line, cells) of each row that is not empty."""
    line = 1
    reader = csv.reader(io.StringIO(_text(file), newline=""), strict=True)
    try:
        for row in reader:
            if row:
                yield line, row
            line = reader.line_num + 1
    except csv.Error as problem:
        raise UserError(f"{file} line {line} is not CSV ({problem}): is a quotation mark missing?") from None


def _columns(titles: list[str], place: str) -> list[int]:
    known = [title.strip().lower() for title in titles]
    wanted = ["question", *(letter.lower() for letter in LETTERS), "answer"]
    missing = [title for title in wanted if title not in known]
    if missing:
        raise UserError(f"{place} has no column {', '.join(missing)}: a header with question, {', '.join(LETTERS)} and "
                        "answer is wanted (C-Eval's test files have no answers: use its val/)")
    return [known.index(title) for title in wanted]


def _choice_question(row: Sequence[str | None], place: str, header: bool) -> Question:
    columns = 2 + len(LETTERS)
    if len(row) != columns or None in row:
        raise UserError(f"{place} has {sum(cell is not None for cell in row)} columns, {columns} are wanted: question, "
                        f"{', '.join(LETTERS)}, answer (text with commas needs quotation marks)")
    answer = row[-1].strip()
    if answer not in LETTERS:
        advice = "" if header else " (the file has no header line)"
        raise UserError(f"{place}: the last column is {answer!r}, one of {', '.join(LETTERS)} is wanted{advice}")
    return Question(row[0], tuple(row[1:-1]), answer)
