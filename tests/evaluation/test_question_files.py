"""Public file layouts: every cell is text, and a wrong row is named by file and line."""

import json
import re
from pathlib import Path

import pytest

from mindspeed_llm.config.errors import UserError
from mindspeed_llm.tasks.evaluation.eval_impl import TASKS
from mindspeed_llm.tasks.evaluation.eval_impl.needlebench_eval import judge
from mindspeed_llm.tasks.evaluation.prompts import Question
from mindspeed_llm.tasks.evaluation.question_files import Source, Subject, read_choice_csv
from tests.evaluation.layouts import write_all, write_lines, write_table
from tests.inference.tiny_job import write_csv

ROW = ("How many?", "None", "NA", "nan", "1.0", "B")


def layout(folder, test_rows=(ROW,), dev_rows=(ROW,) * 5):
    for split, rows in (("test", test_rows), ("dev", dev_rows)):
        (folder / split).mkdir()
        write_csv(folder / split / f"virology_{split}.csv", list(rows))
    return folder / "test"


def mmlu(directory, num_shots=0, max_samples=None):
    return TASKS["mmlu"].read(Source(Path(directory), num_shots, max_samples))


@pytest.fixture(scope="module")
def layouts(tmp_path_factory):
    return write_all(tmp_path_factory.mktemp("layouts"))


def test_cells_stay_text(tmp_path):
    (subject,) = mmlu(layout(tmp_path), 5)
    assert subject.questions[0].options == ("None", "NA", "nan", "1.0")
    assert (subject.name, len(subject.shots), subject.shots[0].answer) == ("virology", 5, "B")
    assert Subject.from_dict(json.loads(json.dumps(subject.to_dict()))) == subject


def test_samples_and_shots_are_the_first_ones(tmp_path):
    rows = [(f"Q{number}", *"wxyz", "A") for number in range(5)]
    (subject,) = mmlu(layout(tmp_path, rows, rows), 2, max_samples=3)
    assert [question.text for question in subject.questions] == ["Q0", "Q1", "Q2"]
    assert [question.text for question in subject.shots] == ["Q0", "Q1"]


def test_zero_shots_need_no_dev_files(tmp_path):
    test = layout(tmp_path)
    (tmp_path / "dev" / "virology_dev.csv").unlink()
    assert mmlu(test)[0].shots == ()
    with pytest.raises(FileNotFoundError, match=r"dev/virology_dev\.csv is missing.*--num-shots 0"):
        mmlu(test, 1)


def test_too_few_shots(tmp_path):
    with pytest.raises(UserError, match=r"virology_dev\.csv has 2 solved examples, --num-shots asks for 5"):
        mmlu(layout(tmp_path, dev_rows=(ROW,) * 2), 5)


@pytest.mark.parametrize(("text", "header", "words"), [
    ('"two\nlines",a,b,c,d,A\nq,a,b,c,A\n', False, r"q_test\.csv line 3 has 5 columns, 6 are wanted"),
    ("question,A,B,C,D,answer\n", False, r"line 1: the last column is 'answer'.*no header"),
    ("q,a,b,c,d,E\n", False, r"line 1: the last column is 'E', one of A, B, C, D is wanted"),
    ("", False, "is empty"),
    ('q,"a,b,c,d,A\n', False, "is not CSV"),
    ("id,question,A,B,C,D\n0,q,a,b,c,d\n", True, "line 1 has no column answer.*use its val"),
    ("id,question,A,B,C,D,answer\n0,q,a,b,c\n", True, "line 2 has 4 columns"),
    ("id,question,A,B,C,D,answer\n", True, "is empty"),
])
def test_bad_tables(tmp_path, text, header, words):
    file = tmp_path / "q_test.csv"
    file.write_text(text)
    with pytest.raises(UserError, match=words):
        read_choice_csv(file, header)


def test_other_encodings(tmp_path):
    file = tmp_path / "q_test.csv"
    file.write_bytes("q,a,b,c,d,A\né?,a,b,c,d,A\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"q_test\.csv line 2 is not UTF-8"):
        read_choice_csv(file)
    file.write_bytes("\ufeffé?,a,b,c,d, A \n".encode())
    assert read_choice_csv(file)[0].text == "é?" and read_choice_csv(file)[0].answer == "A"


def test_wrong_directory(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such directory"):
        mmlu(tmp_path / "absent")
    layout(tmp_path)
    with pytest.raises(FileNotFoundError, match=f"give {tmp_path}/test"):
        mmlu(tmp_path)


READ = {  # (subject, number of questions, shots), and a question with its answer
    "ceval": (("law", 3, 2), "1 + 1 = ?", "B"),
    "cmmlu": (("agronomy", 3, 2), "1 + 1 = ?", "B"),
    "boolq": (("Boolq_dataset", 3, 0), "Answer with one.\nQuestion: is 1 one?", "A"),
    "hellaswag": (("HellaSwag", 3, 0), "Choice: One question They", "B"),
    "gsm8k": (("Gsm8k_dataset", 3, 2), "What is 1 + 1?", "2000"),
    "bbh": (("date_understanding", 2, 2), "Question 1?", "B"),
    "humaneval": (("HumanEval", 1, 0), None, "passed"),
}


@pytest.mark.parametrize("task", READ)
def test_public_layouts(layouts, task):
    (name, questions, shots), text, answer = READ[task]
    subject = TASKS[task].read(Source(layouts[task], min(2, TASKS[task].most_shots)))[0]
    assert (subject.name, len(subject.questions), len(subject.shots)) == (name, questions, shots)
    question = subject.questions[-1 if text is None else 1]
    assert question.answer == answer and text in (None, question.text)


def test_agieval_has_three_kinds_of_answers(layouts):
    several, choice, formula = (subject.questions[0] for subject in TASKS["agieval"].read(Source(layouts["agieval"])))
    assert (choice.letters, choice.answer) == ("ABC", "B")
    assert (several.options, several.answer, formula.options, formula.answer) == ((), "AB", (), "2")


def test_solved_examples_with_and_without_the_way(layouts):
    (subject, _) = TASKS["bbh"].read(Source(layouts["bbh"], 1))
    plain, way = (form["en"].write("", subject.shots, subject.questions[1])
                  for form in (TASKS["bbh"].forms, TASKS["bbh"].reasoning))
    assert plain == "Q: Question 0?\nA: So the answer is (A).\n\nQ: Question 1?\nA:"
    assert way == ("Q: Question 0?\nA: Let's think step by step.\nOne way. So the answer is (A).\n\nQ: Question 1?\nA:")
    (subject,) = TASKS["gsm8k"].read(Source(layouts["gsm8k"], 1))
    assert TASKS["gsm8k"].forms["en"].write("", subject.shots, subject.questions[1]) == (
        "Question: What is 0 + 1?\nAnswer: One more.\nThe answer is 1000.\n\nQuestion: What is 1 + 1?\nAnswer:")


def test_chinese_form(layouts):
    (subject,) = TASKS["ceval"].read(Source(layouts["ceval"], 1))
    assert TASKS["ceval"].forms["zh"].write(subject.name, subject.shots, subject.questions[1]) == (
        "以下是中国关于法学考试的单项选择题，请选出其中的正确答案。\n\n0 + 1 = ?\nA. None\nB. 1\nC. 1.0\nD. nan\n答案：A\n\n"
        "1 + 1 = ?\nA. None\nB. 2\nC. 1.0\nD. nan\n答案：")


def test_needles_lie_at_their_depth(layouts, glm_tokenizer):
    subjects = TASKS["needlebench"].read(Source(layouts["needlebench"], 0, 1, lambda: glm_tokenizer, 4096))
    assert len(subjects) == 2 * 4 * 20
    ends = {subject.name: subject.questions[0] for subject in subjects}
    first, last = ends["PaulGrahamEssays_1000_0"].text, ends["PaulGrahamEssays_1000_100"].text
    assert first.index("The gold is hidden") < first.index("Essay") and last.index("gold") > last.rindex("Essay")
    assert 400 < len(glm_tokenizer.encode(first)) < 1000 and "Before answering" in first
    question = ends["PaulGrahamEssays_1000_0"]
    assert judge("It is on an island", question) == 1.0 and judge("The gold is hidden on the i", question) < 0.2
    assert judge("", question) == 0.0
    with pytest.raises(UserError, match=r"--seq-length \(None\) must be one of 4096, 8192"):
        TASKS["needlebench"].read(Source(layouts["needlebench"]))


@pytest.mark.parametrize(("task", "records", "words"), [
    ("boolq", [{"question": "q", "passage": "p", "answer": True}, {"question": "q", "passage": "p", "answer": "yes"}],
     "line 2: the answer is 'yes', true or false"),
    ("boolq", [{"question": "q", "passage": "p"}], "line 1 has no field 'answer'"),
    ("hellaswag", [{"query": "q", "choices": ["a"], "gold": 0}], "line 1: 1 endings"),
    ("gsm8k", [{"question": "q", "answer": "12"}], "line 1: the answer has no '#### number'"),
    ("agieval", [{"question": "q", "options": ["a", "b"], "label": "C"}], "line 1: the label is 'C', one of A, B"),
    ("humaneval", [[1]], "line 1 is no JSON object"),
    ("humaneval", [], "is empty"),
])
def test_bad_lines(tmp_path, task, records, words):
    write_lines(tmp_path / "test.jsonl", records)
    with pytest.raises(UserError, match=rf"test\.jsonl.* {words}"):
        TASKS[task].read(Source(tmp_path))


def damaged(text: bytes) -> dict[str, bytes]:
    """What can have become of a file."""
    return {"empty": b"", "another encoding": text[:len(text) // 2] + "é".encode("latin-1") + text[len(text) // 2:],
            "UTF-16": text.decode().encode("utf-16")}


@pytest.mark.parametrize("task", TASKS)
def test_damaged_files_are_named(tmp_path, task, glm_tokenizer):
    """Every file that a benchmark reads, also those of the solved examples."""
    directory = write_all(tmp_path).get(task) or layout(tmp_path)
    source = Source(directory, TASKS[task].num_shots, 1, lambda: glm_tokenizer, 4096)
    TASKS[task].read(source)
    files = [file for file in (directory if task == "mmlu" else tmp_path / task).rglob("*") if file.is_file()]
    for file in files:
        whole = file.read_bytes()
        for kind, text in damaged(whole).items():
            file.write_bytes(text)
            with pytest.raises(UserError, match=re.escape(file.name)):
                TASKS[task].read(source)
                pytest.fail(f"{file.name}, {kind}")
        file.write_bytes(whole)
        for place, record in enumerate(map(json.loads, whole.decode().splitlines()) if file.suffix == ".jsonl" else ()):
            for field in record.keys() - MAY_BE_ANYTHING.get(task, set()):
                for value in (None, 1.5, {"a": 1}, [["x"]]):
                    lines = whole.decode().splitlines()
                    lines[place] = json.dumps(record | {field: value})
                    file.write_text("\n".join(lines))
                    with pytest.raises(UserError, match=rf"{file.name} line {place + 1}: "):
                        TASKS[task].read(source)
                        pytest.fail(f"{file.name} line {place + 1}, {field}: {value}")
        file.write_bytes(whole)


MAY_BE_ANYTHING = {"humaneval": {"canonical_solution"}, "agieval": {"passage", "options", "label", "answer"}}


def test_bad_json(tmp_path):
    (tmp_path / "test.jsonl").write_text("{}\n\n{,}\n")
    with pytest.raises(UserError, match="test.jsonl line 1 has no field"):
        TASKS["gsm8k"].read(Source(tmp_path))
    (tmp_path / "test.jsonl").write_text('{"a": 1\n')
    with pytest.raises(UserError, match="test.jsonl line 1 is not JSON"):
        TASKS["gsm8k"].read(Source(tmp_path))
    (tmp_path / "navigate.json").write_text('{"examples": [],\n')
    with pytest.raises(UserError, match="navigate.json line 2 is not JSON"):
        TASKS["bbh"].read(Source(tmp_path))


def test_no_file_of_the_benchmark(tmp_path):
    write_table(tmp_path / "notes.txt", [["x"]])
    for task in TASKS.values():
        with pytest.raises(FileNotFoundError, match=r"holds no .*: give "):
            task.read(Source(tmp_path, tokenizer=None, max_length=4096))


def test_question_without_options():
    assert Question("q").letters == ""
