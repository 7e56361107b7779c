"""Prompts end where the letter is due, in every form, and shots go when there is no room."""

import pytest

from mindspeed_llm.data.templates import Message, get_template
from mindspeed_llm.data.tokenizer import load_tokenizer
from mindspeed_llm.tasks.evaluation.prompt_forms import ALTERNATIVE, STANDARD, PromptWriter, common_prefix
from mindspeed_llm.tasks.evaluation.prompts import LETTERS
from mindspeed_llm.tasks.evaluation.question_files import Question, Subject
from tests.inference.tiny_job import write_job

SHOTS = tuple(Question(f"Shot {number}?", ("one", "two", "three", "four"), "ABCDA"[number]) for number in range(5))
QUESTION = Question("Which?", ("None", "NA", "three", "four"), "C")
SUBJECT = Subject("high_school_biology", (QUESTION,), SHOTS)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prompt_forms")
    write_job(folder)
    return load_tokenizer(str(folder / "tokenizer"))


@pytest.mark.parametrize("form", [STANDARD, ALTERNATIVE])
@pytest.mark.parametrize("template_name", [None, "glm4", "alpaca", "default"])
def test_prompt_and_letter_are_the_text_with_its_answer(tokenizer, form, template_name):
    template = None if template_name is None else get_template(template_name)
    writer = PromptWriter(tokenizer, template, form, 10_000)
    prompt = writer.write(SUBJECT, QUESTION)
    text = form.write(SUBJECT.name, [shot.shot for shot in SHOTS], QUESTION.text, QUESTION.options)
    assert len(set(writer.choice_ids)) == 4 and prompt.shots == 5
    for letter, choice in zip(LETTERS, writer.choice_ids, strict=True):
        answer = form.answer.replace("{letter}", letter)
        if template is None:
            whole = tokenizer.encode(f"{text} {answer}", add_special=True)
        else:
            whole, _ = template.encode(tokenizer, [Message("user", text), Message("assistant", answer)])
        assert whole[:len(prompt.ids) + 1] == [*prompt.ids, choice]


def test_prompts_begin_with_the_models_prefix(tokenizer):
    for template in (None, get_template("glm4")):
        assert PromptWriter(tokenizer, template, STANDARD, 999).write(SUBJECT, QUESTION).ids[:2] == tokenizer.bos_prefix


def test_alternative_form():
    text = ALTERNATIVE.write(SUBJECT.name, [SHOTS[1].shot], QUESTION.text, QUESTION.options)
    assert text == ("Choose the right option for each question about high school biology.\n\n"
                    "Question: Shot 1?\n(A) one\n(B) two\n(C) three\n(D) four\nAnswer: (B)\n\n"
                    "Question: Which?\n(A) None\n(B) NA\n(C) three\n(D) four\nAnswer:")


def test_first_shots_go_when_there_is_no_room(tokenizer):
    whole = PromptWriter(tokenizer, None, STANDARD, 10_000)
    with_two = len(whole.write(Subject(SUBJECT.name, (), SHOTS[3:]), QUESTION).ids)
    prompt = PromptWriter(tokenizer, None, STANDARD, with_two).write(SUBJECT, QUESTION)
    assert (prompt.shots, prompt.cut, len(prompt.ids)) == (2, False, with_two)
    assert prompt.ids == whole.write(Subject(SUBJECT.name, (), SHOTS[3:]), QUESTION).ids
    bare = whole.write(Subject(SUBJECT.name, (), ()), QUESTION).ids
    prompt = PromptWriter(tokenizer, None, STANDARD, 20).write(SUBJECT, QUESTION)
    assert (prompt.ids, prompt.shots, prompt.cut) == (bare[-20:], 0, True)


def test_common_prefix():
    assert common_prefix([[1, 2, 3], [1, 2], [1, 2, 4]]) == 2
    assert common_prefix([[1], [2]]) == 0
    assert common_prefix([[5, 6]]) == 2
    assert common_prefix([]) == 0
