"""The forms of a multiple-choice prompt, and its way into token ids that end where the letter is due."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mindspeed_llm.config.errors import UserError
from mindspeed_llm.data.templates import Message, Template
from mindspeed_llm.data.tokenizer import Tokenizer
from mindspeed_llm.tasks.evaluation.prompts import LETTERS, format_prompt, subject_title
from mindspeed_llm.tasks.evaluation.question_files import Question, Subject

Shot = tuple[str, Sequence[str], str]


@dataclass(frozen=True)
class PromptForm:
    """`write(subject, shots, question, options)` gives the text up to the answer; `answer` has `{letter}` in it."""

    write: Callable[[str, Sequence[Shot], str, Sequence[str]], str]
    answer: str


def _alternative(subject: str, shots: Sequence[Shot], question: str, options: Sequence[str]) -> str:
    def block(text: str, choices: Sequence[str]) -> str:
        lettered = [f"({letter}) {choice}" for letter, choice in zip(LETTERS, choices, strict=True)]
        return "\n".join([f"Question: {text}", *lettered, "Answer:"])

    solved = "".join(f"{block(text, choices)} ({letter})\n\n" for text, choices, letter in shots)
    request = f"Choose the right option for each question about {subject_title(subject)}.\n\n"
    return request + solved + block(question, options)


STANDARD = PromptForm(format_prompt, "{letter}")
"""The form of the MMLU authors: see `prompts`."""

ALTERNATIVE = PromptForm(_alternative, "({letter})")
"""`--alternative-prompt`: a request instead of a heading, `Question:` before each question, letters in parentheses::

    Choose the right option for each question about high school biology.

    Question: {question}
    (A) {option}
    ...
    Answer: (B)
"""


@dataclass(frozen=True)
class Prompt:
    """Token ids up to the letter; `shots` solved examples are in it; `cut` says that its beginning had to go."""

    ids: list[int]
    shots: int
    cut: bool = False


class PromptWriter:
    """Token ids of questions, in a chat template or (None) as plain text.

    `choice_ids`: the ids of the letters as they come next after a prompt. In a template the model's answer is the
    letter alone, so the ids end with what every answer begins with (glm4: a newline). In plain text the letter follows
    `Answer:` and a space. What all four continuations have in common belongs to the prompt; each one's next token is
    its choice.

    Raises UserError when the tokenizer does not tell the letters apart by one token.
    """

    def __init__(self, tokenizer: Tokenizer, template: Template | None, form: PromptForm, max_length: int) -> None:
        self._tokenizer, self._template, self._form, self._max_length = tokenizer, template, form, max_length
        frame = " {content}" if template is None else template.assistant
        answers = [tokenizer.encode(frame.replace("{content}", form.answer.replace("{letter}", letter)))
                   for letter in LETTERS]
        shared = common_prefix(answers)
        self._lead = answers[0][:shared]
        if any(len(answer) <= shared for answer in answers):
            raise UserError("the tokenizer spells one letter as the beginning of another: it cannot be used here")
        self.choice_ids = [answer[shared] for answer in answers]
        if len(set(self.choice_ids)) != len(LETTERS):
            raise UserError(f"the tokenizer does not give the letters {', '.join(LETTERS)} different tokens: it cannot "
                            "be used here")

    def write(self, subject: Subject, question: Question) -> Prompt:
        """Ids of one question with as many of the subject's shots as fit: the first ones go first.

        A question that is too long by itself loses its beginning (its end, with the options, matters most).
        """
        for dropped in range(len(subject.shots) + 1):
            shots = subject.shots[dropped:]
            ids = self._encode(subject.name, shots, question)
            if len(ids) <= self._max_length:
                return Prompt(ids, len(shots))
        return Prompt(ids[-self._max_length:], 0, cut=True)

    def _encode(self, subject: str, shots: Sequence[Question], question: Question) -> list[int]:
        text = self._form.write(subject, [shot.shot for shot in shots], question.text, question.options)
        if self._template is None:
            ids = self._tokenizer.encode(text, add_special=True)
        else:
            ids = self._template.encode_prompt(self._tokenizer, [Message("user", text)])
        return ids + self._lead


def common_prefix(lists: Sequence[Sequence[int]]) -> int:
    """How many first entries all `lists` share."""
    if not lists:
        return 0
    low, high = min(lists), max(lists)  # all others lie between these two in lexical order
    for index, (a, b) in enumerate(zip(low, high)):
        if a != b:
            return index
    return min(len(low), len(high))
