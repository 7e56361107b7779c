"""Prompts end where the answer is due, in every form, and shots go when there is no room."""

import pytest

from mindspeed_llm.config.errors import UserError
from mindspeed_llm.data.templates import Message, get_template
from mindspeed_llm.data.tokenizer import load_tokenizer
from mindspeed_llm.tasks.evaluation.eval_impl import TASKS
from mindspeed_llm.tasks.evaluation.eval_impl.mmlu_eval import ALTERNATIVE
from mindspeed_llm.tasks.evaluation.prompt_writer import PromptWriter, common_prefix
from mindspeed_llm.tasks.evaluation.prompts import STANDARD, Form, Question
from mindspeed_llm.tasks.evaluation.question_files import Subject
from tests.inference.tiny_job import write_job

SHOTS = tuple(Question(f"Shot {number}?", ("one", "two", "three", "four"), "ABCDA"[number]) for number in range(5))
QUESTION = Question("Which?", ("None", "NA", "three", "four"), "C")
SUBJECT = Subject("high_school_biology", (QUESTION,), SHOTS)
CHINESE = TASKS["ceval"].forms["zh"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prompt_writer")
    write_job(folder)
    return load_tokenizer(str(folder / "tokenizer"))


@pytest.mark.parametrize("form", [STANDARD, ALTERNATIVE, CHINESE])
@pytest.mark.parametrize("template_name", [None, "glm4", "alpaca", "default"])
def test_prompt_and_choice_are_the_text_with_its_answer(tokenizer, form, template_name):
    """In Chinese too, where the letter follows a colon of two bytes without a space."""
    template = None if template_name is None else get_template(template_name)
    prompt = PromptWriter(tokenizer, template, form, 10_000).write(SUBJECT, QUESTION, rated=True)
    text = form.write(SUBJECT.name, SHOTS, QUESTION)
    assert prompt.shots == 5 and len({tuple(ids) for ids in prompt.continuations}) == 4
    for choice, continuation in zip(form.choices(QUESTION), prompt.continuations, strict=True):
        if template is None:
            whole = tokenizer.encode(text + form.gap + choice, add_special=True)
        else:
            whole, _ = template.encode(tokenizer, [Message("user", text), Message("assistant", choice)])
        assert whole[:len(prompt.ids) + len(continuation)] == [*prompt.ids, *continuation]
        assert len(continuation) == 1


@pytest.mark.parametrize("text", ["one", " one", "\n one", "\t", "", "(one", "1", "two\n\n  three"])
@pytest.mark.parametrize("form", [STANDARD, Form(lambda asked: asked.text), Form(lambda asked: asked.text, separator=" ")])
def test_solved_examples_are_cut_apart_only_where_it_changes_nothing(tokenizer, form, text):
    question = Question(text, ("one", "two"), "A")
    for shots in (SHOTS[:2], ()):
        prompt = PromptWriter(tokenizer, None, form, 999).write(Subject("s", (question,), shots), question, rated=False)
        assert prompt.ids == tokenizer.encode(form.write("s", shots, question), add_special=True)


def test_choices_of_several_tokens(tokenizer):
    question = Question("Where is it", ("on the one", "on three questions", "on"), "A")
    form = Form(lambda asked: asked.text, choices=lambda asked: asked.options)
    prompt = PromptWriter(tokenizer, None, form, 10_000).write(Subject("s", (question,)), question, rated=True)
    for option, continuation in zip(question.options, prompt.continuations, strict=True):
        assert [*prompt.ids, *continuation] == tokenizer.encode(f"Where is it {option}", add_special=True)
    assert min(map(len, prompt.continuations)) >= 1 < max(map(len, prompt.continuations))
    assert prompt.ids == tokenizer.encode("Where is it", add_special=True)


def test_prompts_begin_with_the_models_prefix(tokenizer):
    for template in (None, get_template("glm4")):
        for rated in (True, False):
            prompt = PromptWriter(tokenizer, template, STANDARD, 999).write(SUBJECT, QUESTION, rated)
            assert prompt.ids[:2] == tokenizer.bos_prefix


def test_written_answers_come_after_the_text(tokenizer):
    prompt = PromptWriter(tokenizer, None, STANDARD, 999).write(SUBJECT, QUESTION, rated=False)
    assert prompt.ids == tokenizer.encode(STANDARD.write(SUBJECT.name, SHOTS, QUESTION), add_special=True)
    assert prompt.continuations == []


def test_standard_form():
    assert STANDARD.write("high_school_biology", SHOTS[1:2], QUESTION) == (
        "The following are multiple choice questions (with answers) about high school biology.\n\n"
        "Shot 1?\nA. one\nB. two\nC. three\nD. four\nAnswer: B\n\n"
        "Which?\nA. None\nB. NA\nC. three\nD. four\nAnswer:")


def test_alternative_form():
    assert ALTERNATIVE.write(SUBJECT.name, SHOTS[1:2], QUESTION) == (
        "Choose the right option for each question about high school biology.\n\n"
        "Question: Shot 1?\n(A) one\n(B) two\n(C) three\n(D) four\nAnswer: (B)\n\n"
        "Question: Which?\n(A) None\n(B) NA\n(C) three\n(D) four\nAnswer:")


def test_first_shots_go_when_there_is_no_room(tokenizer):
    whole = PromptWriter(tokenizer, None, STANDARD, 10_000)
    two = Subject(SUBJECT.name, (), SHOTS[3:])
    with_two = len(whole.write(two, QUESTION, True).ids)
    prompt = PromptWriter(tokenizer, None, STANDARD, with_two).write(SUBJECT, QUESTION, True)
    assert (prompt.shots, prompt.cut, prompt.ids) == (2, False, whole.write(two, QUESTION, True).ids)
    bare = whole.write(Subject(SUBJECT.name, (), ()), QUESTION, True).ids
    prompt = PromptWriter(tokenizer, None, STANDARD, 20).write(SUBJECT, QUESTION, True)
    assert (prompt.ids, prompt.shots, prompt.cut) == (bare[-20:], 0, True)
    written = PromptWriter(tokenizer, None, STANDARD, 20, new_tokens=15).write(SUBJECT, QUESTION, False)
    assert len(written.ids) == 5
    with pytest.raises(UserError, match="an answer of 30 tokens leaves no room"):
        PromptWriter(tokenizer, None, STANDARD, 20, new_tokens=30).write(SUBJECT, QUESTION, False)


def test_choices_that_are_spelled_alike(tokenizer):
    form = Form(lambda asked: asked.text, choices=lambda asked: asked.options)
    with pytest.raises(UserError, match="spells two of the choices 'x', 'x' alike"):
        PromptWriter(tokenizer, None, form, 99).write(SUBJECT, Question("q", ("x", "x"), "A"), True)


def test_common_prefix():
    assert common_prefix([[1, 2, 3], [1, 2], [1, 2, 4]]) == 2
    assert common_prefix([[1], [2]]) == 0
    assert common_prefix([[5, 6]]) == 2
    assert common_prefix([]) == 0
