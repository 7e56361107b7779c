"""The run of a benchmark: every question put, answered and judged, subject by subject.

Log lines (logging's `INFO:<logger>:<text>` form, on stderr) are those that MindSpeed-LLM documents for MMLU and prints
for the others: after each subject `Task.subject_line`, at the end `Task.total_line`, both from the benchmark's own
logger; a tqdm bar named `total` over the subjects; then from the logger `main` the table of subjects with its last row
`total`, and `Task.time_line`. Where the benchmark has categories, a table of these follows.
"""

import hashlib
import json
import logging
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tqdm import tqdm

from mindspeed_llm.data.tokenizer import Tokenizer
from mindspeed_llm.tasks.evaluation.language_model import LanguageModel, Likelihoods, Request
from mindspeed_llm.tasks.evaluation.prompt_writer import Prompt, PromptWriter
from mindspeed_llm.tasks.evaluation.prompts import Question
from mindspeed_llm.tasks.evaluation.question_files import Subject
from mindspeed_llm.tasks.evaluation.results import (QuestionResult, SubjectResult, by_category, category_table, summary,
                                                    table)
from mindspeed_llm.tasks.evaluation.task import LOGPROB, Task

main_logger = logging.getLogger("main")


@dataclass(frozen=True)
class Answering:
    """How a task is answered in this run: `Task`'s choices where the command line has not made others."""

    scoring: str
    max_new_tokens: int
    until: Sequence[str]
    extract: Callable[[str, Question], str]

    def rates(self, question: Question) -> bool:
        """Whether the model chooses among a question's options instead of writing."""
        return self.scoring == LOGPROB and bool(question.options)


class Runner:
    """Runs one task. Every rank calls it with the same arguments and gets all results; rank 0 `speaks`: `run` logs
    there.

    `agree`: gives all ranks the text that rank 0 has (the others pass None).
    """

    def __init__(self, task: Task, answering: Answering, model: LanguageModel, writer: PromptWriter,
                 tokenizer: Tokenizer, speaks: bool, agree: Callable[[str | None], str]) -> None:
        self._task, self._answering, self._model, self.writer = task, answering, model, writer
        self._tokenizer, self._speaks, self._agree = tokenizer, speaks, agree
        self._logger = logging.getLogger(task.logger)
        self._shortened = self._cut = 0

    def run(self, subjects: Sequence[Subject], finished: Mapping[str, SubjectResult] | None = None,
            keep: Callable[[SubjectResult], None] | None = None) -> list[SubjectResult]:
        """Answer all questions of all subjects, but those `finished` before; `keep` is called after each new one."""
        started, results = time.time(), []
        bar = tqdm(total=len(subjects), desc="total", disable=not self._speaks)
        for subject in subjects:
            result = (finished or {}).get(subject.name)
            if result is None:
                result = self.answer(subject)
                if keep is not None:
                    keep(result)
            results.append(result)
            if self._speaks:
                _leave_bar(bar)
                self._log(self._task.subject_line, [result], self._task.title(subject.name))
            bar.update()
        if self._speaks:
            self._report(results, time.time() - started, bar)
        return results

    def answer(self, subject: Subject) -> SubjectResult:
        """Answer the questions of one subject."""
        rated = [self._answering.rates(question) for question in subject.questions]
        prompts = [self.writer.write(subject, question, rate)
                   for question, rate in zip(subject.questions, rated, strict=True)]
        self._shortened += sum(prompt.shots < len(subject.shots) for prompt in prompts)
        self._cut += sum(prompt.cut for prompt in prompts)
        likelihoods = iter(self._model.log_likelihoods([Request(prompt.ids, prompt.continuations)
                                                        for prompt, rate in zip(prompts, rated, strict=True) if rate]))
        written = iter(self._texts([prompt for prompt, rate in zip(prompts, rated, strict=True) if not rate]))
        answers = [self._chosen(question, next(likelihoods)) if rate else self._written(question, next(written))
                   for question, rate in zip(subject.questions, rated, strict=True)]
        scores = self._judge([prediction for prediction, _, _ in answers], subject.questions)
        return SubjectResult(subject.name, tuple(
            QuestionResult(key(question), question.answer, prediction, score, log_probs, text, prompt.shots)
            for question, (prediction, log_probs, text), score, prompt
            in zip(subject.questions, answers, scores, prompts, strict=True)))

    def _chosen(self, question: Question, found: Likelihoods) -> tuple[str, tuple[float, ...], str]:
        """The likeliest choice (among equals the first)."""
        rated = found.log_probs
        if self._task.length_normalized:
            rated = rated / [max(1, len(choice.encode())) for choice in self.writer.form.choices(question)]
        return question.letters[int(rated.argmax())], tuple(rated.tolist()), ""

    def _written(self, question: Question, text: str) -> tuple[str, None, str]:
        return self._answering.extract(text, question), None, text

    def _texts(self, prompts: Sequence[Prompt]) -> list[str]:
        if not prompts:
            return []
        until = self._answering.until
        answers = self._model.generate([prompt.ids for prompt in prompts], self._answering.max_new_tokens,
                                       frozenset(self._tokenizer.stop_ids),
                                       lambda ids: cut_at(self._tokenizer.decode(ids), until)[1])
        return [cut_at(self._tokenizer.decode(ids), until)[0] for ids in answers]

    def _judge(self, predictions: Sequence[str], questions: Sequence[Question]) -> list[float]:
        def judged() -> list[float]:
            return [self._task.judge(prediction, question)
                    for prediction, question in zip(predictions, questions, strict=True)]

        if not self._task.runs_code:
            return judged()
        return json.loads(self._agree(json.dumps(judged()) if self._speaks else None))

    def _report(self, results: list[SubjectResult], seconds: float, bar: tqdm) -> None:
        _leave_bar(bar)
        if self._shortened or self._cut:
            questions = sum(len(result.questions) for result in results)
            self._logger.info("%d of %d prompts were longer than the model's sequence: their first shots were left "
                              "out; %d questions lost their beginning", self._shortened, questions, self._cut)
        self._log(self._task.total_line, results, "total")
        bar.refresh()
        bar.disable = True  # the documented log goes on behind the bar, without a new line
        main_logger.info("\n%s", table(results))
        main_logger.info("%s", self._task.time_line.format(seconds=seconds))
        if categories := by_category(results, self._task.categories):
            main_logger.info("\n%s", category_table(categories))

    def _log(self, line: str, results: Sequence[SubjectResult], subject: str) -> None:
        entry = summary(results)
        self._logger.info("%s", line.format(subject=subject, right=entry.right, questions=entry.question_n,
                                            acc=entry.acc))


def key(question: Question) -> str:
    """A short hash of a question and its options."""
    return hashlib.sha256(json.dumps([question.text, *question.options]).encode()).hexdigest()[:16]


def cut_at(text: str, until: Sequence[str]) -> tuple[str, bool]:
    """`text` up to the first of the texts `until`, and whether one occurs."""
    ends = [place for stop in until if (place := text.find(stop)) >= 0]
    return (text[:min(ends)], True) if ends else (text, False)


def _leave_bar(bar: tqdm) -> None:
    """Let the next log line begin at the start of a line: on a terminal the bar moves on, in a file it stays."""
    if sys.stderr.isatty():
        bar.clear()
    else:
        sys.stderr.write("\n")
