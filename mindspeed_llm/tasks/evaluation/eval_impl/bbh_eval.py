"""BIG-Bench Hard: 27 files of hard questions, answered in words (Suzgun et al., 2022, "Challenging BIG-Bench Tasks and
Whether Chain-of-Thought Can Solve Them").

Files: `bbh/<subject>.json`, an object `{"examples": [{"input", "target"}]}`; solved examples from
`cot-prompts/<subject>.txt` beside it: blocks `Q: ...` and `A: Let's think step by step. ... So the answer is X.`, of
which only the last sentence is shown without --chain-of-thought.
"""

import re
from pathlib import Path
from typing import Any

from mindspeed_llm.config.errors import UserError
from mindspeed_llm.tasks.evaluation.eval_impl.categories import BBH
from mindspeed_llm.tasks.evaluation.extraction import after_answer_is
from mindspeed_llm.tasks.evaluation.prompts import Form, Question
from mindspeed_llm.tasks.evaluation.question_files import (Source, Subject, field_text, parse_record, read_json,
                                                           read_text)
from mindspeed_llm.tasks.evaluation.task import Task


def question_of(record: dict[str, Any]) -> Question:
    """An example of the file."""
    return Question(field_text(record, "input"), answer=bare(field_text(record, "target")))


def read(source: Source) -> list[Subject]:
    """See `Task.read`."""
    subjects = []
    for file in source.files("*.json", hint="give BIG-Bench Hard's bbh/ directory"):
        examples = read_json(file).get("examples")
        if not isinstance(examples, list) or not examples:
            raise UserError(f"{file} has no list `examples`")
        questions = [parse_record(question_of, example, f"{file}, example {number}")
                     for number, example in enumerate(examples, start=1)]
        shots = source.shots(source.directory.resolve().parent / "cot-prompts" / f"{file.stem}.txt", read_solved)
        subjects.append(Subject(file.stem, tuple(questions[:source.max_samples]), shots))
    return subjects


def read_solved(file: Path) -> list[Question]:
    """The solved examples of a text file of the authors."""
    solved = []
    for place, block in enumerate(re.split(r"(?m)^Q: ", read_text(file))[1:], start=1):
        question, mark, way = block.partition("\nA:")
        answer = re.search(r"So the answer is (.*?)\.?\s*$", way, re.DOTALL)
        if not mark or not answer:
            raise UserError(f"{file}: example {place} has no line 'A: ... So the answer is ...'")
        solved.append(Question(question.strip(), answer=bare(answer.group(1)),
                               details={"way": way.strip(), "shown": answer.group(1)}))
    return solved


def bare(answer: str) -> str:
    """The letter of an answer such as `(B)`; any other answer as it is."""
    found = re.fullmatch(r"\(([A-Z])\)", answer.strip())
    return found.group(1) if found else answer.strip()


def extract(text: str, _question: Question) -> str:
    """What follows "answer is": the letter in parentheses, else the words up to the line's end, without a full stop."""
    tail = after_answer_is(text).split("\n")[0].replace("**", "").strip()
    found = re.match(r"\(([A-Z])\)", tail)
    return found.group(1) if found else bare(tail.removesuffix("."))


def extract_original(text: str, _question: Question) -> str:
    """MindSpeed-LLM's rule for written answers: the first line, from its last parenthesis on, up to a full stop."""
    line = (text.strip().splitlines() or [""])[0]
    return re.split(r"[.)]", re.sub(r".*\(", "", line))[0].strip()


TASK = Task("bbh", __name__, read,
            {"en": Form(lambda question: f"Q: {question.text}\nA:",
                        solution=lambda shot: f"So the answer is {shot.details['shown']}.")},
            reasoning={"en": Form(lambda question: f"Q: {question.text}\nA:",
                                  solution=lambda shot: shot.details["way"])},
            scoring="generate", num_shots=3, most_shots=3, max_new_tokens=32, until=("\n\n", "Q:"),
            template_until=("Q:",), extract=extract, extract_original=extract_original, categories=BBH,
            subject_line="{subject} acc = {right}/{questions}={acc}", total_line="bbh acc = {right}/{questions}={acc}",
            time_line="bbh Running Time: {seconds}")
