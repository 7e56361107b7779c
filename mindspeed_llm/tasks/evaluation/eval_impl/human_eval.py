"""HumanEval: Python functions that pass their tests (Chen et al., 2021, "Evaluating Large Language Models Trained on
Code").

Files: `*.jsonl` of lines `{"task_id", "prompt", "entry_point", "test"}`; all in one subject. The measure is pass@1 of
the likeliest answer. What the model writes is run: see `code_execution`.
"""

import re
from typing import Any

from mindspeed_llm.tasks.evaluation.code_execution import passes
from mindspeed_llm.tasks.evaluation.prompts import Form, Question
from mindspeed_llm.tasks.evaluation.question_files import Source, Subject, field_text, read_json_lines
from mindspeed_llm.tasks.evaluation.task import Task


def question_of(record: dict[str, Any]) -> Question:
    """A line of the file."""
    return Question(field_text(record, "prompt"), answer="passed",
                    details={name: field_text(record, name) for name in ("task_id", "entry_point", "test")})


def read(source: Source) -> list[Subject]:
    """See `Task.read`."""
    files = source.files("*.jsonl", hint="give the directory of HumanEval.jsonl, unpacked")
    questions = [question for file in files for question in read_json_lines(file, question_of)]
    return [Subject("HumanEval", tuple(questions[:source.max_samples]))]


def program(text: str, question: Question) -> str:
    """The prompt's imports and the function: that of a fenced block or of the text if it is whole, else the prompt's
    beginning and the text.
    """
    block = re.search(r"```\w*\n(.*?)(?:```|\Z)", text, re.DOTALL)
    code = block.group(1) if block else text
    if re.search(rf"^def {re.escape(question.details['entry_point'])}\(", code, re.MULTILINE):
        return "\n".join(re.findall(r"(?m)^(?:from|import) .*$", question.text)) + "\n" + code
    return question.text + code


def judge(code: str, question: Question) -> float:
    """1.0 when the function passes its tests."""
    test, name = question.details["test"], question.details["entry_point"]
    return float(passes(f"{code}\n{test}\ncheck({name})\n"))


TASK = Task("humaneval", __name__, read, {"en": Form(lambda question: question.text, gap="")},
            alternative={"en": Form(lambda question: f"Complete the following python code:\n{question.text}", gap="")},
            scoring="generate", max_new_tokens=1024, until=("\nclass ", "\ndef ", "\n#", "\nif ", "\nprint("),
            extract=program, judge=judge, runs_code=True, total_line="acc = {{{acc}}}",
            time_line="Human_eval Running Time: {seconds}")
