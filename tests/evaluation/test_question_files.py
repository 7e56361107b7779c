"""MMLU's CSV files: every cell is text, and a wrong row is named by file and line."""

import pytest

from mindspeed_llm.config.errors import UserError
from mindspeed_llm.tasks.evaluation.question_files import Subject, read_questions, read_subjects
from tests.inference.tiny_job import write_csv

ROW = ("How many?", "None", "NA", "", "1,5", "B")


def layout(folder, test_rows=(ROW,), dev_rows=(ROW,) * 5):
    for split, rows in (("test", test_rows), ("dev", dev_rows)):
        (folder / split).mkdir()
        write_csv(folder / split / f"virology_{split}.csv", list(rows))
    return folder / "test"


def test_cells_stay_text(tmp_path):
    (subject,) = read_subjects(str(layout(tmp_path)), 5)
    assert subject.questions[0].options == ("None", "NA", "", "1,5")
    assert (subject.name, len(subject.shots), subject.shots[0].answer) == ("virology", 5, "B")
    assert Subject.from_dict(subject.to_dict()) == subject


def test_samples_and_shots_are_the_first_ones(tmp_path):
    rows = [(f"Q{number}", *"wxyz", "A") for number in range(5)]
    (subject,) = read_subjects(str(layout(tmp_path, rows, rows)), 2, max_samples=3)
    assert [question.text for question in subject.questions] == ["Q0", "Q1", "Q2"]
    assert [question.text for question in subject.shots] == ["Q0", "Q1"]


def test_zero_shots_need_no_dev_files(tmp_path):
    test = layout(tmp_path)
    (tmp_path / "dev" / "virology_dev.csv").unlink()
    assert read_subjects(str(test), 0)[0].shots == ()
    with pytest.raises(FileNotFoundError, match=r"dev/virology_dev\.csv is missing.*--num-shots 0"):
        read_subjects(str(test), 1)


def test_too_few_shots(tmp_path):
    with pytest.raises(UserError, match=r"has 2 solved examples, --num-shots asks for 5"):
        read_subjects(str(layout(tmp_path, dev_rows=(ROW,) * 2)), 5)


@pytest.mark.parametrize(("text", "words"), [
    ('"two\nlines",a,b,c,d,A\nq,a,b,c,A\n', r"q_test\.csv line 3 has 5 columns, 6 are wanted"),
    ("question,A,B,C,D,answer\n", r"line 1: the last column is 'answer'.*no header"),
    ("", "is empty"),
    ('q,"a,b,c,d,A\n', "is not CSV"),
])
def test_bad_files(tmp_path, text, words):
    file = tmp_path / "q_test.csv"
    file.write_text(text)
    with pytest.raises(UserError, match=words):
        read_questions(file)


def test_other_encodings(tmp_path):
    file = tmp_path / "q_test.csv"
    file.write_bytes("é?,a,b,c,d,A\n".encode("latin-1"))
    with pytest.raises(UserError, match="not UTF-8"):
        read_questions(file)
    file.write_bytes("\ufeffé?,a,b,c,d, A \n".encode())
    assert read_questions(file)[0].text == "é?" and read_questions(file)[0].answer == "A"


def test_wrong_directory(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such directory"):
        read_subjects(str(tmp_path / "absent"), 5)
    layout(tmp_path)
    with pytest.raises(FileNotFoundError, match=f"give {tmp_path}/test"):
        read_subjects(str(tmp_path), 5)
