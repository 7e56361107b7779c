"""C-Eval: multiple choice in Chinese, 52 subjects (Huang et al., 2023, "C-Eval: A Multi-Level Multi-Discipline Chinese
Evaluation Suite for Foundation Models").

Files: `val/<subject>_val.csv` with the header `id,question,A,B,C,D,answer`, `dev/<subject>_dev.csv` beside it (the
public test files have no answers).
"""

from mindspeed_llm.tasks.evaluation import extraction
from mindspeed_llm.tasks.evaluation.eval_impl.categories import CEVAL, CEVAL_TITLES
from mindspeed_llm.tasks.evaluation.prompts import STANDARD, Form, lettered
from mindspeed_llm.tasks.evaluation.question_files import Source, Subject, csv_subjects
from mindspeed_llm.tasks.evaluation.task import Task

HEADER = "以下是中国关于{subject}考试的单项选择题，请选出其中的正确答案。\n\n"


def read(source: Source) -> list[Subject]:
    """See `Task.read`."""
    return csv_subjects(source, ["*_val.csv", "*_test.csv"], "../dev/{subject}_dev.csv", header=True,
                        hint="give C-Eval's val/ directory")


def title(subject: str) -> str:
    """The Chinese name of a subject."""
    return CEVAL_TITLES.get(subject, subject)


CHINESE = Form(lambda question: lettered(question, "答案："), header=HEADER, title=title, gap="")
# The request of the CMMLU authors, and a colon and a space of ASCII before the letter.
ALTERNATIVE = Form(lambda question: lettered(question, "答案:"), title=title,
                   header="以下是关于{subject}的单项选择题，请直接给出正确答案的选项。\n\n")

TASK = Task("ceval", __name__, read, {"zh": CHINESE, "en": STANDARD}, alternative={"zh": ALTERNATIVE}, num_shots=5,
            most_shots=5, max_new_tokens=2, extract=extraction.letter, extract_original=extraction.first_capital,
            categories=CEVAL, title=title, total_line="ceval acc = {right}/{questions}={acc}",
            time_line="Ceval Running Time: {seconds}")
