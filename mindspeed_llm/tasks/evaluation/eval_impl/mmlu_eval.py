"""MMLU: the letter of the right option, chosen by its logit (Hendrycks et al., 2021, "Measuring Massive Multitask
Language Understanding").

Log lines (logging's `INFO:<logger>:<text>` form, on stderr): for each subject, and at the end for all questions,
`INFO:mindspeed_llm.tasks.evaluation.eval_impl.mmlu_eval:mmlu acc = <right>/<questions>=<share>`; a tqdm bar named
`total` over the subjects; then from the logger `main` the table of subjects with its last row `total`, and
`MMLU Running Time:, <seconds>`.
"""

import logging
import sys
import time
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from tqdm import tqdm

from mindspeed_llm.tasks.evaluation.choice_model import ChoiceModel
from mindspeed_llm.tasks.evaluation.prompt_forms import Prompt, PromptWriter
from mindspeed_llm.tasks.evaluation.prompts import LETTERS
from mindspeed_llm.tasks.evaluation.question_files import Subject
from mindspeed_llm.tasks.evaluation.results import SubjectResult, table, totals

logger = logging.getLogger(__name__)
main_logger = logging.getLogger("main")


def evaluate(subjects: Sequence[Subject], model: ChoiceModel, writer: PromptWriter,
             speaks: bool) -> list[SubjectResult]:
    """Answer all questions of all subjects. Every rank calls this; the one that `speaks` logs."""
    started = time.time()
    results: list[SubjectResult] = []
    shortened = cut = 0
    bar = tqdm(total=len(subjects), desc="total", disable=not speaks)
    for subject in subjects:
        prompts = [writer.write(subject, question) for question in subject.questions]
        scores = _score_alike(prompts, model, writer.choice_ids)
        result = SubjectResult(subject.name, tuple(question.answer for question in subject.questions), scores,
                               tuple(prompt.shots for prompt in prompts))
        results.append(result)
        shortened += sum(prompt.shots < len(subject.shots) for prompt in prompts)
        cut += sum(prompt.cut for prompt in prompts)
        if speaks:
            _leave_bar(bar)
            _log_accuracy(result.right, len(result.answers))
        bar.update()
    if speaks:
        _report(results, shortened, cut, time.time() - started, bar)
    return results


def _score_alike(prompts: list[Prompt], model: ChoiceModel, choice_ids: Sequence[int]) -> np.ndarray:
    """Scores `(questions, 4)`, prompts with equally many shots together: these begin alike."""
    groups: dict[tuple[int, bool], list[int]] = defaultdict(list)
    for index, prompt in enumerate(prompts):
        groups[prompt.shots, prompt.cut].append(index)
    scores = np.empty((len(prompts), len(LETTERS)), np.float32)
    for places in groups.values():
        scores[places] = model.score_choices([prompts[index].ids for index in places], choice_ids)
    return scores


def _report(results: list[SubjectResult], shortened: int, cut: int, seconds: float, bar: tqdm) -> None:
    right, questions = totals(results)
    _leave_bar(bar)
    if shortened or cut:
        logger.info("%d of %d prompts were longer than the model's sequence: their first shots were left out; %d "
                    "questions lost their beginning", shortened, questions, cut)
    _log_accuracy(right, questions)
    bar.refresh()
    bar.disable = True  # the documented log goes on behind the bar, without a new line
    main_logger.info("\n%s", table(results).to_string())
    main_logger.info("MMLU Running Time:, %s", seconds)


def _leave_bar(bar: tqdm) -> None:
    """Let the next log line begin at the start of a line: on a terminal the bar moves on, in a file it stays."""
    if sys.stderr.isatty():
        bar.clear()
    else:
        sys.stderr.write("\n")


def _log_accuracy(right: int, questions: int) -> None:
    logger.info("mmlu acc = %d/%d=%s", right, questions, right / questions)
