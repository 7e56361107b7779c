"""The answer in what a model wrote, by our rule and by MindSpeed-LLM's."""

import pytest

from mindspeed_llm.tasks.evaluation import extraction
from mindspeed_llm.tasks.evaluation.eval_impl import agi_eval, bbh_eval, boolq_eval
from mindspeed_llm.tasks.evaluation.prompts import Question

CHOICE = Question("q", tuple("wxyz"), "B")


@pytest.mark.parametrize(("rule", "text", "answer"), [
    (extraction.letter, " B", "B"),
    (extraction.letter, "A man. The answer is (C).", "C"),
    (extraction.letter, "答案：D。", "D"),
    (extraction.letter, "所以答案应该是 B", "B"),
    (extraction.letter, "Because AB, not E", ""),
    (extraction.letter_original, " B. because", "B"),
    (extraction.letter_original, "C", "C"),
    (extraction.letter_original, "The answer", ""),
    (extraction.first_capital, "so B", "B"),
    (extraction.first_capital, "The answer is B", ""),
    (extraction.several_letters, "The answer is A, C and", "AC"),
    (extraction.several_letters, "BD", "BD"),
    (extraction.last_number, "5 and $1,080.00.\nQuestion: 3?", "1080"),
    (extraction.last_number, "none", ""),
    (extraction.number_after_answer_is, "It is 3. The answer is -4. Then 5.", "-4"),
    (extraction.formula, r"so \boxed{\frac{1}{2}} it is", r"\frac{1}{2}"),
    (extraction.formula, "we get $x = 3$.", "3"),
    (extraction.formula, "The answer is 12 .", "12"),
    (extraction.formula, "7 apples", "7"),
    (bbh_eval.extract, "Let's see. So the answer is (B).\nQ: more (C)", "B"),
    (bbh_eval.extract, "So the answer is not plausible.", "not plausible"),
    (bbh_eval.extract, " ] )", "] )"),
    (bbh_eval.extract_original, " (B) two.", "B"),
    (boolq_eval.yes_or_no, " false, no", "B"),
    (boolq_eval.yes_or_no, "A", "A"),
    (agi_eval.extract_original, " $(B)$\nx", "B"),
])
def test_rules(rule, text, answer):
    assert rule(text, CHOICE) == answer
