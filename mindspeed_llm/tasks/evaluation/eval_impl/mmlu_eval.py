"""MMLU: the letter of the right option (Hendrycks et al., 2021, "Measuring Massive Multitask Language Understanding").

Files: `test/<subject>_test.csv` (no header; question, four options, letter), `dev/<subject>_dev.csv` beside it.
"""

from mindspeed_llm.tasks.evaluation import extraction
from mindspeed_llm.tasks.evaluation.eval_impl.categories import MMLU
from mindspeed_llm.tasks.evaluation.prompts import STANDARD, Form, Question, letters
from mindspeed_llm.tasks.evaluation.question_files import Source, Subject, csv_subjects
from mindspeed_llm.tasks.evaluation.task import Task


def read(source: Source) -> list[Subject]:
    """See `Task.read`."""
    inside = source.directory / "test"
    hint = f"give {inside}" if any(inside.glob("*_test.csv")) else "give MMLU's test/ directory"
    return csv_subjects(source, ["*_test.csv"], "../dev/{subject}_dev.csv", header=False, hint=hint)


def _in_parentheses(question: Question) -> str:
    options = [f"({letter}) {option}" for letter, option in zip(question.letters, question.options, strict=True)]
    return "\n".join([f"Question: {question.text}", *options, "Answer:"])


# A request instead of a heading, `Question:` before each question, letters in parentheses.
ALTERNATIVE = Form(_in_parentheses, choices=lambda question: [f"({letter})" for letter in letters(question)],
                   header="Choose the right option for each question about {subject}.\n\n")

TASK = Task("mmlu", __name__, read, {"en": STANDARD}, alternative={"en": ALTERNATIVE}, num_shots=5, most_shots=5,
            max_new_tokens=1, extract=extraction.letter, extract_original=extraction.letter_original,
            categories=MMLU, subject_line="mmlu acc = {right}/{questions}={acc}",
            total_line="mmlu acc = {right}/{questions}={acc}", time_line="MMLU Running Time:, {seconds}")
