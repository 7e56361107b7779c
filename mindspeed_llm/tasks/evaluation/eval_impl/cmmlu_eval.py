"""CMMLU: multiple choice in Chinese, 67 subjects (Li et al., 2023, "CMMLU: Measuring massive multitask language
understanding in Chinese").

Files: `test/<subject>.csv` with the header `,Question,A,B,C,D,Answer`, `dev/<subject>.csv` beside it.
"""

from mindspeed_llm.tasks.evaluation import extraction
from mindspeed_llm.tasks.evaluation.eval_impl.categories import CMMLU, CMMLU_TITLES
from mindspeed_llm.tasks.evaluation.eval_impl.ceval_exam import HEADER
from mindspeed_llm.tasks.evaluation.prompts import STANDARD, Form, Question, lettered
from mindspeed_llm.tasks.evaluation.question_files import Source, Subject, csv_subjects
from mindspeed_llm.tasks.evaluation.task import Task


def read(source: Source) -> list[Subject]:
    """See `Task.read`."""
    return csv_subjects(source, ["*.csv"], "../dev/{subject}.csv", header=True, hint="give CMMLU's test/ directory")


def title(subject: str) -> str:
    """The Chinese name of a subject."""
    return CMMLU_TITLES.get(subject, subject)


def _with_topic(question: Question) -> str:
    return "题目：" + lettered(question, "答案是：")


CHINESE = Form(lambda question: lettered(question, "答案："), header=HEADER, title=title, gap="")
# The form of the authors.
ALTERNATIVE = Form(_with_topic, header="以下是关于{subject}的单项选择题，请直接给出正确答案的选项。\n\n", title=title, gap="")

TASK = Task("cmmlu", __name__, read, {"zh": CHINESE, "en": STANDARD}, alternative={"zh": ALTERNATIVE}, num_shots=5,
            most_shots=5, max_new_tokens=2, extract=extraction.letter, extract_original=extraction.first_capital,
            categories=CMMLU, title=title, total_line="cmmlu acc = {right}/{questions}={acc}",
            time_line="CMMLU Running Time:, {seconds}")
