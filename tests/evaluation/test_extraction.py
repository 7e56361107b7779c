"""The answer in what a model wrote, by our rule and by MindSpeed-LLM's; programs are run with limits."""

import os
import socket
import subprocess
import time

import pytest

from mindspeed_llm.tasks.evaluation import code_execution, extraction
from mindspeed_llm.tasks.evaluation.eval_impl import agi_eval, bbh_eval, boolq_eval, human_eval
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


FUNCTION = Question("import math\n\n\ndef one(x):\n    \"\"\"Add one.\"\"\"\n", answer="passed", details={
    "task_id": "t", "entry_point": "one", "test": "def check(candidate):\n    assert candidate(1) == 2\n"})


@pytest.mark.parametrize(("text", "score"), [
    ("    return x + 1\n", 1.0),
    ("Sure:\n```python\ndef one(x):\n    return math.floor(x) + 1\n```\nDone.", 1.0),
    ("    return x\n", 0.0),
    ("    return (\n", 0.0),
])
def test_functions_are_judged_by_their_tests(text, score):
    assert human_eval.judge(human_eval.program(text, FUNCTION), FUNCTION) == score


def test_programs_are_limited(tmp_path):
    """Time, memory, size of files; another folder that is removed; no environment; no children left; no network."""
    started = time.monotonic()
    assert not code_execution.passes("while True: pass", seconds=1)
    assert not code_execution.passes("import time\ntime.sleep(60)", seconds=1)
    assert time.monotonic() - started < 10
    assert not code_execution.passes("x = bytearray(3 << 30)")
    assert not code_execution.passes("open('x', 'wb').write(bytes(20 << 20))")
    note = tmp_path / "note"
    marker = f"marker{os.getpid()}"
    program = (f"import os, subprocess\nopen({str(note)!r}, 'w').write(os.getcwd())\n"
               f"assert 'LOGNAME' not in os.environ and len(os.environ) <= 5, os.environ\n"
               f"subprocess.Popen(['sh', '-c', 'sleep 30; : {marker}'])\n")
    assert code_execution.passes(program)
    assert not os.path.exists(note.read_text())
    time.sleep(0.1)
    assert marker not in subprocess.run(["ps", "axww"], capture_output=True, text=True, check=True).stdout
    connect = "import socket\ns = socket.create_connection(('127.0.0.1', {}))\n"
    with socket.create_server(("127.0.0.1", 0)) as server:
        reached = code_execution.passes(connect.format(server.getsockname()[1]), seconds=5)
    assert reached == (not code_execution.isolation())
