import pytest

from mindspeed_llm.tasks.evaluation.prompts import format_prompt, format_question, subject_title

OPTIONS = ["4", "None", "NA", "a, b"]


def test_documented_form():
    assert format_question("2 + 2?", OPTIONS) == "2 + 2?\nA. 4\nB. None\nC. NA\nD. a, b\nAnswer:"
    assert format_question("2 + 2?", OPTIONS, "A") == "2 + 2?\nA. 4\nB. None\nC. NA\nD. a, b\nAnswer: A\n\n"


def test_shots_come_first_and_in_order():
    shots = [("one?", OPTIONS, "B"), ("two?", OPTIONS, "C")]
    text = format_prompt("high_school_biology", shots, "three?", OPTIONS)
    assert text.startswith("The following are multiple choice questions (with answers) about high school biology.\n\n"
                           "one?")
    assert text.index("one?") < text.index("Answer: B\n\ntwo?") < text.index("Answer: C\n\nthree?")
    assert text.endswith("D. a, b\nAnswer:")


def test_zero_shot_is_header_and_question():
    assert format_prompt("kinds", [], "q?", OPTIONS) == (
        "The following are multiple choice questions (with answers) about kinds.\n\n" + format_question("q?", OPTIONS))


def test_title():
    assert subject_title("us_foreign_policy") == "us foreign policy"


@pytest.mark.parametrize("options, answer, message", [
    (OPTIONS[:3], None, "needs 4 options, this one has 3"),
    (OPTIONS, "E", "answer 'E' is not one of A, B, C, D"),
])
def test_bad_questions(options, answer, message):
    with pytest.raises(ValueError, match=message):
        format_question("q?", options, answer)
