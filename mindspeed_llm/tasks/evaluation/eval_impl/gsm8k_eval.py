"""GSM8K: grade-school mathematics, the answer a number (Cobbe et al., 2021, "Training Verifiers to Solve Math Word
Problems").

Files: `test.jsonl` of lines `{"question", "answer"}`, the answer ending `#### {number}`; solved examples from
`train.jsonl` beside it. All in one subject.
"""

import re
from typing import Any

from mindspeed_llm.tasks.evaluation import extraction
from mindspeed_llm.tasks.evaluation.prompts import Form, Question
from mindspeed_llm.tasks.evaluation.question_files import Source, Subject, field_text, read_json_lines
from mindspeed_llm.tasks.evaluation.task import Task


def question_of(record: dict[str, Any]) -> Question:
    """A line of the file; marks of the calculator (`<<3*4=12>>`) are left out of the way to the answer."""
    way, mark, number = field_text(record, "answer").rpartition("####")
    if not mark:
        raise ValueError("the answer has no '#### number' at its end")
    return Question(field_text(record, "question"), answer=extraction.plain_number(number.strip()),
                    details={"way": re.sub(r"<<.*?>>", "", way).strip()})


def read(source: Source) -> list[Subject]:
    """See `Task.read`."""
    files = source.files("*test*.jsonl", "*.jsonl", hint="give the directory of GSM8K's test.jsonl")
    questions = [question for file in files for question in read_json_lines(file, question_of)]
    shots = source.shots(source.directory / "train.jsonl", lambda file: read_json_lines(file, question_of))
    return [Subject("Gsm8k_dataset", tuple(questions[:source.max_samples]), shots)]


def solution(shot: Question) -> str:
    """The way, then the number."""
    return f"{shot.details['way']}\nThe answer is {shot.answer}."


TASK = Task("gsm8k", __name__, read,
            {"en": Form(lambda question: f"Question: {question.text}\nAnswer:", solution=solution)},
            reasoning={"en": Form(lambda question: f"Question: {question.text}\nLet's think step by step\nAnswer:",
                                  solution=solution)},
            scoring="generate", num_shots=4, most_shots=5, max_new_tokens=256, until=("Question:", "Q:"),
            extract=extraction.last_number, extract_original=extraction.number_after_answer_is,
            total_line="gsm8k acc = {right}/{questions}={acc}", time_line="GSM8k Running Time: {seconds}")
