"""AGIEval: questions of human examinations (Zhong et al., 2023, "AGIEval: A Human-Centric Benchmark for Evaluating
Foundation Models").

Files: `<subject>.jsonl` of lines `{"passage", "question", "options", "label", "answer"}`. Questions with options and
one right letter are rated; those with several right letters and those without options are written. Zero-shot.
"""

from typing import Any

from mindspeed_llm.tasks.evaluation import extraction
from mindspeed_llm.tasks.evaluation.eval_impl.categories import AGIEVAL, AGIEVAL_EXAMS
from mindspeed_llm.tasks.evaluation.prompts import Form, Question
from mindspeed_llm.tasks.evaluation.question_files import Source, Subject, field_text, field_texts, read_json_lines
from mindspeed_llm.tasks.evaluation.task import Task

ENDINGS = {"Chinese": "答案是：", "English": "The answer is"}


def read(source: Source) -> list[Subject]:
    """See `Task.read`."""
    subjects = []
    for file in source.files("*.jsonl", hint="give AGIEval's data/v1_1/ directory"):
        language = AGIEVAL.get(file.stem, "English")
        questions = read_json_lines(file, lambda record, language=language: question_of(record, language))
        subjects.append(Subject(file.stem, tuple(questions[:source.max_samples])))
    return subjects


def question_of(record: dict[str, Any], language: str) -> Question:
    """A line of the file."""
    label, options = record.get("label"), field_texts(record, "options") if record["options"] else ()
    passage = field_text(record, "passage") if record.get("passage") else ""
    text = "\n".join(part for part in (passage, field_text(record, "question"), *options) if part)
    kind = {"ending": ENDINGS[language], "language": language}
    if isinstance(label, list) or not label:
        if not label and record["answer"] is None:
            raise ValueError("the fields 'label' and 'answer' are both empty: one of them is wanted")
        answer = "".join(field_texts(record, "label")) if label else extraction.math_text(str(record["answer"]))
        return Question(text, answer=answer, details=kind | {"several": "yes"} if label else kind)
    question = Question(text, options, field_text(record, "label"), kind)
    if options and label not in list(question.letters):
        raise ValueError(f"the label is {label!r}, one of {', '.join(question.letters)} is wanted")
    return question


def extract(text: str, question: Question) -> str:
    """A letter, several, or the result of a calculation."""
    if question.options:
        return extraction.letter(text, question)
    return (extraction.several_letters if "several" in question.details else extraction.formula)(text, question)


def extract_original(text: str, _question: Question) -> str:
    """MindSpeed-LLM's rule: the first line without dollar signs and parentheses."""
    return (text.lstrip().splitlines() or [""])[0].translate(str.maketrans("", "", "$()")).strip()


def _ask(question: Question) -> str:
    return f"{question.text}\n{question.details['ending']}"


TASK = Task("agieval", __name__, read, {"": Form(_ask)},
            alternative={"": Form(_ask, header="{subject}\n",
                                  title=lambda subject: AGIEVAL_EXAMS.get(subject, subject))},
            max_new_tokens=32, until=("\n\n",), extract=extract, extract_original=extract_original, categories=AGIEVAL,
            subject_line="{subject} acc = {right}/{questions}={acc:e}",
            total_line="AGIEval acc = {right}/{questions}={acc:e}", time_line="agi_eval Running Time: {seconds}")
