"""A benchmark as data: its files, how a question is put, how an answer is found and judged, what the log says.

One short module of `eval_impl/` describes each; `runner.py` runs them all. docs/evaluation.md shows a new one.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from mindspeed_llm.config.errors import UserError
from mindspeed_llm.tasks.evaluation.prompts import Form, Question
from mindspeed_llm.tasks.evaluation.question_files import Source, Subject

LOGPROB, GENERATE = "logprob", "generate"


def same_text(answer: str, question: Question) -> float:
    """1.0 for the right answer, letter case aside, else 0.0."""
    return float(answer.strip().lower() == question.answer.strip().lower())


@dataclass(frozen=True)
class Task:
    """One benchmark.

    Attributes:
        name: as `--task` and the result files spell it.
        logger: the name under which its lines are logged.
        read: the subjects in the files of `--task-data-path`. Raises UserError or FileNotFoundError naming file and
            line.
        forms: by language (`--eval-language`) how questions are put; the first is the default.
        alternative: the same for `--alternative-prompt`; empty: there is none.
        reasoning: the same for `--chain-of-thought`; empty: there is none.
        scoring: LOGPROB: the likeliest choice of the form is the answer, where a question has options. GENERATE: the
            model writes its answer, and `extract` finds it.
        length_normalized: log-probabilities are divided by the choice's length in UTF-8 bytes, for choices of unlike
            length (Gao et al., lm-evaluation-harness's acc_norm).
        num_shots: solved examples by default; `most_shots`: so many at most (0: it has none).
        max_new_tokens: of a written answer, by default; `reasoning_tokens`: under --chain-of-thought.
        until: texts at which a written answer ends; `template_until`: those in a chat template, where the model ends
            its turn itself.
        extract: (text written, question) -> answer; `extract_original`: by the rule of MindSpeed-LLM
            (`--origin-postprocess`); None: there is one rule.
        judge: (answer, question) -> score from 0.0 to 1.0.
        runs_code: `judge` runs what the model wrote: `--allow-code-execution` is needed, and rank 0 alone judges.
        categories: subject -> category, for totals of categories; a subject that is not in it has none.
        title: a subject's name in `subject_line`.
        subject_line, total_line: with `{subject}`, `{right}`, `{questions}`, `{acc}`; `time_line`: with `{seconds}`.
    """

    name: str
    logger: str
    read: Callable[[Source], list[Subject]]
    forms: Mapping[str, Form]
    total_line: str
    time_line: str
    subject_line: str = "{subject} has {right} corrects in {questions} questions, with accuracy {acc}"
    alternative: Mapping[str, Form] = field(default_factory=dict)
    reasoning: Mapping[str, Form] = field(default_factory=dict)
    scoring: str = LOGPROB
    length_normalized: bool = False
    num_shots: int = 0
    most_shots: int = 0
    max_new_tokens: int = 32
    reasoning_tokens: int = 512
    until: Sequence[str] = ()
    template_until: Sequence[str] = ()
    extract: Callable[[str, Question], str] = lambda text, question: text.strip()
    extract_original: Callable[[str, Question], str] | None = None
    judge: Callable[[str, Question], float] = same_text
    runs_code: bool = False
    categories: Mapping[str, str] = field(default_factory=dict)
    title: Callable[[str], str] = str

    def form(self, language: str | None, alternative: bool, reasoning: bool) -> Form:
        """How questions are put under `--eval-language`, `--alternative-prompt` and `--chain-of-thought`.

        Raises UserError when the benchmark has no such form.
        """
        if alternative and reasoning:
            raise UserError("--alternative-prompt and --chain-of-thought exclude each other: use one")
        forms, flag = self.forms, ""
        if alternative:
            forms, flag = self.alternative, "--alternative-prompt"
        elif reasoning:
            forms, flag = self.reasoning, "--chain-of-thought"
        if not forms:
            raise UserError(f"{flag}: --task {self.name} has no such form of the prompt: leave it out")
        if language is None:
            return next(iter(forms.values()))
        if language not in forms:
            raise UserError(f"--eval-language {language}: --task {self.name} has {' and '.join(forms)} only")
        return forms[language]

    def shots(self, asked: int | None) -> int:
        """Solved examples before each question. Raises UserError for more than there can be."""
        count = self.num_shots if asked is None else asked
        if count > self.most_shots:
            raise UserError(f"--num-shots ({count}): --task {self.name} has "
                            f"{f'{self.most_shots} solved examples' if self.most_shots else 'no solved examples'}: use "
                            f"--num-shots {self.most_shots}, or leave it out")
        return count
