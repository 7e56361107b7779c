"""HellaSwag: the ending that makes sense (Zellers et al., 2019, "HellaSwag: Can a Machine Really Finish Your
Sentence?").

Files: `*val*.jsonl` or any other, of the authors' layout `{"activity_label", "ctx_a", "ctx_b", "endings", "label"}` or
of the prepared one `{"query", "choices", "gold"}`; all in one subject. The answer is the ending of the highest
log-probability for its length in bytes, the usual measure; `--alternative-prompt` asks for a letter instead, as
MindSpeed-LLM does.
"""

import re
from typing import Any

from mindspeed_llm.tasks.evaluation import extraction
from mindspeed_llm.tasks.evaluation.prompts import Form, Question, lettered
from mindspeed_llm.tasks.evaluation.question_files import Source, Subject, field_text, field_texts, read_json_lines
from mindspeed_llm.tasks.evaluation.task import Task


def question_of(record: dict[str, Any]) -> Question:
    """A line of the file."""
    if "query" in record:
        context, endings, label = field_text(record, "query"), field_texts(record, "choices"), record["gold"]
    else:
        sentence = f"{field_text(record, 'ctx_a')} {field_text(record, 'ctx_b').capitalize()}".strip()
        context = f"{field_text(record, 'activity_label')}: {sentence}"
        endings, label = field_texts(record, "endings"), record["label"]
    if len(endings) != 4 or str(label) not in ("0", "1", "2", "3"):
        raise ValueError(f"{len(endings)} endings and the label {label!r}: 4 endings and a label of 0 to 3 are wanted")
    return Question(_clean(context), tuple(map(_clean, endings)), "ABCD"[int(label)])


def read(source: Source) -> list[Subject]:
    """See `Task.read`."""
    files = source.files("*val*.jsonl", "*.jsonl", hint="give the directory of HellaSwag's hellaswag_val.jsonl")
    questions = [question for file in files for question in read_json_lines(file, question_of)]
    return [Subject("HellaSwag", tuple(questions[:source.max_samples]))]


def _clean(text: str) -> str:
    """Without the marks of WikiHow's layout, `[title]` and the like."""
    return re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". ")).replace("  ", " ")


def _which_ending(question: Question) -> str:
    context = question.text.partition(": ")[2] or question.text
    asked = Question(f"{context}\nQuestion: Which ending makes the most sense?", question.options)
    return lettered(asked, "You may choose from 'A', 'B', 'C', 'D'.\nAnswer:")


TASK = Task("hellaswag", __name__, read, {"en": Form(lambda question: question.text,
                                                     choices=lambda question: question.options)},
            alternative={"en": Form(_which_ending)}, length_normalized=True, extract=extraction.letter,
            extract_original=extraction.letter_original,
            total_line="HellaSwag accuracy = {right}/{questions}={acc}", time_line="HellaSwag Running Time: {seconds}")
