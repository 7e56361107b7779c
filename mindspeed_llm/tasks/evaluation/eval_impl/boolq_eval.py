"""BoolQ: yes or no to a question about a passage (Clark et al., 2019, "BoolQ: Exploring the Surprising Difficulty of
Natural Yes/No Questions").

Files: `*dev*.jsonl` or any other, a line `{"question", "passage", "answer": true|false}`; all in one subject. The
answer is the likelier of Yes and No, as MindSpeed-LLM has it.
"""

import re
from typing import Any

from mindspeed_llm.tasks.evaluation.extraction import first_capital
from mindspeed_llm.tasks.evaluation.prompts import Form, Question
from mindspeed_llm.tasks.evaluation.question_files import Source, Subject, field_text, read_json_lines
from mindspeed_llm.tasks.evaluation.task import Task


def question_of(record: dict[str, Any]) -> Question:
    """A line of the file."""
    if not isinstance(record["answer"], bool):
        raise ValueError(f"the answer is {record['answer']!r}, true or false is wanted (the public test file has none)")
    return Question(f"{field_text(record, 'passage')}\nQuestion: {field_text(record, 'question')}?", ("Yes", "No"),
                    "AB"[not record["answer"]])


def read(source: Source) -> list[Subject]:
    """See `Task.read`."""
    files = source.files("*dev*.jsonl", "*val*.jsonl", "*.jsonl", hint="give the directory of BoolQ's dev.jsonl")
    questions = [question for file in files for question in read_json_lines(file, question_of)]
    return [Subject("Boolq_dataset", tuple(questions[:source.max_samples]))]


def yes_or_no(text: str, _question: Question) -> str:
    """A for yes or true, B for no or false, whichever comes first, and these letters themselves."""
    found = re.search(r"\b(yes|true|no|false)\b|(?<![A-Za-z])([AB])(?![A-Za-z])", text, re.IGNORECASE)
    if not found:
        return ""
    return "A" if found.group().lower() in ("yes", "true", "a") else "B"


def _as_options(question: Question) -> str:
    return f"{question.text}\nA. Yes\nB. No\nAnswer:"


TASK = Task("boolq", __name__, read, {"en": Form(lambda question: f"{question.text}\nAnswer:",
                                                 choices=lambda question: question.options)},
            alternative={"en": Form(_as_options)}, max_new_tokens=4, extract=yes_or_no, extract_original=first_capital,
            total_line="boolq acc = {right}/{questions}={acc}", time_line="Boolq Running Time: {seconds}")
